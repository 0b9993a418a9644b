"""DenseNet for 32x32 images (Huang et al. 2017, section 3), without bottlenecks.

Every layer reads the concatenation of all before it in its block; `densenet40` has 40 layers and
a growth of 12 channels.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import nn

FIRST: Final = 16
"""Channels of the first convolution."""


class DenseLayer(nn.Module):
    """BatchNorm, ReLU and a 3x3 convolution, whose output is put behind the input.

    Args:
        channels: channels of the input.
        growth: channels it adds.
    """

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, channels, h, w) to (n, channels + growth, h, w)."""
        return torch.cat([x, self.conv(self.relu(self.norm(x)))], 1)


class Transition(nn.Module):
    """BatchNorm, ReLU, a 1x1 convolution and a pooling that halves the resolution.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, channels, h, w) to (n, channels, h/2, w/2)."""
        result: torch.Tensor = self.pool(self.conv(self.relu(self.norm(x))))
        return result


class CifarDenseNet(nn.Module):
    """Three dense blocks between a first convolution and a linear layer.

    Args:
        layers: layers with weights on the way through, `3 * n + 4`.
        growth: channels every layer adds.
        num_classes: number of outputs.
    """

    def __init__(self, layers: int, growth: int, num_classes: int = 10) -> None:
        super().__init__()
        count = (layers - 4) // 3
        channels = FIRST
        parts: list[nn.Module] = [nn.Conv2d(3, FIRST, 3, padding=1, bias=False)]
        for block in range(3):
            for _ in range(count):
                parts.append(DenseLayer(channels, growth))
                channels += growth
            if block < 2:
                parts.append(Transition(channels))
        self.features = nn.Sequential(*parts)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, 3, h, w)."""
        x = self.relu(self.norm(self.features(x)))
        logits: torch.Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


densenet40 = partial(CifarDenseNet, 40, 12)
