"""NSGA-II that begins with what another strategy chooses.

The population of a genetic algorithm is as good as its first members. Here another strategy asks
for these, and NSGA-II evolves whatever was told.
"""

from __future__ import annotations

from collections.abc import Sequence

from automl_compress.evaluate import Evaluation
from automl_compress.search.nsga2 import NSGA2
from automl_compress.search.registry import build_strategy
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Policy


class WarmNSGA2(Strategy):
    """Another strategy's first policies, then NSGA-II.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        first: registered name of the strategy that begins.
        evaluations: how many policies it asks for, at most.
    """

    def __init__(self, problem: Problem, seed: int, first: str, evaluations: int = 30) -> None:
        super().__init__(problem, seed)
        seeds = self.rng.integers(2**31, size=2)
        self._first = build_strategy(first, problem, int(seeds[0]))
        self._evolution = NSGA2(problem, int(seeds[1]), start=0)
        self.batch = self._evolution.batch
        self._left = evaluations
        self._seen = Seen()

    def ask(self, count: int) -> list[Policy]:
        """The first strategy's policies, then children; fewer when the space is exhausted."""
        asked = self._new(self._first, min(count, self._left))
        self._left = self._left - len(asked) if len(asked) == min(count, self._left) else 0
        return asked + self._new(self._evolution, count - len(asked))

    def _new(self, member: Strategy, count: int) -> list[Policy]:
        """Policies of a member without those that are out."""
        new: list[Policy] = []
        while len(new) < count and (policies := member.ask(count - len(new))):
            new += [policy for policy in policies if policy not in self._seen]
            for policy in policies:
                self._seen.add(policy)
        return new

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Let what was evaluated, asked for or not, compete with the population."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
        if self._left:
            self._first.tell(evaluations)
        self._evolution.tell(evaluations)

    def state_dict(self) -> State:
        """Generator, both members, what is left of the first, and what was seen."""
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "left": self._left,
            "first": self._first.state_dict(),
            "evolution": self._evolution.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._left = state["left"]
        self._first.load_state_dict(state["first"])
        self._evolution.load_state_dict(state["evolution"])
