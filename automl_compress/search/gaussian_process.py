"""Gaussian process regression (Rasmussen and Williams 2006, algorithm 2.1).

The kernel is a weighted sum of parts, each on columns of its own. A part is a squared-exponential
kernel over all its columns together (`joint`), or the mean of one per column (`additive`: Duvenaud
et al. 2011, Additive Gaussian processes, order 1), which learns from few values what every column
does by itself. Weights, length scales and noise are those of largest marginal likelihood among a
few, found one after the other; the scale of the values has its closed form.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

Array = NDArray[np.float64]
Kernel = Callable[[Array, Array, float], Array]
"""(n, m) kernel of (n, n_columns) and (m, n_columns) inputs at a length scale; 1 on itself."""

LENGTHS: Final = (0.25, 0.5, 1.0, 2.0)
"""Length scales tried, in root mean square distances over a part's columns."""
NOISES: Final = (1e-4, 1e-3, 1e-2, 1e-1)
"""Shares of noise in the variance tried."""
DOMINANT: Final = 0.8
"""Weight of a part that outweighs the others together."""
FAINT: Final = 0.1
"""Weight of a part that the others outweigh."""
SWEEPS: Final = 2
"""How often every setting is chosen given the others."""
MOST: Final = 250
"""Rows that settings are chosen on: the latest."""
_REST: Final = 1e-3
"""What the expansion of a column's kernel may leave out."""


def joint(one: Array, other: Array, length: float) -> Array:
    """exp(-d / 2 length^2) of the mean squared distance d over the columns."""
    kernel: Array = (one**2).sum(axis=1)[:, None] + (other**2).sum(axis=1)
    # In place: of a thousand rows, each array in between takes as long as the product.
    kernel -= 2.0 * one @ other.T
    np.maximum(0.0, kernel, out=kernel)
    kernel /= one.shape[1]
    kernel *= -0.5
    kernel /= length**2
    return np.exp(kernel, out=kernel)


def additive(one: Array, other: Array, length: float) -> Array:
    """Mean over the columns of each one's squared-exponential kernel; inputs in [0, 1].

    Each is expanded into products of powers (Cotter et al. 2011, Explicit approximations of the
    Gaussian kernel), so that the mean of a hundred kernels is one product of matrices.
    """
    powers = _powers(one, length)
    others = powers if other is one else _powers(other, length)  # by itself: half the products
    kernel: Array = powers @ others.T
    kernel /= one.shape[1]
    return kernel


def _powers(inputs: Array, length: float) -> Array:
    """(n, columns * terms) features whose products add up to the columns' kernels."""
    scaled = (inputs - 0.5) / length
    powers = [np.exp(-0.5 * scaled**2)]
    farthest = 0.25 / length**2  # product of two scaled inputs at the same end
    rest = math.exp(-farthest)
    for term in itertools.count(1):
        rest *= farthest / term
        if rest < _REST:
            return np.hstack(powers)
        powers.append(powers[-1] * scaled / math.sqrt(term))
    raise AssertionError("factorials outgrow powers")


@dataclass(frozen=True)
class Settings:
    """What is chosen of a Gaussian process.

    Args:
        weights: (n_parts,) share of each part in the variance; they add up to 1.
        lengths: (n_parts,) length scale of each.
        noise: variance of the noise as a share of the variance.
    """

    weights: tuple[float, ...]
    lengths: tuple[float, ...]
    noise: float

    def variants(self) -> list[list[Settings]]:
        """For every setting, all that it may be, the others as they are."""
        count = len(self.weights)
        scaled = [
            [
                replace(self, lengths=(*self.lengths[:part], length, *self.lengths[part + 1 :]))
                for length in LENGTHS
            ]
            for part in range(count)
        ]
        mixed = [replace(self, weights=weights) for weights in _mixtures(count)]
        return [mixed, *scaled, [replace(self, noise=noise) for noise in NOISES]]


def _mixtures(count: int) -> list[tuple[float, ...]]:
    """Weights of parts: equal ones, one that outweighs the others, one that is outweighed."""
    uneven = [
        tuple(weight if place == part else (1.0 - weight) / (count - 1) for place in range(count))
        for weight in (DOMINANT, FAINT)
        for part in range(count)
        if count > 1
    ]
    return [(1.0 / count,) * count, *uneven]


