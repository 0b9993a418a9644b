"""Noise around what an agent wants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


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


def truncated_normal(rng: np.random.Generator, means: Array, spreads: Array) -> Array:
    """Normal draws within [0, 1], by rejection, of the shape of (...) means and spreads."""
    drawn = rng.normal(means, spreads)
    for _ in range(100):
        outside = (drawn < 0.0) | (drawn > 1.0)
        if not outside.any():
            break
        drawn[outside] = rng.normal(means, spreads)[outside]
    return np.clip(drawn, 0.0, 1.0)
