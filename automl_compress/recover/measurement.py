"""How good a network is on labelled images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from automl_compress.compress.memory_order import in_order, order_for
from automl_compress.recover.losses import labels_loss
from automl_compress.workload import CLASSIFICATION, ImageSet, Normalization, Score, Task

_BATCH: Final = 256
_LEAST: Final = 8
_VALUES: Final = 256 * 3 * 64 * 64
"""Values of a batch, at most, where that leaves a few images."""


@dataclass(frozen=True)
class Measurement:
    """A network on images.

    Args:
        score: of its answers.
        quality: of its answers, in [0, 1]: the accuracy, or what else its task is judged by.
        loss: mean of the labels' loss over the images; of classes, their cross-entropy in nats.
    """

    score: Score
    quality: float
    loss: float


def measure(
    network: nn.Module,
    images: ImageSet,
    normalization: Normalization,
    device: torch.device,
    task: Task = CLASSIFICATION,
) -> Measurement:
    """Measure a network in float32.

    Args:
        network: on `device`; left in evaluation mode.
        images: labelled, one or more.
        normalization: turns their pixels into input.
        device: where the network is.
        task: what it does.

    Raises:
        EstimateError: an output is not finite.
    """
    network.eval()
    criterion = labels_loss(task)
    total = torch.zeros((), dtype=torch.float64, device=device)
    size = max(_LEAST, min(_BATCH, _VALUES // images.images[0].size))
    labels = torch.from_numpy(images.labels)
    order = order_for(network, images.tensor(normalization, 0, 1).to(device))

    def outputs() -> Iterator[Tensor]:
        nonlocal total
        for start in range(0, len(images), size):
            inputs = images.tensor(normalization, start, start + size).to(device)
            found = network(in_order(inputs, order))
            total += criterion(found, labels[start : start + size].to(device)) * len(inputs)
            yield found.cpu()

    with torch.inference_mode():
        score = task.score(outputs(), labels)
    return Measurement(score, score.metrics[task.quality], float(total) / len(images))
