"""The best of what was told: a front of those that meet all constraints."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import Evaluation
from automl_compress.pareto import front_mask
from automl_compress.search.strategy import Problem, State
from automl_compress.space import Indices

FAILED = 1e3
"""Excess of an evaluation that failed."""


def excess(problem: Problem, evaluation: Evaluation) -> float:
    """How far an evaluation is from being of use; 0 when it meets all constraints.

    Besides the study's constraints, a loss beyond `Problem.ruinous_loss` counts.
    """
    if not evaluation.ok:
        return FAILED
    ruined = max(0.0, evaluation.minimised(problem.loss) - problem.ruinous_loss)
    return problem.violation(evaluation) + ruined


class Archive:
    """Non-dominated members of least excess; which they are does not depend on the order told.

    Args:
        problem: what is searched.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        genes, objectives = len(problem.space), len(problem.objectives)
        self.indices: Indices = np.zeros((0, genes), dtype=np.int64)
        self.values = np.zeros((0, objectives))
        self.visits: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._excess = np.inf

    def __len__(self) -> int:
        return len(self.indices)

    def add(self, evaluation: Evaluation) -> None:
        """Let an evaluation compete."""
        found = excess(self._problem, evaluation)
        if found > self._excess:
            return
        row = self._problem.space.encode(evaluation.policy)[None]
        values = self._problem.values(evaluation)[None]
        if found < self._excess:
            self.indices, self.values = row, values
            self.visits, self._excess = np.zeros(1, dtype=np.int64), found
            return
        if (self.indices == row).all(axis=1).any():
            return
        together = np.vstack([self.values, values])
        kept = front_mask(together)
        self.indices = np.vstack([self.indices, row])[kept]
        self.values = together[kept]
        self.visits = np.append(self.visits, 0)[kept]

    def state_dict(self) -> State:
        """Members, how often each was visited, and their excess; null for none."""
        return {
            "indices": self.indices.copy(),
            "values": self.values.copy(),
            "visits": self.visits.copy(),
            "excess": float(self._excess) if len(self) else None,
        }

    def load_state_dict(self, state: State) -> None:
        """Hold just this."""
        self.indices, self.values = state["indices"].copy(), state["values"].copy()
        self.visits = state["visits"].copy()
        self._excess = np.inf if state["excess"] is None else state["excess"]
