"""Detection as a task: what detectors of every kind are asked for, and how good their boxes are.

A detector gives one tensor of raw outputs for n images, so that whatever handles classifiers
handles it too. Turning raw outputs into boxes and scores at all places is each kind's own;
keeping one of several boxes that overlap, and comparing what is kept with the labels, is not.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from automl_compress.workload.mean_precision import mean_precision
from automl_compress.workload.task import Sample, Score, Task, check_finite

MOST_DETECTIONS: Final = 100
"""Detections an image has at most, as COCO counts them."""
SURE: Final = 0.3
"""Detections with at least this score are what a detector decides: what a user would draw."""
MOST_CANDIDATES: Final = 1000
"""Detections of an image that compete, those with the highest scores."""


@dataclass(frozen=True)
class Suppression:
    """Which detections are kept.

    Args:
        least_score: those below it are left out.
        overlap: of two detections of a class that overlap (IoU) by more, the one with the lower
            score goes.
    """

    least_score: float
    overlap: float


@dataclass(frozen=True)
class BoxTask(Task):
    """Boxes and their classes.

    Attributes:
        classes: how many there are.
        image_shape: (h, w) of the network's input.
    """

    classes: int
    image_shape: tuple[int, int]
    name: ClassVar[str] = "detection"
    quality: ClassVar[str] = "map50"

    @property
    @abstractmethod
    def suppression(self) -> Suppression:
        """Which detections are kept."""

    @abstractmethod
    def decoded(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and scores at all places.

        Args:
            outputs: (n, ...) raw, float32.

        Returns:
            (n, places, 4) left, top, right, bottom in pixels, inside the image; and
            (n, classes, places) scores in [0, 1].
        """

    def check_trainable(self) -> None:
        """Check that there is a loss.

        Raises:
            WorkloadError: there is none.
        """

    @abstractmethod
    def loss(self, outputs: Tensor, boxes: Tensor) -> Tensor:
        """The loss of outputs against boxes.

        Args:
            outputs: (n, ...) raw, float32.
            boxes: (n, m, 6), see `workload.boxes`.

        Raises:
            WorkloadError: there is none.
        """

    def own_loss(self, outputs: Tensor) -> Tensor:
        """The loss of boxes against the detections that the outputs are sure of."""
        found = self.answers(outputs)
        sure = (found[..., 5] >= 0) & (found[..., 4] >= SURE)
        kinds = torch.where(sure, found[..., 5], -1.0)
        boxes = torch.cat([found[..., :4], kinds[..., None], torch.zeros_like(kinds)[..., None]], 2)
        return self.loss(outputs.float(), boxes.to(outputs.device))

    def inside(self, boxes: Tensor) -> Tensor:
        """(..., 4) boxes cut at the edges of the image."""
        height, width = self.image_shape
        limits = boxes.new_tensor([width, height, width, height], dtype=boxes.dtype)
        return torch.minimum(boxes.clamp(min=0.0), limits)

    def answers(self, outputs: Tensor) -> Tensor:
        """Detections on images.

        Args:
            outputs: (n, ...) raw.

        Returns:
            (n, 100, 6) left, top, right, bottom, score, class, best first; rows that are left
            over have class -1. On the processor.
        """
        boxes, scores = self.decoded(outputs.detach().float().cpu())
        found = torch.zeros(len(boxes), MOST_DETECTIONS, 6)
        found[:, :, 5] = -1.0
        for image, (its_boxes, its_scores) in enumerate(zip(boxes, scores, strict=True)):
            kept = _kept(its_boxes, its_scores, self.suppression)
            found[image, : len(kept)] = kept
        return found

    def scores(
        self,
        outputs: Iterable[Tensor],
        labels: Tensor,
        sample: Sample | None = None,  # noqa: ARG002
    ) -> Iterator[Score]:
        """Mean average precision on all images, which count alike; not known before the end."""
        found = []
        for raw in outputs:
            check_finite(raw)
            found.append(self.answers(raw))
        yield self.score_answers(torch.cat(found), labels)

    def score_answers(self, answers: Tensor, labels: Tensor) -> Score:
        """The score of (n, d, 6) detections, see `mean_precision`."""
        precision = mean_precision(answers, labels)
        error = {} if math.isnan(precision.error) else {f"{self.quality}_se": precision.error}
        return Score({self.quality: precision.map50, **error}, len(labels), {"map": precision.map})


def _kept(boxes: Tensor, scores: Tensor, suppression: Suppression) -> Tensor:
    """(k, 6) detections of one image after suppression, best first.

    Args:
        boxes: (places, 4).
        scores: (classes, places).
        suppression: which are kept.
    """
    from torchvision.ops import batched_nms

    best, order = scores.flatten().topk(min(MOST_CANDIDATES, scores.numel()))
    order = order[best >= suppression.least_score]
    kinds, places = order // scores.shape[1], order % scores.shape[1]
    chosen, values = boxes[places], scores.flatten()[order]
    kept = batched_nms(chosen, values, kinds, suppression.overlap)[:MOST_DETECTIONS]
    return torch.cat([chosen[kept], values[kept, None], kinds[kept, None].float()], 1)
