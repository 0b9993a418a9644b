"""Noise around what an agent wants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Noise:
    """A spread that decays with every episode, but never dies.

    Args:
        first: standard deviation in the first episode, in the unit cube.
        decay: factor per episode.
        floor: least standard deviation.
    """

    first: float
    decay: float
    floor: float

    def spread(self, episodes: int) -> float:
        """Standard deviation after a number of episodes."""
        return max(self.floor, self.first * self.decay**episodes)


def truncated_normal(rng: np.random.Generator, mean: float, spread: float) -> float:
    """A normal draw within [0, 1], by rejection."""
    for _ in range(100):
        value = float(rng.normal(mean, spread))
        if 0.0 <= value <= 1.0:
            return value
    return min(1.0, max(0.0, mean))
