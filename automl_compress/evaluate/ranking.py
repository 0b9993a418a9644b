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
    signs = [np.sign(values[:, None] - values[None]) for values in (one, other)]
    if bands is not None:
        same = bands[:, None] == bands[None]
        signs = [sign * same for sign in signs]
    return _share(*signs)


def spearman(one: Array, other: Array, bands: Bands | None = None) -> float:
    """Spearman's rho: the correlation of mean ranks, which are taken within each band.

    Args:
        one: (n,) estimates, in whatever unit.
        other: (n,) estimates.
        bands: (n,) numbers of bands; None is one band.
    """
    groups = np.zeros(len(one), dtype=np.int64) if bands is None else bands
    return _share(*(_centred_ranks(values, groups) for values in (one, other)))


def _share(one: Array, other: Array) -> float:
    """Cosine of two arrays; NaN where one is zero."""
    scale = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / scale) if scale > 0 else float("nan")


def _centred_ranks(values: Array, groups: Bands) -> Array:
    """(n,) mean rank of each value in its group, less the group's mean rank."""
    same = groups[:, None] == groups[None]
    # A value's mean rank counts those below it, and half of its equals.
    centred: Array = 0.5 * (same * np.sign(values[:, None] - values[None])).sum(axis=1)
    return centred


def correlate(
    measure: Callable[[Array, Array, Bands | None], float],
    one: Array,
    other: Array,
    bands: Bands | None = None,
) -> Correlation:
    """A correlation with its interval; policies are drawn again, bands with them.

    Args:
        measure: `kendall` or `spearman`.
        one: (n,) estimates.
        other: (n,) estimates.
        bands: (n,) see `kendall`.
    """
    value = measure(one, other, bands)
    if len(one) < _FEWEST or not np.isfinite(value):
        return Correlation(value, float("nan"), float("nan"))
    rng = np.random.default_rng(_SEED)
    found = []
    for rows in rng.integers(0, len(one), (RESAMPLES, len(one))):
        drawn = None if bands is None else bands[rows]
        found.append(measure(one[rows], other[rows], drawn))
    low, high = np.nanpercentile(found, _TAILS)
    return Correlation(value, float(low), float(high))
