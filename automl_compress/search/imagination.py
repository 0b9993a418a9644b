"""Which of several imagined policies a learner has evaluated.

Costs are exact and free, and a critic values what it has not tried. So an agent need not have its
first idea evaluated: it imagines some episodes, and its critic says which is best (Dulac-Arnold
et al. 2015, Deep reinforcement learning in large discrete action spaces, does so with
neighbouring actions). Best is what would add most useful hypervolume if the critic were right.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Final, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import Evaluation
from automl_compress.search.exploration import Noise
from automl_compress.search.networks import one_thread
from automl_compress.search.priors import draw_new
from automl_compress.search.record import Record
from automl_compress.search.replay import EpisodeReplay
from automl_compress.search.reward import outcome, undamped
from automl_compress.search.start import Start, affordable
from automl_compress.search.strategy import Problem, Seen, State, Strategy
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


class Learner(Protocol):
    """Networks and their optimizers."""

    def state_dict(self) -> State:
        """Everything they hold."""

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""


L = TypeVar("L", bound=Learner)


class ImaginingAgent(Strategy, Generic[L]):
    """A learner that draws some policies first, and then imagines episodes.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        warm_up: policies drawn by `Start`, as many as the budget affords, near the limit of
            constraints on costs: after draws evenly below it, `ddpg` and `qmix` were behind chance
            for 60 evaluations.
        exploring: how an episode strays from what the learner thinks best, by its number.
        updates: of the learner per episode that it is told of.
    """

    batch = 5
    _replay: EpisodeReplay
    _learner: L

    def __init__(
        self, problem: Problem, seed: int, warm_up: int, exploring: Noise, updates: int
    ) -> None:
        super().__init__(problem, seed)
        self._exploring = exploring
        self._updates = updates
        self._record = Record(problem)
        self._seen = Seen()
        self._start = Start(problem, self.rng, affordable(warm_up, problem), near_limit=True)
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

    @abstractmethod
    def _episode(self, policy: Policy) -> tuple[Array, Array]:
        """States and actions, as `EpisodeReplay.add` takes them, of an episode to a policy."""

    @abstractmethod
    def _learn(self) -> None:
        """Update the learner once, from replay."""

    # Acting.

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

    def plan(self) -> list[str]:
        """How many policies are drawn before it learns."""
        return [f"draws its first {len(self._start)} policies by chance"]

    def skip_start(self) -> None:
        """Go on from what is told in place of warm-up draws."""
        self._start.skip()

    # Learning.

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Put episodes into replay, whoever asked for them, and train on it."""
        self._record.add(evaluations)
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            states, actions = self._episode(evaluation.policy)
            self._replay.add(states, actions, outcome(self.problem, evaluation))
        if self._start or len(self._replay) < 2:
            return
        with one_thread():
            for _ in range(self._updates * len(evaluations)):
                self._learn()

    # State.

    def state_dict(self) -> State:
        """Generator, replay, networks and optimizers."""
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "start": self._start.state_dict(),
            "episodes": self._episodes,
            "record": self._record.state_dict(),
            "replay": self._replay.state_dict(),
            "learner": self._learner.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._start.load_state_dict(state["start"])
        self._episodes = state["episodes"]
        self._record.load_state_dict(state["record"])
        self._replay.load_state_dict(state["replay"])
        self._learner.load_state_dict(state["learner"])
