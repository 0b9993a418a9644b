"""Which of several imagined policies a learner has evaluated.

Costs are exact and free, and a critic values what it has not tried. So an agent need not have its
first idea evaluated: it imagines some episodes, and its critic says which is best (Dulac-Arnold
et al. 2015, Deep reinforcement learning in large discrete action spaces, does so with
neighbouring actions). Best is what would add most useful hypervolume if the critic were right.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.exploration import Noise
from automl_compress.search.networks import one_thread
from automl_compress.search.priors import draw_new
from automl_compress.search.record import Record
from automl_compress.search.replay import EpisodeReplay
from automl_compress.search.reward import undamped
from automl_compress.search.start import Start
from automl_compress.search.strategy import Problem, Seen, Strategy
from automl_compress.space import Indices, Policy

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


class ImaginingAgent(Strategy):
    """A learner that draws some policies first, and then imagines episodes.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        warm_up: policies drawn by `Start`, near the limit of constraints on costs: after draws
            evenly below it, `ddpg` and `qmix` were behind chance for 60 evaluations.
        exploring: how an episode strays from what the learner thinks best, by its number.
    """

    batch = 5
    _replay: EpisodeReplay

    def __init__(self, problem: Problem, seed: int, warm_up: int, exploring: Noise) -> None:
        super().__init__(problem, seed)
        self._exploring = exploring
        self._record = Record(problem)
        self._seen = Seen()
        self._start = Start(problem, self.rng, warm_up, near_limit=True)
        self._episodes = 0

    @abstractmethod
    def _ends(self, spreads: Array) -> list[Indices] | Indices:
        """(n, n_genes) where episodes lead, side by side.

        Args:
            spreads: (n,) how far each strays.
        """

    @abstractmethod
    def _predicted(self, policies: Sequence[Policy]) -> Array:
        """(n,) reward of each policy, as the learner expects it."""

    def ask(self, count: int) -> list[Policy]:
        """Warm-up draws, then episodes; fewer when the space is exhausted."""
        asked: list[Policy] = []
        while len(asked) < count and (self._start or not len(self._replay)):
            policy = self._start.draw(self._seen)
            if policy is None:
                return asked
            asked.append(policy)
        with one_thread():
            while len(asked) < count:
                found = self._explored(min(count - len(asked), SIDE_BY_SIDE))
                if not found:
                    break
                asked += found
        return asked

    def _explored(self, count: int) -> list[Policy]:
        """For each of some episodes the best of those imagined; all run side by side."""
        spreads = [self._exploring.spread(self._episodes + number) for number in range(count)]
        imagination = Imagination(self.problem, self._record, self._seen)
        ends = map(self.problem.space.decode, self._ends(np.repeat(spreads, IMAGINED)))
        asked: list[Policy] = []
        for spread in spreads:
            self._episodes += 1
            new = imagination.new([next(ends) for _ in range(IMAGINED)])
            policy = imagination.choose(new, self._predicted(new)) if new else self._strayed(spread)
            if policy is None:
                break
            asked.append(policy)
        return asked

    def _strayed(self, spread: float) -> Policy | None:
        """The first new end of episodes one by one."""
        one = np.array([spread])
        return draw_new(self.problem, self._seen, lambda: self._ends(one)[0], self.rng)
