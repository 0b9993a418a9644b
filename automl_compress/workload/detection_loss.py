"""What training a detector minimises: FCOS's loss of boxes, and the distance to a teacher.

The loss is that of Tian et al. 2019 (FCOS) with center sampling: every place inside a box, near its
centre and on the grid that fits its size learns that box; of several boxes the smallest. Classes
have the focal loss (Lin et al. 2017), edges the generalised overlap (GIoU; Rezatofighi et al.
2019), weighted by how central the place is, and that centrality has its cross-entropy.

Deviations: grids part the boxes by distances of 4 strides, not 8, for images of 200 to 300 pixels;
edges are logarithms without a learned scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from automl_compress.workload.placement import sent

if TYPE_CHECKING:
    from automl_compress.workload.detection import Detection

RADIUS: Final = 1.5
"""Strides from a box's centre within which places learn it (Tian et al. 2019, center sampling)."""
REACH: Final = 4.0
"""Strides that the farthest edge of a box may be away, where a coarser grid could take it."""
ALPHA: Final = 0.25
GAMMA: Final = 2.0
"""Of the focal loss (Lin et al. 2017, section 4)."""
_TINY: Final = 1e-6


@dataclass(frozen=True)
class Targets:
    """What every place should say.

    Args:
        classes: (n, classes, places) 1 where a box of the class is learnt.
        edges: (n, 4, places) distances to its left, top, right and bottom edge, in pixels.
        centrality: (n, places) how central the place is in its box, in [0, 1]; 0 without a box.
        counted: (n, places) False inside crowds, where nothing is right or wrong.
    """

    classes: Tensor
    edges: Tensor
    centrality: Tensor
    counted: Tensor

    @property
    def taken(self) -> Tensor:
        """(n, places) whether there is a box to learn."""
        return self.classes.amax(1) > 0


def targets_of(task: Detection, boxes: Tensor) -> Targets:
    """Which place learns which box.

    Args:
        task: its classes and grids.
        boxes: (n, m, 6), see `workload.boxes`.
    """
    places = sent(task.places, boxes.device)
    x, y, stride = places.unbind(1)
    left, top, right, bottom, kind, crowd = (part[..., None] for part in boxes.unbind(-1))
    edges = torch.stack([x - left, y - top, right - x, bottom - y], 2)  # (n, m, 4, places)
    inside = (edges.amin(2) > 0) & (kind >= 0)
    centre = torch.stack([x - (left + right) / 2, y - (top + bottom) / 2]).abs().amax(0)
    low, high = _reaches(task, stride)
    farthest = edges.amax(2)
    fits = inside & (crowd == 0) & (centre < RADIUS * stride)
    fits &= (farthest > low) & (farthest <= high)
    area = ((right - left) * (bottom - top)).expand_as(fits)
    chosen = torch.where(fits, area, torch.inf).argmin(1, keepdim=True)  # (n, 1, places)
    taken = fits.any(1)
    index = kind.expand_as(fits).gather(1, chosen)[:, 0].long().clamp(min=0)
    classes = F.one_hot(index, task.classes).permute(0, 2, 1) * taken[:, None]
    its_edges = edges.gather(1, chosen[:, :, None].expand(-1, -1, 4, -1))[:, 0]
    its_edges = torch.where(taken[:, None], its_edges, torch.ones_like(its_edges))
    ratios = [
        torch.minimum(*pair) / torch.maximum(*pair)
        for pair in (its_edges[:, 0::2].unbind(1), its_edges[:, 1::2].unbind(1))
    ]
    centrality = (ratios[0] * ratios[1]).clamp(min=0).sqrt() * taken
    counted = taken | ~(inside & (crowd > 0)).any(1)
    return Targets(classes.to(boxes.dtype), its_edges, centrality, counted)


