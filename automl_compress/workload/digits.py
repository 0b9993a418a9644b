"""Handwritten digits of 8x8 pixels and a network for them: a workload that needs no download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from automl_compress.workload.images import ImageSet
from automl_compress.workload.sources import TrainTest

WIDTHS: Final = (24, 40)
"""Channels before and after the network halves its resolution."""


@dataclass(frozen=True)
class DigitsSource:
    """scikit-learn's handwritten digits: 1797 grey images of 8x8 pixels (Alpaydin 1998).

    Half of them, picked by the seed, are for training; the other half is for test.
    """

    def load(self, seed: int) -> TrainTest:
        """Both halves, in memory; pixels 0..16 are scaled to `round(x * 255 / 16)`."""
        digits = _table()
        pixels = np.rint(digits[:, :-1].reshape(-1, 1, 8, 8) * 255 / 16).astype(np.uint8)
        every = ImageSet.of(pixels, digits[:, -1].astype(np.int64))
        order = np.random.default_rng(seed).permutation(len(every))
        middle = len(every) // 2
        train, test = every.take(np.sort(order[:middle])), every.take(np.sort(order[middle:]))
        return TrainTest(train, test, tuple(str(digit) for digit in range(10)))


def _table() -> NDArray[np.float64]:
    """(1797, 65): 64 pixels and the digit in every row.

    scikit-learn's file is read as `load_digits` reads it, for importing it loads SciPy and pandas,
    three seconds a process; where the file is elsewhere, scikit-learn itself is asked.
    """
    found = find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


class Residual(nn.Module):
    """Two 3x3 convolutions that add to their input.

    Args:
        channels: channels of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, channels, h, w) to the same shape."""
        inner = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        result: torch.Tensor = self.relu2(inner + x)
        return result


class DigitsCNN(nn.Module):
    """Six convolutions, two of the sums couple their channels, one linear layer.

    Args:
        num_classes: number of outputs.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.relu1 = nn.ReLU()
        self.block1 = Residual(WIDTHS[0])
        self.conv2 = nn.Conv2d(WIDTHS[0], WIDTHS[1], 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTHS[1])
        self.relu2 = nn.ReLU()
        self.block2 = Residual(WIDTHS[1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(WIDTHS[1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (n, num_classes) of images (n, 1, h, w)."""
        x = self.block1(self.relu1(self.bn1(self.conv1(x))))
        x = self.block2(self.relu2(self.bn2(self.conv2(x))))
        logits: torch.Tensor = self.linear(torch.flatten(self.pool(x), 1))
        return logits
