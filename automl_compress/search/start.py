"""The first policies of a search that knows nothing yet."""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np

from automl_compress.search.priors import draw_new, mildest, scaled_indices, stratified_mildness
from automl_compress.search.strategy import Problem, Seen
from automl_compress.space import Indices, Policy

WARM_UP_SHARE: Final = 0.5
"""Share of the budget that is drawn by chance before an agent learns, at most."""


def affordable(warm_up: int, problem: Problem) -> int:
    """As much of a warm-up as leaves an agent a part of the budget to learn and to act in.

    Args:
        warm_up: policies drawn by chance where the budget is large or nobody knows it.
        problem: states the budget.
    """
    if problem.budget is None:
        return warm_up
    return min(warm_up, int(WARM_UP_SHARE * problem.budget))


class Start:
    """Draws by `priors.scaled_indices`, stratified over the mildness that constraints allow.

    The very first is the least compressed policy, where it is allowed. Once the strata are used
    up, draws go on at any mildness.

    Args:
        problem: what is searched.
        rng: source of chance, the strategy's own.
        count: strata.
        near_limit: the tighter constraints on costs are, the more draws come near their limit;
            otherwise they come evenly from all that is allowed.
    """

    def __init__(
        self, problem: Problem, rng: np.random.Generator, count: int, near_limit: bool = False
    ) -> None:
        self._problem = problem
        self._rng = rng
        self._mildest = mildest(problem)
        self._limit, self._most = (self._mildest, 1.0) if near_limit else (1.0, self._mildest)
        self._left = deque(self._most * float(m) for m in stratified_mildness(rng, count))

    def __len__(self) -> int:
        return len(self._left)

    def draw(self, seen: Seen) -> Policy | None:
        """The next policy, which nobody asked for; None when the space is exhausted."""
        space = self._problem.space
        mildness = self._left.popleft() if self._left else self._most * float(self._rng.random())

        def drawn() -> Indices:
            if not len(seen) and self._mildest == 1.0:
                return space.sizes - 1
            return scaled_indices(space, self._rng, mildness, self._limit)

        return draw_new(self._problem, seen, drawn, self._rng)

    def skip(self) -> None:
        """Leave the strata out."""
        self._left.clear()

    def state_dict(self) -> list[float]:
        """Strata that are left."""
        return list(self._left)

    def load_state_dict(self, left: list[float]) -> None:
        """Go on with just these."""
        self._left = deque(left)
