"""Hypervolume a candidate would add, where its costs are known and only its error is not.

With exact costs, the improvement is a sum over cells of the cost space: the cell's volume that
the candidate reaches times how far its error is below the least one known at those costs. So
the expectation over an uncertain error needs no integral over costs (compare Emmerich et al.
2006, expected hypervolume improvement, where all objectives are uncertain).
"""

from __future__ import annotations

import functools
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
        limit: the error that a candidate has to be below.
    """

    def __init__(self, costs: Array, errors: Array, limit: float) -> None:
        self.costs, self.errors, self.limit = costs, errors, limit
        values = np.column_stack([errors, costs])
        kept = front_mask(values) & (errors < limit) & (costs < 1.0).all(axis=1)
        costs, errors = costs[kept], errors[kept]
        self._axes = [_axis(column, costs.shape[1]) for column in costs.T]
        corners = np.meshgrid(*(axis[:-1] for axis in self._axes), indexing="ij")
        cells = np.stack([corner.ravel() for corner in corners], axis=1)
        covered = (costs[None] <= cells[:, None]).all(axis=2)
        self._least = np.where(covered, errors, limit).min(axis=1, initial=limit)

    def gains(self, costs: Array, errors: Array) -> Array:
        """(m, ...) hypervolume each candidate would add, in error times shares.

        Args:
            costs: (m, n_costs) shares.
            errors: (m, ...) possible errors of each.
        """
        reached = [
            np.maximum(0.0, axis[1:] - np.maximum(axis[:-1], column[:, None]))
            for axis, column in zip(self._axes, costs.T, strict=True)
        ]
        volumes = functools.reduce(
            lambda one, other: (one[:, :, None] * other[:, None]).reshape(len(one), -1), reached
        )
        flat = errors.reshape(len(errors), -1)
        gains = [
            (volumes * np.maximum(0.0, self._least - column[:, None])).sum(axis=1)
            for column in flat.T
        ]
        return np.stack(gains, axis=1).reshape(errors.shape)

    def joined(self, costs: Array, error: float) -> CostCells:
        """The cells with one more point known, or believed."""
        return CostCells(
            np.vstack([self.costs, costs[None]]), np.append(self.errors, error), self.limit
        )


def _axis(column: Array, axes: int) -> Array:
    """Edges of the cells along one cost, from 0 to 1."""
    edges = np.unique(np.concatenate([[0.0, 1.0], column]))
    most = max(3, int(_CELLS ** (1.0 / axes)))
    if len(edges) > most:
        edges = edges[np.unique(np.linspace(0, len(edges) - 1, most).round().astype(int))]
    return edges
