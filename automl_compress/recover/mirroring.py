"""Whether mirrored images are still what they were."""

from __future__ import annotations

from typing import Final

import numpy as np
from torch import nn

from automl_compress.recover.measurement import measure
from automl_compress.recover.settings import find_device
from automl_compress.workload import CLASSIFICATION, ImageSet, Normalization, Task

_IMAGES: Final = 512
_KNOWN: Final = 0.9
"""Share of its accuracy that a network keeps on mirrored images which it knows."""


def knows_mirrored(
    network: nn.Module, images: ImageSet, normalization: Normalization, task: Task
) -> bool:
    """Whether a trained network is nearly as often right on mirrored images as on others.

    It is where it was trained on such images, or where things look the same from both sides.
    Digits, letters and signs do not: to train on mirrored ones spoils a network. Boxes are
    mirrored with their images, and detectors taken to know these. Examples that are no images have
    no mirrored ones.

    Args:
        network: on the processor; left in evaluation mode.
        images: labelled; some of them are drawn.
        normalization: turns their pixels into input.
        task: what the network does.

    Raises:
        EstimateError: an output is not finite.
    """
    if not images.are_images:
        return False
    if task.quality != CLASSIFICATION.quality:
        return True
    drawn = images.draw(min(_IMAGES, len(images)), 0)
    mirrored = ImageSet.of(np.ascontiguousarray(drawn.images[..., ::-1]), drawn.labels)
    device = find_device("cpu")
    plain, turned = (
        measure(network, part, normalization, device, task).quality for part in (drawn, mirrored)
    )
    return turned >= _KNOWN * plain
