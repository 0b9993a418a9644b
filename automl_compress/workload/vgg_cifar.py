"""VGG for 32x32 images (Simonyan & Zisserman 2015), with BatchNorm and a single linear layer.

The convolutions are those of the paper's configurations D and E; its three wide linear layers
give way to one, as usual on CIFAR (Liu et al. 2017, network slimming). State-dict names are
`features.{i}` and `classifier`.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import torch
from torch import nn

STAGES: Final = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions in each stage, by the number of layers in the paper."""
WIDTHS: Final = (64, 128, 256, 512, 512)
"""Channels of the five stages."""


class CifarVgg(nn.Module):
    """Five stages of 3x3 convolutions with BatchNorm, each halving the resolution at its end.

    Args:
        layers: 16 or 19.
        num_classes: number of outputs.
    """

    def __init__(self, layers: int, num_classes: int = 10) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        channels = 3
        for width, count in zip(WIDTHS, STAGES[layers], strict=True):
            for _ in range(count):
                parts += [nn.Conv2d(channels, width, 3, padding=1, bias=False)]
                parts += [nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            parts += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*parts)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # torch's default stalls at this depth
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, 3, h, w), h and w at least 32."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


vgg16_bn = partial(CifarVgg, 16)
vgg19_bn = partial(CifarVgg, 19)
