"""MobileNetV2 for 32x32 images (Sandler et al. 2018): inverted residuals at smaller strides.

The first convolution and the first two stages keep the resolution, so that 4x4 pixels remain
where the paper's 224-pixel network has 7x7.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

STAGES: Final = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, channels, blocks and stride of every stage (Sandler et al. 2018, table 2)."""
FIRST: Final = 32
LAST: Final = 1280


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where the shapes agree.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the depthwise convolution.
        expansion: channels inside, as a multiple of the input's.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.adds = stride == 1 and in_channels == out_channels
        self.expand: nn.Module = nn.Identity()
        if expansion != 1:
            self.expand = _convolution(in_channels, inner, 1)
        self.depthwise = _convolution(inner, inner, 3, stride, inner)
        self.project = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, in, h, w) to (n, out, h/stride, w/stride)."""
        inner: torch.Tensor = self.norm(self.project(self.depthwise(self.expand(x))))
        return x + inner if self.adds else inner


class CifarMobileNetV2(nn.Module):
    """Seventeen inverted residuals between a first and a last convolution.

    Args:
        num_classes: number of outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.first = _convolution(3, FIRST, 3)
        blocks: list[nn.Module] = []
        channels = FIRST
        for expansion, width, count, stride in STAGES:
            for place in range(count):
                step = stride if place == 0 else 1
                blocks.append(InvertedResidual(channels, width, step, expansion))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.last = _convolution(channels, LAST, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(LAST, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, 3, h, w)."""
        x = self.last(self.blocks(self.first(x)))
        logits: torch.Tensor = self.classifier(torch.flatten(self.pool(x), 1))
        return logits


def _convolution(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(),
    )
