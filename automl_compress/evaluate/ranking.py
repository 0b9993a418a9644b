"""How alike two estimates rank the same policies, overall and within bands, with intervals.

Kendall's tau-b and Spearman's rho, written as sums over pairs and over centred ranks, so that
both have a form within bands: only pairs of one band count, and ranks are taken and centred in
each band.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Bands = NDArray[np.int64]

RESAMPLES: Final = 2_000
"""Bootstrap samples of an interval."""
_SEED: Final = 0
_TAILS: Final = (2.5, 97.5)
_FEWEST: Final = 3


@dataclass(frozen=True)
class Correlation:
    """A rank correlation in [-1, 1] with its 95 % interval; NaN where nothing can be ranked.

    Args:
        value: of the sample.
        low: lower end, by bootstrap over policies (Efron 1979, percentiles).
        high: upper end.
    """

    value: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Correlation:
        """What `to_dict` wrote."""
        return cls(float(data["value"]), float(data["low"]), float(data["high"]))


def kendall(one: Array, other: Array, bands: Bands | None = None) -> float:
    """Kendall's tau-b (Kendall 1945): pairs ranked alike less pairs ranked apart, as a share.

    Args:
        one: (n,) estimates, in whatever unit.
        other: (n,) estimates.
        bands: (n,) only pairs with equal numbers count; None counts all.
    """
    return float(kendall_of_samples(one, other, bands, _all_once(one))[0])


def spearman(one: Array, other: Array, bands: Bands | None = None) -> float:
    """Spearman's rho: the correlation of mean ranks, which are taken within each band.

    Args:
        one: (n,) estimates, in whatever unit.
        other: (n,) estimates.
        bands: (n,) numbers of bands; None is one band.
    """
    return float(spearman_of_samples(one, other, bands, _all_once(one))[0])


def kendall_of_samples(one: Array, other: Array, bands: Bands | None, counts: Array) -> Array:
    """`kendall` of many samples of the same policies at once.

    Args:
        one: (n,) estimates, in whatever unit.
        other: (n,) estimates.
        bands: (n,) see `kendall`.
        counts: (s, n) how often each sample holds each policy.

    Returns:
        (s,) NaN where nothing can be ranked.
    """
    first, second = (_signs(values, bands) for values in (one, other))

    def product(a: Array, b: Array) -> Array:
        """(s,) Sum over the pairs of each sample."""
        total: Array = ((counts @ (a * b)) * counts).sum(axis=1)
        return total

    return _cosines(product(first, second), product(first, first), product(second, second))


def spearman_of_samples(one: Array, other: Array, bands: Bands | None, counts: Array) -> Array:
    """`spearman` of many samples; see `kendall_of_samples`."""
    # A value's mean rank counts those below it, and half of its equals; centred, it is half of
    # those below it less those above it.
    first, second = (0.5 * counts @ _signs(values, bands).T for values in (one, other))

    def product(a: Array, b: Array) -> Array:
        """(s,) Sum over the policies of each sample."""
        total: Array = (counts * a * b).sum(axis=1)
        return total

    return _cosines(product(first, second), product(first, first), product(second, second))


def _all_once(values: Array) -> Array:
    return np.ones((1, len(values)))


def _signs(values: Array, bands: Bands | None) -> Array:
    """(n, n) 1 where the row's value is above the column's, -1 below, 0 outside of its band."""
    signs: Array = np.sign(values[:, None] - values[None])
    return signs if bands is None else signs * (bands[:, None] == bands[None])


def _cosines(products: Array, one: Array, other: Array) -> Array:
    """(s,) products over the roots of both squares; NaN where a square is zero."""
    scales = np.sqrt(one * other)
    found = np.full(len(scales), np.nan)
    np.divide(products, scales, out=found, where=scales > 0)
    return found


def correlate(
    measure: Callable[[Array, Array, Bands | None, Array], Array],
    one: Array,
    other: Array,
    bands: Bands | None = None,
) -> Correlation:
    """A correlation with its interval; policies are drawn again, bands with them.

    Args:
        measure: `kendall_of_samples` or `spearman_of_samples`.
        one: (n,) estimates.
        other: (n,) estimates.
        bands: (n,) see `kendall`.
    """
    size = len(one)
    value = float(measure(one, other, bands, _all_once(one))[0])
    if size < _FEWEST or not np.isfinite(value):
        return Correlation(value, float("nan"), float("nan"))
    drawn = np.random.default_rng(_SEED).integers(0, size, (RESAMPLES, size))
    counts = np.stack([np.bincount(rows, minlength=size) for rows in drawn]).astype(np.float64)
    low, high = np.nanpercentile(measure(one, other, bands, counts), _TAILS)
    return Correlation(value, float(low), float(high))
