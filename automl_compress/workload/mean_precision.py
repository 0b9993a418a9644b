"""Mean average precision of boxes by the definition of COCO: the only file that loads torchmetrics.

Detections are matched with boxes from the highest score down; precision is read at 101 recalls;
at most 100 detections an image count (Lin et al. 2014 and the COCO evaluation they published).
Regions marked as crowds are nobody's mistake.
"""

from __future__ import annotations

import importlib
import math
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from automl_compress.errors import WorkloadError

LIBRARIES: Final = ("torchmetrics", "faster_coco_eval")
"""What the extra `detection` installs."""
FOLDS: Final = 8
"""Disjoint parts of the images whose scatter is the standard error."""


@dataclass(frozen=True)
class MeanPrecision:
    """How well boxes were found, as shares in [0, 1].

    Attributes:
        map50: mean over the classes of the average precision at an overlap (IoU) of 0.5.
        map: the mean of it over overlaps of 0.5, 0.55, ..., 0.95.
        error: standard error of `map50`, see `mean_precision`; NaN where it cannot be had.
    """

    map50: float
    map: float
    error: float


def require_detection() -> None:
    """Check that the libraries of the extra `detection` are installed.

    Raises:
        WorkloadError: one is missing.
    """
    for name in LIBRARIES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(name)
        except ImportError as reason:
            raise WorkloadError(
                f"detectors need the library '{name}', but it is not installed; "
                "run `pip install automl-compress[detection]`"
            ) from reason


def mean_precision(detections: Tensor, boxes: Tensor) -> MeanPrecision:
    """Compare detections with boxes.

    The standard error says how far an equally large draw of other images would move `map50`: the
    scatter of the `map50` of eight disjoint folds of the images, over the root of eight. Eight
    folds know it to within a quarter only, and folds of few boxes scatter a little more than
    the rule has it.

    Args:
        detections: (n, d, 6) left, top, right, bottom, score, class; rows of class -1 are empty.
        boxes: (n, m, 6) left, top, right, bottom, class, crowd; rows of class -1 are empty.

    Raises:
        WorkloadError: a library is missing.
    """
    require_detection()
    found, expected = _found(detections), _expected(boxes)
    whole = _measured(found, expected)
    parts = [
        part
        for fold in range(min(FOLDS, len(found)))
        if (part := _measured(found[fold::FOLDS], expected[fold::FOLDS])[0]) >= 0
    ]
    known = len(parts) > 1
    error = float(np.std(parts, ddof=1)) / math.sqrt(len(parts)) if known else math.nan
    return MeanPrecision(max(0.0, whole[0]), max(0.0, whole[1]), error)


def _found(detections: Tensor) -> list[dict[str, Tensor]]:
    rows = [image[image[:, 5] >= 0] for image in detections.float().cpu()]
    return [
        {"boxes": r[:, :4], "scores": r[:, 4], "labels": r[:, 5].long()} for r in rows
    ]  # fmt: skip


def _expected(boxes: Tensor) -> list[dict[str, Tensor]]:
    rows = [image[image[:, 4] >= 0] for image in boxes.float().cpu()]
    return [
        {"boxes": r[:, :4], "labels": r[:, 4].long(), "iscrowd": r[:, 5].long()} for r in rows
    ]  # fmt: skip


def _measured(
    found: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]
) -> tuple[float, float]:
    """`map50` and `map`; -1 where there are no boxes."""
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")
        from torchmetrics.detection import MeanAveragePrecision

        # torchmetrics' own are rounded to float32, so that a recall may fall on their other side.
        metric: Any = MeanAveragePrecision(
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0.0, 1.0, 101).tolist(),
            backend="faster_coco_eval",
        )
        metric.update(found, expected)
        result = metric.compute()
    return float(result["map_50"]), float(result["map"])
