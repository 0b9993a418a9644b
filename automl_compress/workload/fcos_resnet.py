"""A small anchor-free detector: a residual backbone, a feature pyramid and an FCOS head.

The layout is that of FCOS (Tian et al. 2019) on a feature pyramid (Lin et al. 2017), made for
compression: BatchNorm everywhere, so that channels can be judged, cut and repaired; heads that
share no weights between the grids, because shared BatchNorm would see several distributions; and
one tensor of raw outputs, see `detection`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from automl_compress.workload.detection import EXTRA

WIDTHS: Final = (16, 32, 64, 128, 128)
"""Channels of the backbone at strides 2, 4, 8, 16 and 32."""
BLOCKS: Final = (1, 2, 2, 1)
"""Residual blocks at strides 4, 8, 16 and 32."""
NECK: Final = 64
"""Channels of the pyramid and of the heads."""
_PRIOR: Final = 0.01
"""Probability of every class before training (Lin et al. 2017, focal loss, section 4.1)."""


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    """A convolution, BatchNorm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them (He et al. 2016).

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        stride: of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h/stride, w/stride)."""
        inner = self.relu1(self.bn1(self.conv1(x)))
        result: Tensor = self.relu2(self.bn2(self.conv2(inner)) + self.shortcut(x))
        return result


class FcosResNet(nn.Module):
    """The detector; images must be multiples of 32 pixels high and wide.

    Args:
        num_classes: classes of boxes.
        widths: channels at strides 2, 4, 8, 16 and 32.
        blocks: residual blocks at strides 4, 8, 16 and 32.
        neck: channels of the pyramid and of the heads.

    Attributes:
        strides: of the three grids of outputs.
    """

    strides: tuple[int, ...] = (8, 16, 32)

    def __init__(
        self,
        num_classes: int = 10,
        widths: Sequence[int] = WIDTHS,
        blocks: Sequence[int] = BLOCKS,
        neck: int = NECK,
    ) -> None:
        super().__init__()
        self.stem = convolution(3, widths[0], 3, 2)
        sizes = list(zip(widths, widths[1:], blocks, strict=False))
        self.stage4, self.stage8, self.stage16, self.stage32 = (_stage(*size) for size in sizes)
        self.lateral8, self.lateral16, self.lateral32 = (
            convolution(width, neck, 1) for width in widths[2:]
        )
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.head8, self.head16, self.head32 = (_head(neck, num_classes) for _ in self.strides)

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (n, num_classes + 5, places) of images (n, 3, h, w), see `detection`."""
        fine = self.stage8(self.stage4(self.stem(x)))
        middle = self.stage16(fine)
        top = self.lateral32(self.stage32(middle))
        middle = self.lateral16(middle) + self.upsample(top)
        fine = self.lateral8(fine) + self.upsample(middle)
        raw = (self.head8(fine), self.head16(middle), self.head32(top))
        return torch.cat([torch.flatten(grid, 2) for grid in raw], 2)


def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    first = Block(inputs, outputs, 2)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _head(channels: int, num_classes: int) -> nn.Sequential:
    predict = nn.Conv2d(channels, num_classes + EXTRA, 1)
    nn.init.normal_(predict.weight, std=0.01)
    assert predict.bias is not None
    nn.init.zeros_(predict.bias)
    nn.init.constant_(predict.bias[:num_classes], -math.log((1 - _PRIOR) / _PRIOR))
    tower = [convolution(channels, channels) for _ in range(2)]
    return nn.Sequential(*tower, predict)
