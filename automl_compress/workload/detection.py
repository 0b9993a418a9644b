"""Detection by anchor-free heads: from raw outputs to boxes (FCOS; Tian et al. 2019).

A detector maps images (n, c, h, w) to raw outputs (n, classes + 5, places), one tensor, so that
whatever handles classifiers handles it too. Places are the cells of one or more grids, row by row,
grid after grid, in the order of the detector's `strides`. The channels of a place are

- a logit for every class;
- the distances to the box's left, top, right and bottom edge, as logarithms, in strides;
- a logit that says how near the place is to the box's centre.

Turning them into boxes is not the network's work but done here; what is done with the boxes stands
in `box_task`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.errors import WorkloadError
from automl_compress.workload.box_task import BoxTask, Suppression
from automl_compress.workload.detection_loss import detector_distance, detector_loss
from automl_compress.workload.mean_precision import require_detection
from automl_compress.workload.placement import sent
from automl_compress.workload.task import check_finite_output, shown_output

EXTRA: Final = 5
"""Channels of a place beside the classes."""
KEPT: Final = Suppression(least_score=0.05, overlap=0.6)
"""As is usual for FCOS."""
_LARGEST: Final = 8.0
"""Logarithm of a distance is at most this, so that no box is infinite."""


@dataclass(frozen=True)
class Detection(BoxTask):
    """Boxes of an anchor-free head.

    Attributes:
        classes: how many there are.
        image_shape: (h, w) of the network's input.
        strides: pixels between the places of each grid, from fine to coarse.
    """

    strides: tuple[int, ...]

    @property
    def suppression(self) -> Suppression:
        """See `BoxTask.suppression`."""
        return KEPT

    @cached_property
    def places(self) -> Tensor:
        """(places, 3) x and y of each place's centre in pixels, and the stride of its grid."""
        found = []
        with torch.inference_mode(False):  # whoever asks first, trainings may come later
            for stride in self.strides:
                rows, columns = (-(-side // stride) for side in self.image_shape)
                y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
                centres = (torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride
                found.append(torch.cat([centres, torch.full((len(centres), 1), float(stride))], 1))
            return torch.cat(found)

    def check_output(self, model: str, output: Any, classes: int) -> None:
        """See `Task.check_output`."""
        require_detection()
        assert classes == self.classes
        shape = (1, self.classes + EXTRA, len(self.places))
        if not isinstance(output, Tensor) or output.ndim != 3:
            raise WorkloadError(
                f"model '{model}' must return raw outputs (n, {shape[1]}, {shape[2]}) of an "
                f"anchor-free head for n images with boxes of {self.classes} classes, but for one "
                f"image returned {shown_output(output)}; see workload.detection"
            )
        if output.shape[1] != shape[1]:
            raise WorkloadError(
                f"model '{model}' must have one output a class and {EXTRA} more at each place, "
                f"but has {output.shape[1]} for {self.classes} classes; correct model_args or the "
                f"data"
            )
        if tuple(output.shape) != shape:
            raise WorkloadError(
                f"model '{model}' must return outputs for {shape[2]} places, those of strides "
                f"{_listed(self.strides)} on images of {_listed(self.image_shape)}, but returned "
                f"{tuple(output.shape)}; correct its strides or data.image_size"
            )
        check_finite_output(model, output, "outputs")

    def loss(self, outputs: Tensor, boxes: Tensor) -> Tensor:
        """See `detector_loss`."""
        return detector_loss(self, outputs, boxes)

    def distance(self, outputs: Tensor, target: Tensor) -> Tensor:
        """See `detector_distance`."""
        return detector_distance(self, outputs.float(), target.float())

    def decoded(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and scores at all places.

        Args:
            outputs: (n, classes + 5, places).

        Returns:
            (n, places, 4) left, top, right, bottom in pixels, inside the image; and
            (n, classes, places) scores: the root of the probabilities of class and centre.
        """
        logits, distances, centre = self.parts(outputs)
        boxes = self.boxes(distances)
        scores = (logits.sigmoid() * centre.sigmoid()[:, None]).sqrt()
        return self.inside(boxes), scores

    def parts(self, outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the channels of raw outputs say.

        Args:
            outputs: (n, classes + 5, places).

        Returns:
            (n, classes, places) logits of the classes; (n, 4, places) distances to the left,
            top, right and bottom edge in pixels; (n, places) logits of the centre.
        """
        strides = sent(self.places[:, 2], outputs.device).to(outputs.dtype)
        distances = outputs[:, self.classes : self.classes + 4].clamp(max=_LARGEST).exp()
        return outputs[:, : self.classes], distances * strides, outputs[:, -1]

    def boxes(self, distances: Tensor) -> Tensor:
        """(n, places, 4) left, top, right, bottom from (n, 4, places) distances, in pixels."""
        x, y, _ = sent(self.places, distances.device).to(distances.dtype).unbind(1)
        left, top, right, bottom = distances.unbind(1)
        return torch.stack([x - left, y - top, x + right, y + bottom], -1)


def strides_of(model: nn.Module, name: str) -> tuple[int, ...]:
    """The strides a detector's grids have, which its attribute `strides` states.

    Raises:
        WorkloadError: it states none.
    """
    strides = getattr(model, "strides", None)
    whole = isinstance(strides, tuple | list) and all(isinstance(s, int) and s > 0 for s in strides)
    if not strides or not whole:
        raise WorkloadError(
            f"a network for images with boxes must have an attribute 'strides' and return raw "
            f"outputs of an anchor-free head, but model '{name}' has none; use 'fcos_resnet', an "
            f"SSD, RetinaNet or FCOS of torchvision, or see workload.detection"
        )
    return tuple(strides)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
