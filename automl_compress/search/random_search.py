"""Random search, in two forms.

`random` (Bergstra and Bengio 2012) draws every gene independently and uniformly. In a space of
many genes all its networks look alike: middling size, and ruined by whichever layer drew worst.
`scaled-random` first draws how hard to compress, then the genes around it. It is the line a
learner has to beat.
"""

from __future__ import annotations

from collections.abc import Sequence

from automl_compress.evaluate import Evaluation
from automl_compress.search.priors import draw_new, mildest, scaled_indices
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Indices, Policy


class RandomSearch(Strategy):
    """Draws policies without learning, never the same twice.

    Args:
        problem: what is searched.
        seed: decides the draws.
        scaled: draw an aggressiveness first, and genes around it.
    """

    def __init__(self, problem: Problem, seed: int, scaled: bool = False) -> None:
        super().__init__(problem, seed)
        self._scaled = scaled
        self._mildest = mildest(problem) if scaled else 1.0
        self._seen = Seen()

    def _draw(self) -> Indices:
        if self._scaled:
            mildness = float(self.rng.random())
            return scaled_indices(self.problem.space, self.rng, mildness, self._mildest)
        return self.problem.space.sample(self.rng)

    def ask(self, count: int) -> list[Policy]:
        """New draws; fewer when the space is exhausted."""
        asked: list[Policy] = []
        while len(asked) < count:
            policy = draw_new(self.problem, self._seen, self._draw, self.rng)
            if policy is None:
                break
            asked.append(policy)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Remember what need not be drawn again."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)

    def state_dict(self) -> State:
        """The generator and what was seen."""
        return {"rng": self.rng.bit_generator.state, "seen": self._seen.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
