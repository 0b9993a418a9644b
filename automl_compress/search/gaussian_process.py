"""Gaussian process regression (Rasmussen and Williams 2006, algorithm 2.1).

The kernel is a sum of two squared-exponential ones, over the genes and over the costs: what a
gene does by itself, and what networks of one size have in common. Length scales and noise are
those of largest marginal likelihood among a few; the scale of the values has its closed form.
"""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LENGTHS: Final = (0.25, 0.5, 1.0, 2.0)
"""Length scales tried, in root mean square distances over a block's columns."""
NOISES: Final = (1e-3, 1e-2, 1e-1)
"""Shares of noise in the variance tried."""
MOST: Final = 250
"""Rows that length scales are chosen on: the latest."""


class GaussianProcess:
    """Posterior of a function given its values.

    Args:
        blocks: column blocks of the inputs, (n, n_columns) each, in [0, 1] or so; a kernel each.
        values: (n,) values.
    """

    def __init__(self, blocks: tuple[Array, ...], values: Array) -> None:
        self._blocks = blocks
        self._mean = float(values.mean())
        centred = values - self._mean
        latest = slice(-MOST, None)
        distances = [_distances(block[latest], block[latest]) for block in blocks]
        choices = itertools.product(itertools.product(LENGTHS, repeat=len(blocks)), NOISES)
        _, self._lengths, noise = max(
            (_likelihood(_kernel(distances, lengths), noise, centred[latest]), lengths, noise)
            for lengths, noise in choices
        )
        kernel = _kernel([_distances(block, block) for block in blocks], self._lengths)
        self._root = np.linalg.cholesky(kernel + noise * np.eye(len(values)))
        half = np.linalg.solve(self._root, centred)
        self._weights = np.linalg.solve(self._root.T, half)
        self._variance = float(half @ half) / len(values)
        self.noise = noise * self._variance
        """Variance of measured values around the noiseless function."""

    def predict(self, blocks: tuple[Array, ...]) -> tuple[Array, Array]:
        """Mean and standard deviation of the noiseless function.

        Args:
            blocks: (m, n_columns) each.

        Returns:
            (m,) and (m,).
        """
        distances = [_distances(new, old) for new, old in zip(blocks, self._blocks, strict=True)]
        cross = _kernel(distances, self._lengths)
        explained = np.linalg.solve(self._root, cross.T)
        left = np.maximum(1e-12, 1.0 - (explained**2).sum(axis=0))
        return self._mean + cross @ self._weights, np.sqrt(self._variance * left)


def _distances(one: Array, other: Array) -> Array:
    """(n, m) mean squared distances."""
    squares = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)
    distances: Array = np.maximum(0.0, squares - 2.0 * one @ other.T) / one.shape[1]
    return distances


def _kernel(distances: list[Array], lengths: tuple[float, ...]) -> Array:
    parts = [np.exp(-0.5 * d / s**2) for d, s in zip(distances, lengths, strict=True)]
    kernel: Array = np.mean(parts, axis=0)
    return kernel


def _likelihood(kernel: Array, noise: float, values: Array) -> float:
    """Log marginal likelihood at the best scale, up to a constant (equation 2.30)."""
    root = np.linalg.cholesky(kernel + noise * np.eye(len(values)))
    half = np.linalg.solve(root, values)
    variance = max(float(half @ half) / len(values), 1e-12)
    return float(-0.5 * len(values) * np.log(variance) - np.log(np.diag(root)).sum())
