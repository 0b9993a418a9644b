"""Grids of 8-bit activations, and how they are chosen from what is seen of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from automl_compress.compress.quantize import CLIPS

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Grid:
    """The values a uint8 tensor stands for: (integer - zero_point) * scale.

    Args:
        scale: step between two levels.
        zero_point: the integer of 0.0.
        low: smallest integer used.
        high: largest integer used.
    """

    scale: float
    zero_point: int = 0
    low: int = 0
    high: int = 255

    @property
    def largest(self) -> float:
        """The largest value there is."""
        return (self.high - self.zero_point) * self.scale


def choose_grid(low: float, high: float, sample: Floats) -> Grid:
    """The grid of 256 levels with the least squared error.

    Args:
        low: smallest value seen.
        high: largest value seen.
        sample: (n,) some of the values.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        return Grid(1.0)

    def error(grid: Grid) -> float:
        levels = np.clip(np.rint(sample / grid.scale) + grid.zero_point, 0, 255)
        return float(np.square((levels - grid.zero_point) * grid.scale - sample).sum())

    return min((_span(low * clip, high * clip) for clip in CLIPS), key=error)


def _span(low: float, high: float) -> Grid:
    scale = float(np.float32((high - low) / 255))
    return Grid(scale, round(-low / scale))


@dataclass
class Ranges:
    """Ranges and samples of values, gathered batch by batch.

    Args:
        per_batch: values kept of one tensor in one batch.
        seed: decides which.
    """

    per_batch: int = 4096
    seed: int = 0
    _low: dict[str, float] = field(default_factory=dict)
    _high: dict[str, float] = field(default_factory=dict)
    _kept: dict[str, list[Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def add(self, name: str, values: Floats) -> None:
        """Look at one batch of a value (any shape)."""
        flat = values.reshape(-1)
        self._low[name] = min(self._low.get(name, 0.0), float(flat.min()))
        self._high[name] = max(self._high.get(name, 0.0), float(flat.max()))
        chosen = self._rng.integers(0, len(flat), min(self.per_batch, len(flat)))
        self._kept.setdefault(name, []).append(flat[chosen])

    def grids(self) -> dict[str, Grid]:
        """The best grid of every value."""
        return {
            name: choose_grid(self._low[name], self._high[name], np.concatenate(kept))
            for name, kept in self._kept.items()
        }
