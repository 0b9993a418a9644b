"""Which of many candidates to evaluate: a surrogate's expected hypervolume improvement.

Jin 2011, Surrogate-assisted evolutionary computation: a regression over everything told predicts
candidates, and the most promising are evaluated. Only the error is predicted (`error_model`), for
costs are exact and free. What promises most has the largest expected hypervolume improvement
(`improvement`), so that an uncertain candidate is worth a try where a surely poor one is not. What
counts is the error as it will be measured: it scatters around the predicted one by what the
regression takes for noise, and fronts are made of the lucky. Where evaluations failed, the
improvement counts as far as the candidate is likely to work (Gelbart et al. 2014, Bayesian
optimization with unknown constraints), by another regression. Within a batch the predicted error
of a chosen candidate is believed (Ginsbourger et al. 2010, kriging believer), so that the others
are sought elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.error_model import AS_IS, LINKS, ErrorModel, Known, Link
from automl_compress.search.improvement import CostCells
from automl_compress.search.record import Record, milestone
from automl_compress.space import Indices, Policy, SearchSpace

Array = NDArray[np.float64]

LEAST: Final = 2
"""Evaluations that worked before there is something to learn."""
_DIGITS: Final = 9
"""Significant digits of gains that decide: the last ones depend on the number of threads."""
_AT_ONCE: Final = 16
"""Candidates whose gain is computed again at once."""
_LEAST_CHANCE: Final = 0.01
"""Of working."""
_Row = tuple[Array, float, Array, float, float]
"""Of a candidate: (n_costs,) costs, predicted error, (n_nodes,) errors that may be measured, chance
to work, gain by itself."""
_LookedAt = dict[Policy, tuple[Indices, Array]]
"""(n_genes,) indices and (n_costs,) costs of policies."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)


class Screen:
    """Surrogates of a record that grows.

    Link and settings of the regression are chosen anew at every `milestone` of the record, on what
    it held then, so that they follow from the record alone.

    Args:
        space: the search space.
        record: what was told.
    """

    def __init__(self, space: SearchSpace, record: Record) -> None:
        self._space = space
        self._record = record
        self._errors = _Learner(LINKS)
        self._failures = _Learner((AS_IS,))
        self._looked_at: _LookedAt = {}

    def surrogate(self) -> Surrogate | None:
        """What the record teaches; None before `LEAST` evaluations worked."""
        known = self._record.known()
        if len(known.errors) < LEAST:
            return None
        model = self._errors.model(known)
        failing = (
            None if self._record.worked.all() else self._failures.model(self._record.failures())
        )
        surrogate = Surrogate(self._space, self._record, model, failing, self._looked_at)
        self._looked_at = surrogate.looked_at
        return surrogate


class _Learner:
    """Models of something known that grows at its end.

    Args:
        links: of which the likeliest is taken.
    """

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = links
        self._fitted_on = 0
        self._model: ErrorModel | None = None

    def model(self, known: Known) -> ErrorModel:
        """What it teaches, by the settings of the last milestone."""
        if self._fitted_on != (rows := milestone(len(known.errors))):
            self._fit = known.first(rows).likeliest(self._links)
            self._fitted_on = rows
            self._model = None
        self._model = ErrorModel(known, *self._fit, self._model)
        return self._model


class Surrogate:
    """Chooses by what the errors of policies may be, given all evaluations that worked.

    Args:
        space: the search space.
        record: what was told.
        model: what it teaches.
        failing: what it teaches about failures, 1 for certain; None where nothing failed.
        known: policies that an earlier surrogate looked at, so that they are not costed again.
    """

    def __init__(
        self,
        space: SearchSpace,
        record: Record,
        model: ErrorModel,
        failing: ErrorModel | None,
        known: _LookedAt,
    ) -> None:
        self._space, self._record, self._model, self._known = space, record, model, known
        self._failing = failing
        self._cells = record.cells()
        self._rows: dict[Policy, _Row] = {}
        self.looked_at: _LookedAt = {}

    def gains(self, pool: Sequence[Policy]) -> Array:
        """(n,) expected improvement by each of several policies alone."""
        return np.array([row[4] for row in self._predicted(pool)])

    def choose(self, pool: Sequence[Policy], count: int) -> list[int]:
        """Places of the candidates of largest expected improvement, each given those before it.

        Args:
            pool: different policies, none of them told.
            count: how many; fewer when the pool is smaller.
        """
        columns = zip(*self._predicted(pool), strict=True)
        costs, believed, errors, chances, gains = (np.array(column) for column in columns)
        cells = self._cells
        chosen: list[int] = []
        known = np.ones(len(pool), dtype=np.bool_)
        while len(chosen) < min(count, len(pool)):
            best = np.argsort(-_rounded(gains), kind="stable")[:_AT_ONCE]
            if not known[best[0]]:  # others may gain less now, but none more (Minoux 1978)
                gains[best] = chances[best] * _expected(cells, costs[best], errors[best])
                gains[chosen] = -np.inf
                known[best] = True
                continue
            chosen.append(int(best[0]))
            cells = cells.joined(costs[best[0]], float(believed[best[0]]))
            gains[chosen] = -np.inf
            known[:] = False
        return chosen

    def _predicted(self, pool: Sequence[Policy]) -> list[_Row]:
        """What is expected of every policy; each is looked at once."""
        if new := [policy for policy in pool if policy not in self._rows]:
            indices, costs = self._inputs(new)
            believed, errors = self._model.predict(indices, costs, _NODES)
            chances = self._chances(indices, costs)
            gains = chances * _expected(self._cells, costs, errors)
            rows = zip(
                *(costs, believed.tolist(), errors, chances.tolist(), gains.tolist()), strict=True
            )
            self._rows.update(zip(new, rows, strict=True))
        return [self._rows[policy] for policy in pool]

    def _chances(self, indices: Indices, costs: Array) -> Array:
        """(n,) that each policy works; as good as never nought, for models err."""
        if self._failing is None:
            return np.ones(len(indices))
        failing, _ = self._failing.predict(indices, costs, np.zeros(1))
        chances: Array = np.clip(1.0 - failing, _LEAST_CHANCE, 1.0)
        return chances

    def _inputs(self, policies: Sequence[Policy]) -> tuple[Indices, Array]:
        """(n, n_genes) indices and (n, n_costs) costs as shares of the baseline's."""
        unknown = [policy for policy in policies if policy not in self._known]
        encoded = map(self._space.encode, unknown)
        found = dict(
            zip(unknown, zip(encoded, self._record.shares(unknown), strict=True), strict=True)
        )
        rows = {policy: self._known.get(policy) or found[policy] for policy in policies}
        self.looked_at |= rows
        indices, costs = zip(*rows.values(), strict=True)
        return np.stack(indices), np.stack(costs)


def _expected(cells: CostCells, costs: Array, errors: Array) -> Array:
    """(m,) mean hypervolume gained, over (m, nodes) errors of the quadrature."""
    gains: Array = cells.gains(costs, np.clip(errors, 0.0, 1.0)) @ (_WEIGHTS / _WEIGHTS.sum())
    return gains


def best_first(gains: Array) -> list[int]:
    """Places of gains, the largest first; those that differ in no digit that decides keep order."""
    return [int(place) for place in np.argsort(-_rounded(gains), kind="stable")]


def _rounded(gains: Array) -> Array:
    """Gains to `_DIGITS` digits of the largest."""
    largest = gains.max()
    if not largest > 0:
        return gains
    rounded: Array = np.round(gains / largest, _DIGITS)
    return rounded
