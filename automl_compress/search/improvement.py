"""Hypervolume a candidate would add, where its costs are known and only its error is not.

With exact costs, the improvement is a sum over cells of the cost space: the cell's volume that
the candidate reaches times how far its error is below the least one known at those costs. So
the expectation over an uncertain error needs no integral over costs (compare Emmerich et al.
2006, expected hypervolume improvement, where all objectives are uncertain).

Several boxes may count at once: an error below the limits of two fills both. Their shares are
weighted and added up, so that a tight limit makes what lies below it count more, and not alone.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.pareto import front_mask

Array = NDArray[np.float64]
_CELLS: Final = 2_500
"""Cells at most; fronts of more points are thinned to quantiles of their costs."""


class CostCells:
    """The least known error in each cell of the cost space.

    Args:
        costs: (n, n_costs) of what is known, as shares of the baseline's.
        errors: (n,) its errors.
        boxes: of each, the error that a candidate has to be below, and its weight.
    """

    def __init__(self, costs: Array, errors: Array, boxes: Sequence[tuple[float, float]]) -> None:
        self._boxes = tuple(boxes)
        values = np.column_stack([errors, costs])
        kept = front_mask(values) & self._counts(costs, errors)
        self._axes = [_axis(column, costs.shape[1]) for column in costs[kept].T]
        nothing = float(self._heights(np.array(np.inf)))
        self._least = np.full([len(axis) - 1 for axis in self._axes], nothing)
        for cost, height in zip(costs[kept], self._heights(errors[kept]), strict=True):
            self._cover(cost, float(height))

    def _counts(self, costs: Array, errors: Array) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = (errors < max(self._boxes)[0]) & (costs < 1.0).all(axis=-1)
        return inside

    def _heights(self, errors: Array) -> Array:
        """(...) errors as shares of each limit, at most 1, weighted and added up."""
        parts = [w * np.minimum(errors, limit) / max(limit, 1e-12) for limit, w in self._boxes]
        heights: Array = np.sum(parts, axis=0)
        return heights

    def _cover(self, cost: Array, height: float) -> None:
        """Know an error in the cells that cost at least so much."""
        pairs = zip(self._axes, cost, strict=True)
        covered = tuple(slice(np.searchsorted(axis[:-1], share), None) for axis, share in pairs)
        np.minimum(self._least[covered], height, out=self._least[covered])

    def gains(self, costs: Array, errors: Array) -> Array:
        """(m, ...) hypervolume each candidate would add, as weighted shares of the boxes.

        Args:
            costs: (m, n_costs) shares.
            errors: (m, ...) possible errors of each.
        """
        order = np.argsort(-self._least, axis=None)
        least = self._least.ravel()[order]
        volumes = self._reached(costs)[:, order]
        # The cells whose least height is above a candidate's are the first ones in this order.
        above = np.zeros((2, len(costs), len(least) + 1))
        np.cumsum(volumes * least, axis=1, out=above[0, :, 1:])
        np.cumsum(volumes, axis=1, out=above[1, :, 1:])
        flat = self._heights(errors.reshape(len(errors), -1))
        count = np.searchsorted(-least, -flat)
        rows = np.arange(len(costs))[:, None]
        gains: Array = np.maximum(0.0, above[0, rows, count] - flat * above[1, rows, count])
        return gains.reshape(errors.shape)

    def _reached(self, costs: Array) -> Array:
        """(m, n_cells) volume of each cell that candidates of (m, n_costs) reach."""
        reached = [
            np.maximum(0.0, axis[1:] - np.maximum(axis[:-1], column[:, None]))
            for axis, column in zip(self._axes, costs.T, strict=True)
        ]
        return functools.reduce(
            lambda one, other: (one[:, :, None] * other[:, None]).reshape(len(one), -1), reached
        )

    def joined(self, cost: Array, error: float) -> CostCells:
        """The cells with one more point known, or believed: (n_costs,) shares, and its error."""
        joined = copy.copy(self)
        if not self._counts(cost, np.array(error)):
            return joined
        joined._axes, joined._least = list(self._axes), self._least.copy()
        for number, share in enumerate(cost):
            joined._split(number, float(share))
        joined._cover(cost, float(self._heights(np.array(error))))
        return joined

    def _split(self, number: int, share: float) -> None:
        """Let an axis have an edge at a share in [0, 1)."""
        axis = self._axes[number]
        place = int(np.searchsorted(axis, share))
        if axis[place] != share:
            self._axes[number] = np.insert(axis, place, share)
            below = np.take(self._least, [place - 1], axis=number)
            self._least = np.insert(self._least, [place], below, axis=number)


def _axis(column: Array, axes: int) -> Array:
    """Edges of the cells along one cost, from 0 to 1."""
    edges = np.unique(np.concatenate([[0.0, 1.0], column]))
    most = max(3, int(_CELLS ** (1.0 / axes)))
    if len(edges) > most:
        edges = edges[np.unique(np.linspace(0, len(edges) - 1, most).round().astype(int))]
    return edges