def _reaches(task: Detection, stride: Tensor) -> tuple[Tensor, Tensor]:
    """(places,) least and largest distance of the farthest edge that a place takes."""
    low, high = torch.zeros_like(stride), torch.full_like(stride, torch.inf)
    for finer, coarser in zip(task.strides, task.strides[1:], strict=False):
        high = torch.where(stride == finer, REACH * finer, high)
        low = torch.where(stride == coarser, REACH * finer, low)
    return low, high


def detector_loss(task: Detection, outputs: Tensor, boxes: Tensor) -> Tensor:
    """FCOS's loss: the sum of its three parts, each a mean over the places with a box.

    Args:
        task: its classes and grids.
        outputs: (n, classes + 5, places) raw, float32.
        boxes: (n, m, 6), see `workload.boxes`.
    """
    wanted = targets_of(task, boxes)
    logits, edges, centre = task.parts(outputs)
    number = wanted.taken.sum().clamp(min=1)
    focal = focal_loss(logits, wanted.classes) * wanted.counted[:, None]
    overlap = 1 - generalised_overlap(edges, wanted.edges)
    weight = wanted.centrality
    return (
        focal.sum() / number
        + (overlap * weight).sum() / weight.sum().clamp(min=_TINY)
        + (entropy(centre, weight) * wanted.taken).sum() / number
    )


def detector_distance(task: Detection, outputs: Tensor, target: Tensor) -> Tensor:
    """How far a student's raw outputs are from a teacher's, where the teacher sees something.

    Classes have a cross-entropy with the teacher's probabilities, weighted by the squared
    difference (Li et al. 2020, quality focal loss, eq. 3); edges the generalised overlap with the
    teacher's box, and centrality its cross-entropy, both weighted by the teacher's score.

    Args:
        task: its classes and grids.
        outputs: (n, classes + 5, places) of the student, float32.
        target: (n, classes + 5, places) of the teacher.
    """
    logits, edges, centre = task.parts(outputs)
    its_logits, its_edges, its_centre = task.parts(target)
    wanted, central = its_logits.sigmoid(), its_centre.sigmoid()
    weight = wanted.amax(1) * central
    number = weight.sum().clamp(min=1.0)
    of_classes = quality_focal(logits, wanted)
    overlap = 1 - generalised_overlap(edges, its_edges)
    return (
        of_classes.sum() / number + ((overlap + entropy(centre, central)) * weight).sum() / number
    )


def focal_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of every logit, of any shape (Lin et al. 2017, eq. 5)."""
    probability = logits.sigmoid()
    right = torch.lerp(1 - probability, probability, wanted)
    balance = torch.lerp(torch.full_like(wanted, 1 - ALPHA), torch.full_like(wanted, ALPHA), wanted)
    return balance * (1 - right) ** GAMMA * entropy(logits, wanted)


def quality_focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of every logit against a probability, of any shape (Li et al. 2020, eq. 3)."""
    return (logits.sigmoid() - wanted).square() * entropy(logits, wanted)


def exclusive_focal(logits: Tensor, wanted: Tensor) -> Tensor:
    """The same of classes that exclude one another.

    Args:
        logits: (n, kinds, places).
        wanted: (n, kinds, places) probabilities, 1 in sum over the kinds.

    Returns:
        (n, places).
    """
    off = (logits.softmax(1) - wanted).square().sum(1)
    return off * -(wanted * logits.log_softmax(1)).sum(1)


def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy of every logit against a probability, of any shape."""
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")


def generalised_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Generalised overlap (GIoU) of boxes around the same places, in [-1, 1].

    Args:
        one: (n, 4, places) distances to the left, top, right and bottom edge, above 0.
        other: (n, 4, places).
    """

    def area(edges: Tensor) -> Tensor:
        return (edges[:, 0] + edges[:, 2]) * (edges[:, 1] + edges[:, 3])

    both = area(torch.minimum(one, other))
    union = area(one) + area(other) - both
    around = area(torch.maximum(one, other)).clamp(min=_TINY)
    return both / union.clamp(min=_TINY) - (around - union) / around
