"""NSGA-II whose children are screened by a surrogate before they are evaluated.

Jin 2011, Surrogate-assisted evolutionary computation: many children are made, and those that
promise most (`screening`) are evaluated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from automl_compress.evaluate import Evaluation
from automl_compress.search.nsga2 import NSGA2
from automl_compress.search.record import Record
from automl_compress.search.screening import Screen, Surrogate
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Policy

POOL: Final = 100
"""Children that are screened for an ask."""


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
        self._screen = Screen(problem.space, self._record)
        self._evolution = NSGA2(problem, int(self.rng.integers(2**31)), start=start)

    def ask(self, count: int) -> list[Policy]:
        """The first population, then screened children; fewer when the space is exhausted."""
        asked: list[Policy] = []
        surrogate = self._surrogate()
        while len(asked) < count:
            missing = min(count - len(asked), self.batch)
            policies = self._screened(surrogate, missing) or self._unscreened(missing)
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

    def _surrogate(self) -> Surrogate | None:
        """None before there is something to learn."""
        return self._screen.surrogate() if self._evolution.has_started else None

    def _screened(self, surrogate: Surrogate | None, count: int) -> list[Policy]:
        """Children of largest expected improvement; none without a surrogate."""
        if surrogate is None:
            return []
        children = self._evolution.offspring(POOL)
        pool = [policy for policy in children if policy not in self._seen]
        if not pool:
            return []
        chosen = surrogate.choose(pool, count)
        for place in chosen:
            self._seen.add(pool[place])
        return [pool[place] for place in chosen]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Let what was evaluated, asked for or not, evolve and be learnt from."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
        self._record.add(evaluations)
        self._evolution.tell(evaluations)

    def skip_start(self) -> None:
        """Go on from what is told in place of a first population."""
        self._evolution.skip_start()

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
        self._screen = Screen(self.problem.space, self._record)
        self._evolution.load_state_dict(state["evolution"])
