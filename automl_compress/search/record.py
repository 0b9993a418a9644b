"""Everything a model-based strategy was told, as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import Evaluation
from automl_compress.search.error_model import Known
from automl_compress.search.improvement import CostCells
from automl_compress.search.strategy import Problem, State
from automl_compress.space import Indices, Policy

Array = NDArray[np.float64]

PLAIN: Final = 0.25
"""Weight of the plain hypervolume beside the useful one: ruined networks are of no use, but the
small end of a front takes few evaluations."""

GROWTH: Final = 0.1
"""Share by which a record grows before settings of a model are chosen anew."""


def milestone(count: int) -> int:
    """The largest number, among those that grow by `GROWTH`, that is not above a count."""
    reached = min(2, count)
    while (following := max(reached + 1, int(reached * (1.0 + GROWTH)))) <= count:
        reached = following
    return reached


class Record:
    """Policies with their measured errors and exact costs.

    A failed evaluation stays as one that is always wrong; `worked` tells them apart. `bound` says
    whether constraints on costs leave the uncompressed network out.

    Args:
        problem: what is searched.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.names = problem.minimised_costs
        self.indices: Indices = np.zeros((0, len(problem.space)), dtype=np.int64)
        self.errors: Array = np.zeros(0)
        self.costs: Array = np.zeros((0, len(self.names)))
        self.worked: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self.bound = problem.cost_violation(problem.space.largest) > 0
        self._least = self._least_at_first()

    def __len__(self) -> int:
        return len(self.errors)

    def add(self, evaluations: Iterable[Evaluation]) -> None:
        """Add what was told."""
        for evaluation in evaluations:
            row = self._problem.space.encode(evaluation.policy)
            error = evaluation.minimised(self._problem.loss) if evaluation.ok else 1.0
            self.indices = np.vstack([self.indices, row])
            self.errors = np.append(self.errors, error)
            self.costs = np.vstack([self.costs, self.shares([evaluation.policy])])
            self.worked = np.append(self.worked, evaluation.ok)
            if evaluation.ok:
                self._learn_least(evaluation.policy, error)

    def _least_at_first(self) -> float:
        """Error of the uncompressed network, where constraints on costs let it be."""
        return np.inf if self.bound else self._problem.baseline[self._problem.loss]

    def _learn_least(self, policy: Policy, error: float) -> None:
        """Know the least error among what meets the constraints on costs."""
        if error < self._least and not self._problem.cost_violation(policy):
            self._least = error

    @property
    def useful_error(self) -> float:
        """Error below which a network is of use: the uncompressed one's and a useful loss more.

        Where constraints on costs leave that one out, the least error that is known to meet them
        stands in its place, for what they take from all is no reason to look for ruined networks.
        """
        least = max(self._least, self._problem.baseline[self._problem.loss])
        return min(1.0, least + self._problem.useful_loss)

    def known(self) -> Known:
        """What worked, in the order told."""
        rows = self.indices[self.worked], self.costs[self.worked], self.errors[self.worked]
        return Known(self._problem.space, *rows)

    def failures(self) -> Known:
        """All that was told, in the order told: 1 for what failed, else 0."""
        failed = (~self.worked).astype(np.float64)
        return Known(self._problem.space, self.indices, self.costs, failed)

    def shares(self, policies: Iterable[Policy]) -> Array:
        """(n, n_costs) exact costs as shares of the baseline's."""
        baseline = [self._problem.baseline[name] for name in self.names]
        found = [self._problem.cost(policy) for policy in policies]
        rows = [[costs[name] for name in self.names] for costs in found]
        return np.array(rows).reshape(len(rows), len(self.names)) / baseline

    def cells(self, plain: float = PLAIN) -> CostCells:
        """What is known at which costs, by the hypervolume that counts.

        In a study that is the useful one and a part of the plain one: errors beyond use fill only
        the latter. Errors beyond a constraint fill nothing. Where constraints on costs leave the
        uncompressed network out, only the useful one counts: for ResNet-56 at 39 % of its
        multiply-accumulates, a fifth to half of what `hybrid` evaluated had errors above 80 %.

        Args:
            plain: weight of the plain hypervolume.
        """
        allowed = [c.limit for c in self._problem.constraints if c.metric == self._problem.loss]
        weights = {1.0: 0.0 if self.bound else plain, self.useful_error: 1.0}
        if self._problem.counted_error is not None:
            weights = {self._problem.counted_error: 1.0}
        boxes = [(min([limit, *allowed]), weight) for limit, weight in weights.items() if weight]
        return CostCells(self.costs[self.worked], self.errors[self.worked], boxes)

    def state_dict(self) -> State:
        """All arrays."""
        return {
            "indices": self.indices,
            "errors": self.errors,
            "costs": self.costs,
            "worked": self.worked,
        }

    def load_state_dict(self, state: State) -> None:
        """Hold just this."""
        self.indices, self.errors = state["indices"], state["errors"]
        self.costs, self.worked = state["costs"], state["worked"]
        self._least = self._least_at_first()
        for row, error in zip(self.indices[self.worked], self.errors[self.worked], strict=True):
            self._learn_least(self._problem.space.decode(row), float(error))
