"""Everything a model-based strategy was told, as arrays."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import USEFUL_LOSS, Evaluation
from automl_compress.search.error_model import Known
from automl_compress.search.improvement import CostCells
from automl_compress.search.strategy import Problem, State
from automl_compress.space import Indices, Policy

Array = NDArray[np.float64]


class Record:
    """Policies with their measured errors and exact costs.

    A failed evaluation stays as one that is always wrong; `worked` tells them apart.

    Args:
        problem: what is searched.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.names = tuple(name for name in problem.objectives if name != "error")
        self.indices: Indices = np.zeros((0, len(problem.space)), dtype=np.int64)
        self.errors: Array = np.zeros(0)
        self.costs: Array = np.zeros((0, len(self.names)))
        self.worked: NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.errors)

    def add(self, evaluations: Iterable[Evaluation]) -> None:
        """Add what was told."""
        for evaluation in evaluations:
            row = self._problem.space.encode(evaluation.policy)
            error = evaluation.minimised("error") if evaluation.ok else 1.0
            self.indices = np.vstack([self.indices, row])
            self.errors = np.append(self.errors, error)
            self.costs = np.vstack([self.costs, self.shares([evaluation.policy])])
            self.worked = np.append(self.worked, evaluation.ok)

    def known(self) -> Known:
        """What worked, in the order told."""
        rows = self.indices[self.worked], self.costs[self.worked], self.errors[self.worked]
        return Known(self._problem.space, *rows)

    def shares(self, policies: Iterable[Policy]) -> Array:
        """(n, n_costs) exact costs as shares of the baseline's."""
        baseline = [self._problem.baseline[name] for name in self.names]
        found = [self._problem.cost(policy) for policy in policies]
        rows = [[costs[name] for name in self.names] for costs in found]
        return np.array(rows).reshape(len(rows), len(self.names)) / baseline

    def cells(self) -> CostCells:
        """What is known at which costs; errors beyond use, or beyond a constraint, gain nothing."""
        limit = min(1.0, self._problem.baseline["error"] + USEFUL_LOSS)
        for constraint in self._problem.constraints:
            if constraint.metric == "error":
                limit = min(limit, constraint.limit)
        return CostCells(self.costs[self.worked], self.errors[self.worked], limit)

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
