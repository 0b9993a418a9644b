"""Dominance, fronts and hypervolume, thin over moocore. Everything is minimised.

moocore is imported on use: networks can be measured where only PyTorch is installed.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
"""(n_points, n_objectives), minimised; inf in a row means the point is unusable."""


def front_mask(values: Values) -> NDArray[np.bool_]:
    """(n_points,) True for points that no other point dominates.

    Of equal points the first is kept. Points with an infinite or NaN value are never kept.
    """
    mask = np.asarray(np.isfinite(values).all(axis=1))
    if mask.any():
        mask[mask] = _moocore().is_nondominated(values[mask], keep_weakly=False)
    return mask


def _moocore() -> ModuleType:
    import moocore

    module: ModuleType = moocore
    return module


def _hypervolume(scaled: Values) -> float:
    """Hypervolume of points of the unit box against the corner of ones."""
    return float(_moocore().hypervolume(scaled, ref=np.ones(scaled.shape[1])))


@dataclass(frozen=True)
class Reference:
    """A reference point that turns hypervolume into a share of the box between it and 0.

    Args:
        point: (n_objectives,) each above 0; points that do not beat it in every objective
            count nothing.
    """

    point: NDArray[np.float64]

    def share(self, values: Values) -> float:
        """Share in [0, 1] of the box that the points dominate (Zitzler and Thiele 1999)."""
        inside = self._scaled(values)
        if not len(inside):
            return 0.0
        return _hypervolume(inside)

    def progress(self, values: Values) -> NDArray[np.float64]:
        """(n_points,) share after each point, in order."""
        shares = np.zeros(len(values))
        best = 0.0
        front = np.empty((0, len(self.point)))
        for position, row in enumerate(values):
            scaled = self._scaled(row[None])
            if len(scaled) and not (front <= scaled).all(axis=1).any():
                front = np.vstack([front[~(scaled <= front).all(axis=1)], scaled])
                best = _hypervolume(front)
            shares[position] = best
        return shares

    def _inside(self, values: Values) -> NDArray[np.bool_]:
        good = np.isfinite(values) & (values < self.point)
        return np.asarray(good.all(axis=1))

    def _scaled(self, values: Values) -> Values:
        scaled: Values = values[self._inside(values)] / self.point
        return scaled


def spread_subset(values: Values, reference: Reference, count: int) -> NDArray[np.int64]:
    """Indices of at most `count` points of a front that keep most of its hypervolume.

    Points are chosen greedily by what they add (Guerreiro et al. 2016), first the largest.

    Args:
        values: (n_points, n_objectives) mutually non-dominated.
        reference: points outside its box are chosen last, in order.
        count: how many to choose.
    """
    chosen: list[int] = []
    remaining = list(range(len(values)))
    while remaining and len(chosen) < count:
        gains = [reference.share(values[[*chosen, index]]) for index in remaining]
        chosen.append(remaining.pop(int(np.argmax(gains))))
    return np.array(sorted(chosen), dtype=np.int64)
