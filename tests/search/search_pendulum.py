"""A game of other people, on which learners are proven before they are trusted with networks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Pendulum:
    """Gymnasium's Pendulum-v1: swing a rod up and hold it, for 200 steps.

    Observations are cosine and sine of the angle (0 is up) and the angular speed; the action is a
    torque in [-2, 2].

    Args:
        rng: source of the first angles and speeds.
    """

    steps = 200

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._angle = self._speed = 0.0

    def reset(self) -> Array:
        """The observation at a random start."""
        self._angle = float(self._rng.uniform(-np.pi, np.pi))
        self._speed = float(self._rng.uniform(-1.0, 1.0))
        return self._observation()

    def step(self, torque: float) -> tuple[Array, float]:
        """The next observation, and the reward for this step."""
        torque = min(2.0, max(-2.0, torque))
        angle = (self._angle + np.pi) % (2 * np.pi) - np.pi
        cost = angle**2 + 0.1 * self._speed**2 + 0.001 * torque**2
        speed = self._speed + (15.0 * np.sin(self._angle) + 3.0 * torque) * 0.05
        self._speed = min(8.0, max(-8.0, speed))
        self._angle += self._speed * 0.05
        return self._observation(), -cost

    def _observation(self) -> Array:
        return np.array([np.cos(self._angle), np.sin(self._angle), self._speed])
