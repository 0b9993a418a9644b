"""Which of several imagined policies a learner has evaluated.

Costs are exact and free, and a critic values what it has not tried. So an agent need not have its
first idea evaluated: it imagines some episodes, and its critic says which is best (Dulac-Arnold
et al. 2015, Deep reinforcement learning in large discrete action spaces, does so with
neighbouring actions). Best is what would add most useful hypervolume if the critic were right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.record import Record
from automl_compress.search.reward import undamped
from automl_compress.search.strategy import Problem, Seen
from automl_compress.space import Policy

Array = NDArray[np.float64]

IMAGINED: Final = 8
"""Episodes imagined for each that is evaluated."""
SIDE_BY_SIDE: Final = 20
"""Evaluated ones at most whose episodes are imagined together, in one batch of the networks."""


class Imagination:
    """Chooses among policies, each given those it chose before.

    Args:
        problem: what is searched.
        record: what was told.
        seen: what was asked; what is chosen is added.
    """

    def __init__(self, problem: Problem, record: Record, seen: Seen) -> None:
        self._problem = problem
        self._record = record
        self._seen = seen
        self._cells = record.cells(plain=0.0)

    def new(self, policies: Sequence[Policy]) -> list[Policy]:
        """Different policies nobody asked for that meet the constraints on costs."""
        return [
            policy
            for policy in dict.fromkeys(policies)
            if policy not in self._seen and not self._problem.cost_violation(policy)
        ]

    def choose(self, policies: Sequence[Policy], rewards: Array) -> Policy:
        """The policy of largest predicted gain; the first when none gains.

        Args:
            policies: of `new`, at least one.
            rewards: (n,) useful losses of accuracy, negated and damped, as a critic predicts
                them; scaled as `reward.rewards`.
        """
        lost = np.array([undamped(-reward) for reward in rewards])
        problem = self._problem
        errors = np.clip(problem.baseline[problem.loss] + problem.useful_loss * lost, 0.0, 1.0)
        costs = self._record.shares(policies)
        best = int(np.argmax(self._cells.gains(costs, errors)))
        self._cells = self._cells.joined(costs[best], float(errors[best]))
        self._seen.add(policies[best])
        return policies[best]
