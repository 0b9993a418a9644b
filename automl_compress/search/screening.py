"""Which of many candidates to evaluate: a surrogate's expected hypervolume improvement.

Jin 2011, Surrogate-assisted evolutionary computation: a regression over everything told predicts
candidates, and the most promising are evaluated. Only the error is predicted, by a Gaussian
process, for costs are exact and free. What promises most has the largest expected hypervolume
improvement (`improvement`), so that an uncertain candidate is worth a try where a surely poor one
is not. What counts is the error as it will be measured: it scatters around the predicted one by
what the regression takes for noise, and fronts are made of the lucky. Within a batch the
predicted error of a chosen candidate is believed (Ginsbourger et al. 2010, kriging believer), so
that the others are sought elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.gaussian_process import GaussianProcess
from automl_compress.search.record import Record
from automl_compress.space import Indices, Policy, SearchSpace

Array = NDArray[np.float64]

LEAST: Final = 2
"""Evaluations that worked before there is something to learn."""
_OFFSET: Final = 0.005
"""Errors are learnt as logarithms, counted from this much below none."""
_DIGITS: Final = 9
"""Significant digits of gains that decide: the last ones depend on the number of threads."""
_DOUBLING: Final = 0.3
"""How far apart a surrogate sees networks of which one costs twice as much."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)


class Surrogate:
    """What the error of a policy may be, given all evaluations that worked.

    Args:
        space: the search space.
        record: what was told; at least `LEAST` evaluations worked.
    """

    def __init__(self, space: SearchSpace, record: Record) -> None:
        self._space = space
        self._record = record
        self._table = coordinates(space)
        worked = record.worked
        blocks = self._blocks(record.indices[worked], record.costs[worked])
        self._process = GaussianProcess(blocks, np.log(record.errors[worked] + _OFFSET))

    def choose(self, pool: Sequence[Policy], count: int) -> list[int]:
        """Places of the candidates of largest expected improvement, each given those before it.

        Args:
            pool: different policies, none of them told.
            count: how many; fewer when the pool is smaller.
        """
        costs = self._record.shares(pool)
        indices = np.stack([self._space.encode(policy) for policy in pool])
        mean, deviation = self._process.predict(self._blocks(indices, costs))
        measured = np.sqrt(deviation**2 + self._process.noise)
        errors = np.exp(mean[:, None] + measured[:, None] * _NODES) - _OFFSET
        cells = self._record.cells()
        chosen: list[int] = []
        while len(chosen) < min(count, len(pool)):
            gains = cells.gains(costs, np.clip(errors, 0.0, 1.0)) @ (_WEIGHTS / _WEIGHTS.sum())
            best = int(np.argmax(_rounded(_without(gains, chosen))))
            chosen.append(best)
            cells = cells.joined(costs[best], float(np.exp(mean[best]) - _OFFSET))
        return chosen

    def _blocks(self, indices: Indices, costs: Array) -> tuple[Array, Array]:
        """Genes in the unit cube, and costs in doublings, scaled by `_DOUBLING`."""
        genes = self._table[np.arange(indices.shape[1]), indices]
        return genes, _DOUBLING * np.log2(np.maximum(costs, 1e-6))


def coordinates(space: SearchSpace) -> Array:
    """(n_genes, most values) where a surrogate sees each value: 0 most, 1 least compressed.

    Channels and bits are seen as logarithms, so that halving them is one way at every size. A gene
    of one value lies at 1.
    """
    table = np.ones((len(space), int(space.sizes.max())))
    for row, gene in zip(table, space, strict=True):
        values = np.array(gene.values, dtype=np.float64)
        if gene.kind != "kernel_sparsity":
            values = np.log(values)
        if len(gene) > 1:
            row[: len(gene)] = (values - values[0]) / (values[-1] - values[0])
    return table


def _without(gains: Array, chosen: list[int]) -> Array:
    """Gains with -inf where a candidate is chosen already."""
    left = gains.copy()
    left[chosen] = -np.inf
    return left


def _rounded(gains: Array) -> Array:
    """Gains to `_DIGITS` digits of the largest."""
    largest = gains.max()
    if not largest > 0:
        return gains
    rounded: Array = np.round(gains / largest, _DIGITS)
    return rounded
