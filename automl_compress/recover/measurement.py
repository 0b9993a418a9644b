"""How good a network is on labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import nn

from automl_compress.workload import ImageSet, Normalization

_BATCH: Final = 256


@dataclass(frozen=True)
class Measurement:
    """A network on images.

    Args:
        accuracy: share of right answers, in [0, 1].
        loss: mean cross-entropy, in nats.
    """

    accuracy: float
    loss: float


def measure(
    network: nn.Module, images: ImageSet, normalization: Normalization, device: torch.device
) -> Measurement:
    """Measure a network in float32; it must be on `device`, and is left in evaluation mode."""
    network.eval()
    right = torch.zeros((), dtype=torch.long, device=device)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    with torch.inference_mode():
        for start in range(0, len(images), _BATCH):
            inputs = images.tensor(normalization, start, start + _BATCH).to(
                device, memory_format=torch.channels_last
            )
            labels = torch.from_numpy(images.labels[start : start + _BATCH]).to(device)
            outputs = network(inputs)
            right += (outputs.argmax(1) == labels).sum()
            loss += F.cross_entropy(outputs, labels, reduction="sum")
    return Measurement(int(right) / len(images), float(loss) / len(images))
