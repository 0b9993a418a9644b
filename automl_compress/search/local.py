"""Local search over the front (Paquete, Chiarandini and Stuetzle 2004, Pareto local search).

Neighbours of what is on the front are tried, the member least explored first.

Deviations from the paper:

1. A neighbour is drawn, not listed: one gene or a few, each a step or two up or down. With a
   hundred genes nobody can pay for all neighbours of one member.
2. A member is left after each neighbour, so that all parts of the front advance together.
3. The first policies are drawn by `priors.scaled_indices`, with the least compressed among them.
4. Only the least violating members are kept while none meets all constraints; ruined networks
   break one (`archive.excess`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from automl_compress.evaluate import Evaluation
from automl_compress.search.archive import Archive
from automl_compress.search.priors import draw_new, moved
from automl_compress.search.start import Start
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Policy


class LocalSearch(Strategy):
    """Tries neighbours of the front's least explored members.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        start: policies drawn from the prior first.
        batch: how many policies it likes to be asked for at once.
    """

    def __init__(self, problem: Problem, seed: int, start: int = 15, batch: int = 5) -> None:
        super().__init__(problem, seed)
        self.batch = batch
        self._seen = Seen()
        self._archive = Archive(problem)
        self._start = Start(problem, self.rng, start)

    def ask(self, count: int) -> list[Policy]:
        """Policies of the start, then neighbours; fewer when the space is exhausted."""
        asked: list[Policy] = []
        while len(asked) < count:
            starting = self._start or not len(self._archive)
            policy = self._start.draw(self._seen) if starting else self._neighbour()
            if policy is None:
                break
            asked.append(policy)
        return asked

    def _neighbour(self) -> Policy | None:
        visits = self._archive.visits
        least = np.flatnonzero(visits == visits.min())
        member = int(self.rng.choice(least))
        visits[member] += 1
        base = self._archive.indices[member]
        return draw_new(
            self.problem, self._seen, lambda: moved(self.problem.space, self.rng, base), self.rng
        )

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Let what was evaluated, asked for or not, compete for the front."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            self._archive.add(evaluation)

    def skip_start(self) -> None:
        """Go on from what is told in place of a start of its own."""
        self._start.skip()

    def state_dict(self) -> State:
        """Generator, start to come, front, and what was seen."""
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "start": self._start.state_dict(),
            "archive": self._archive.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._start.load_state_dict(state["start"])
        self._archive.load_state_dict(state["archive"])