class GaussianProcess:
    """Posterior of a function given its values.

    Args:
        kernels: one for every part.
        blocks: (n, n_columns) inputs of every part, in [0, 1] or so.
        values: (n,) values.
        settings: weights, lengths and noise; `likeliest` finds them.
        earlier: a process of the same kernels and settings, whose inputs are the first of these.
            What it costs to learn then grows with the square of n, not the cube.
    """

    def __init__(
        self,
        kernels: Sequence[Kernel],
        blocks: Sequence[Array],
        values: Array,
        settings: Settings,
        earlier: GaussianProcess | None = None,
    ) -> None:
        self._kernels, self._blocks, self._settings = kernels, blocks, settings
        self._mean = float(values.mean())
        centred = values - self._mean
        noise = settings.noise
        self._root: Array = (
            _root(self._kernel(blocks), noise) if earlier is None else self._grown(earlier._root)
        )
        half = _solved(self._root, centred)
        self._weights = _solved(self._root, half, transposed=True)
        self._variance = float(half @ half) / len(values)
        self.noise = noise * self._variance
        """Variance of measured values around the noiseless function."""

    def predict(self, blocks: Sequence[Array]) -> tuple[Array, Array]:
        """Mean and standard deviation of the noiseless function.

        Args:
            blocks: (m, n_columns) each.

        Returns:
            (m,) and (m,).
        """
        cross = self._kernel(blocks)
        explained = _solved(self._root, cross.T)
        left = np.maximum(1e-12, 1.0 - (explained**2).sum(axis=0))
        return self._mean + cross @ self._weights, np.sqrt(self._variance * left)

    def _grown(self, root: Array) -> Array:
        """The root for all inputs, given that for the first."""
        count = len(root)
        cross = self._kernel([block[count:] for block in self._blocks])
        below = _solved(root, cross[:, :count].T).T
        grown = np.zeros((count + len(cross),) * 2)
        grown[:count, :count], grown[count:, :count] = root, below
        grown[count:, count:] = _root(cross[:, count:] - below @ below.T, self._settings.noise)
        return grown

    def _kernel(self, blocks: Sequence[Array]) -> Array:
        """(m, n) kernel of new inputs and the known ones."""
        parts = zip(self._kernels, blocks, self._blocks, self._settings.lengths, strict=True)
        return _mixed(
            self._settings.weights,
            [kernel(new, known, length) for kernel, new, known, length in parts],
        )


def likeliest(
    kernels: Sequence[Kernel], blocks: Sequence[Array], values: Array
) -> tuple[float, Settings]:
    """The settings of largest likelihood: each chosen given the others, again and again.

    Args:
        kernels: one for every part.
        blocks: (n, n_columns) inputs of every part; of many rows, the latest `MOST` decide.
        values: (n,) values.

    Returns:
        Log marginal likelihood per value, up to a constant, and the settings.
    """
    centred = values[-MOST:] - values[-MOST:].mean()
    parts = [
        {length: kernel(block[-MOST:], block[-MOST:], length) for length in LENGTHS}
        for kernel, block in zip(kernels, blocks, strict=True)
    ]

    @functools.cache
    def likelihood(settings: Settings) -> float:
        chosen = [part[length] for part, length in zip(parts, settings.lengths, strict=True)]
        return _likelihood(_mixed(settings.weights, chosen), settings.noise, centred)

    settings = Settings(_mixtures(len(parts))[0], (1.0,) * len(parts), NOISES[-2])
    for _ in range(SWEEPS):
        for place in range(len(parts) + 2):
            settings = max(settings.variants()[place], key=likelihood)
    return likelihood(settings), settings


def _mixed(weights: Sequence[float], kernels: Sequence[Array]) -> Array:
    """Weighted sum."""
    mixed: Array = np.tensordot(weights, np.stack(kernels), axes=1)
    return mixed


def _likelihood(kernel: Array, noise: float, values: Array) -> float:
    """Log marginal likelihood per value at the best scale, but for a constant (equation 2.30)."""
    root = _root(kernel, noise)
    half = _solved(root, values)
    variance = max(float(half @ half) / len(values), 1e-12)
    likelihood = -0.5 * np.log(variance) - np.log(np.diag(root)).mean()
    return round(float(likelihood), 8)  # the last digits depend on the number of threads


def _root(kernel: Array, noise: float) -> Array:
    """Lower triangular root of a kernel with noise."""
    return np.asarray(np.linalg.cholesky(kernel + noise * np.eye(len(kernel))), np.float64)


def _solved(root: Array, right: Array, transposed: bool = False) -> Array:
    """What a lower triangular root, or its transpose, is to be multiplied by for a product."""
    solved: Array = solve_triangular(
        root, right, lower=True, trans=int(transposed), check_finite=False
    )
    return solved
