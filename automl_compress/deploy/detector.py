"""Detectors as ONNX files that give boxes: raw outputs are decoded and suppressed in the graph.

PyTorch's exporter writes the network and the arithmetic of decoding; what it cannot write for any
number of images, non-maximum suppression, is added as ONNX's own operator. The file's one output
`detections` is (k, 7): number of the image in the batch, left, top, right, bottom in pixels of the
input, score and class. What PyTorch gives beside that, `workload.BoxTask.answers`, are the same
rows, of which at most 100 an image are kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.deploy.onnx import OnnxReport, export_onnx
from automl_compress.deploy.runtime import Runner, batches
from automl_compress.workload import BoxTask
from automl_compress.workload.box_task import MOST_DETECTIONS, SURE, Suppression

DETECTIONS: Final = "detections"
"""Name of the output that is (k, 7)."""
CLASSES: Final = "classes"
"""Key of the file's metadata that holds the names of the classes, as JSON."""
SAME_OVERLAP: Final = 0.9
"""Overlap (IoU) with which two detections are the same."""
_BATCH: Final = 8


@dataclass(frozen=True)
class DetectorReport:
    """What an exported detector holds and how it compares with PyTorch.

    Args:
        onnx: of decoded boxes and scores at all places, before suppression.
        agreement: share of PyTorch's detections of score `SURE` or more that the file gives too:
            of the same class and with an overlap of `SAME_OVERLAP`; NaN where there are none.
        detections: how many those are.
    """

    onnx: OnnxReport
    agreement: float
    detections: int


class Decoded(nn.Module):
    """A detector and the decoding of its raw outputs.

    Args:
        network: gives raw outputs.
        task: says what they mean.
    """

    def __init__(self, network: nn.Module, task: BoxTask) -> None:
        super().__init__()
        self.network = network
        self.task = task

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Boxes (n, places, 4) and scores (n, classes, places) of images (n, c, h, w)."""
        boxes, scores = self.task.decoded(self.network(images))
        return {"boxes": boxes, "scores": scores}


def export_detector(
    network: nn.Module,
    task: BoxTask,
    path: Path,
    example_input: Tensor,
    calibration: Tensor | None,
    images: Tensor,
    classes: Sequence[str] = (),
) -> DetectorReport:
    """Write a detector with its post-processing as an ONNX file.

    Args:
        network: gives raw outputs; not changed.
        task: says what they mean.
        path: the file; it appears whole or not at all.
        example_input: (1, c, h, w).
        calibration: see `export_onnx`.
        images: (n, c, h, w) on which file and network are compared.
        classes: their names, which the file's metadata then hold.

    Raises:
        InputError: see `export_onnx`.
    """
    partial = path.with_name(path.name + ".raw")
    try:
        report = export_onnx(
            Decoded(network, task), partial, example_input, calibration, images=images
        )
        content = _suppressed(partial.read_bytes(), classes, task.suppression)
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    with torch.no_grad():
        parts = torch.split(images, _BATCH)
        expected = torch.cat([task.answers(network.eval()(part)) for part in parts])
    found = DetectorFile(path)(images)
    same, count = matched(found, expected)
    agreement = same / count if count else float("nan")
    return DetectorReport(_renamed(report, path, len(content)), agreement, count)


def _renamed(report: OnnxReport, path: Path, size: int) -> OnnxReport:
    bits = {n.removeprefix("network."): b for n, b in report.weight_bits.items()}
    return OnnxReport(**{**vars(report), "path": path, "size_bytes": size, "weight_bits": bits})


class DetectorFile:
    """A detector's ONNX file as a function from images to detections.

    Args:
        path: what `export_detector` wrote.
    """

    def __init__(self, path: Path) -> None:
        self._runner = Runner(path)

    def __call__(self, images: Tensor) -> Tensor:
        """(n, 100, 6) detections on images (n, c, h, w), as `BoxTask.answers` gives them."""
        found = torch.zeros(len(images), MOST_DETECTIONS, 6)
        found[:, :, 5] = -1.0
        start = 0
        for part in batches(np.ascontiguousarray(images.numpy()), _BATCH):
            (rows,) = self._runner(part)
            for image in range(len(part)):
                its = rows[rows[:, 0] == image]
                best = its[np.argsort(-its[:, 5], kind="stable")][:MOST_DETECTIONS, 1:]
                found[start + image, : len(best)] = torch.from_numpy(best)
            start += len(part)
        return found


def gives_detections(path: Path) -> bool:
    """Whether an ONNX file holds its post-processing."""
    return Runner(path).output_names == [DETECTIONS]


def matched(found: Tensor, expected: Tensor) -> tuple[int, int]:
    """How many detections of score `SURE` or more others have too, and how many there are.

    Args:
        found: (n, d, 6), see `BoxTask.answers`.
        expected: (n, d, 6).
    """
    same = count = 0
    for ours, theirs in zip(found, expected, strict=True):
        shown = theirs[(theirs[:, 5] >= 0) & (theirs[:, 4] >= SURE)]
        near = _overlaps(shown, ours) >= SAME_OVERLAP
        near &= shown[:, None, 5] == ours[None, :, 5]
        same += int(near.any(1).sum())
        count += len(shown)
    return same, count


def _overlaps(one: Tensor, other: Tensor) -> Tensor:
    """(a, b) overlap of boxes (IoU)."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:4], other[None, :, 2:4])
    both = (high - low).clamp(min=0).prod(-1)
    areas = [(rows[:, 2:4] - rows[:, :2]).prod(-1) for rows in (one, other)]
    return both / (areas[0][:, None] + areas[1][None] - both).clamp(min=1e-9)


def _suppressed(content: bytes, classes: Sequence[str], suppression: Suppression) -> bytes:
    """A file of boxes and scores, with non-maximum suppression behind them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load_model_from_string(content)
    graph = model.graph
    constants: dict[str, NDArray[Any]] = {
        "nms_most": np.array([MOST_DETECTIONS], np.int64),
        "nms_overlap": np.array([suppression.overlap], np.float32),
        "nms_score": np.array([suppression.least_score], np.float32),
        "nms_image": np.array([0], np.int64),
        "nms_class": np.array([1], np.int64),
        "nms_place": np.array([0, 2], np.int64),
        "nms_column": np.array([1], np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())

    def node(kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        graph.node.append(helper.make_node(kind, list(inputs), [output], output, **attributes))

    limits = ("nms_most", "nms_overlap", "nms_score")
    node("NonMaxSuppression", ("boxes", "scores", *limits), "nms_kept")  # (k, 3)
    for column in ("image", "class"):
        node("Gather", ("nms_kept", f"nms_{column}"), f"nms_{column}_kept", axis=1)
        node("Cast", (f"nms_{column}_kept",), f"nms_{column}_number", to=TensorProto.FLOAT)
    node("Gather", ("nms_kept", "nms_place"), "nms_places", axis=1)
    node("GatherND", ("boxes", "nms_places"), "nms_boxes")
    node("GatherND", ("scores", "nms_kept"), "nms_scores")
    node("Unsqueeze", ("nms_scores", "nms_column"), "nms_score_column")
    columns = ("nms_image_number", "nms_boxes", "nms_score_column", "nms_class_number")
    node("Concat", columns, DETECTIONS, axis=1)
    del graph.output[:]
    graph.output.append(
        helper.make_tensor_value_info(DETECTIONS, TensorProto.FLOAT, ("detections", 7))
    )
    if classes:
        model.metadata_props.add(key=CLASSES, value=json.dumps(list(classes)))
    onnx.checker.check_model(model, full_check=True)
    result: bytes = model.SerializeToString()
    return result
