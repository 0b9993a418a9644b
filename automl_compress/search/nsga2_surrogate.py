"""NSGA-II whose children are screened by a Gaussian process before they are evaluated.

Jin 2011, Surrogate-assisted evolutionary computation: many children are made, a regression over
everything told predicts them, and the most promising are evaluated. Only the error is predicted,
for costs are exact and free. What promises most has the largest expected hypervolume improvement
(`improvement`), so that an uncertain child is worth a try where a surely poor one is not. Within
a batch the predicted error of a chosen child is believed (Ginsbourger et al. 2010, kriging
believer), so that the others are sought elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import Evaluation
from automl_compress.search.gaussian_process import GaussianProcess
from automl_compress.search.nsga2 import NSGA2
from automl_compress.search.record import Record
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Policy

Array = NDArray[np.float64]

POOL: Final = 100
"""Children that are screened for an ask."""
_OFFSET: Final = 0.005
"""Errors are learnt as logarithms, counted from this much below none."""
_DIGITS: Final = 9
"""Significant digits of gains that decide: the last ones depend on the number of threads."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)


class ScreenedNSGA2(Strategy):
    """Evaluates those children of NSGA-II that promise most hypervolume.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        start: policies drawn for the first population.
        batch: children chosen from one pool.
    """

    def __init__(self, problem: Problem, seed: int, start: int = 12, batch: int = 5) -> None:
        super().__init__(problem, seed)
        self.batch = batch
        self._seen = Seen()
        self._record = Record(problem)
        self._evolution = NSGA2(problem, int(self.rng.integers(2**31)), start=start)

    def ask(self, count: int) -> list[Policy]:
        """The first population, then screened children; fewer when the space is exhausted."""
        asked: list[Policy] = []
        while len(asked) < count:
            missing = min(count - len(asked), self.batch)
            policies = self._screened(missing) or self._unscreened(missing)
            if not policies:
                break
            asked += policies
        return asked

    def _unscreened(self, count: int) -> list[Policy]:
        """What NSGA-II asks for itself, without what is out."""
        while policies := self._evolution.ask(count):
            new = [policy for policy in policies if policy not in self._seen]
            for policy in new:
                self._seen.add(policy)
            if new:
                return new
        return []

    def _screened(self, count: int) -> list[Policy]:
        """Children of largest expected improvement; none before there is something to learn."""
        if not self._evolution.has_started or self._record.worked.sum() < 2:
            return []
        children = self._evolution.offspring(POOL)
        pool = [policy for policy in children if policy not in self._seen]
        if not pool:
            return []
        costs = self._record.shares(pool)
        mean, deviation = self._model().predict(self._blocks(self._encoded(pool), costs))
        errors = np.exp(mean[:, None] + deviation[:, None] * _NODES) - _OFFSET
        cells = self._record.cells()
        chosen: list[int] = []
        while len(chosen) < min(count, len(pool)):
            gains = cells.gains(costs, np.clip(errors, 0.0, 1.0)) @ (_WEIGHTS / _WEIGHTS.sum())
            best = int(np.argmax(_rounded(_without(gains, chosen))))
            chosen.append(best)
            cells = cells.joined(costs[best], float(np.exp(mean[best]) - _OFFSET))
        for place in chosen:
            self._seen.add(pool[place])
        return [pool[place] for place in chosen]

    def _model(self) -> GaussianProcess:
        """The logarithm of the error, given all evaluations that worked."""
        worked = self._record.worked
        blocks = self._blocks(self._record.indices[worked], self._record.costs[worked])
        return GaussianProcess(blocks, np.log(self._record.errors[worked] + _OFFSET))

    def _encoded(self, policies: Sequence[Policy]) -> NDArray[np.int64]:
        return np.stack([self.problem.space.encode(policy) for policy in policies])

    def _blocks(self, indices: NDArray[np.int64], costs: Array) -> tuple[Array, Array]:
        """Genes in the unit cube, and costs in doublings, tenths of them."""
        return self.problem.space.to_unit(indices), np.log2(np.maximum(costs, 1e-6)) / 10.0 * 3.0

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Let what was evaluated, asked for or not, evolve and be learnt from."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
        self._record.add(evaluations)
        self._evolution.tell(evaluations)

    def state_dict(self) -> State:
        """Generator, evolution, what was told and seen."""
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "record": self._record.state_dict(),
            "evolution": self._evolution.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._record.load_state_dict(state["record"])
        self._evolution.load_state_dict(state["evolution"])


def _without(gains: Array, chosen: list[int]) -> Array:
    """Gains with -inf where a child is chosen already."""
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
