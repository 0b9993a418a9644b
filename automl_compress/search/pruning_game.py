"""Compression as a cooperative game (Li et al. 2024, QMIX_FP).

There is one agent per gene; iteration by iteration, all of them lower their genes.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.strategy import Problem
from automl_compress.search.value_mixing import Team, TeamEpisodes
from automl_compress.space import Indices

Array = NDArray[np.float64]

ITERATIONS: Final = 4
_WORTH_SCALE: Final = 4.0


class PruningGame:
    """Observations, states and rewards of the game on a problem's genes.

    An agent sees what its gene decides about (`Problem.features`), how much of it is left, the
    iteration, the costs so far and the preference. The global state holds what is left of every
    gene, and the last three. The team earns what the preference says costs saved are worth, at
    each iteration, and the reward of the last network at the end.

    Args:
        problem: space, features and costs.
        steps: iterations of an episode.
    """

    def __init__(self, problem: Problem, steps: int = ITERATIONS) -> None:
        self._problem = problem
        self._sizes = problem.space.sizes
        self.steps = steps
        agents = len(problem.space)
        features = problem.features
        self._features = features if len(features) == agents else np.zeros((agents, 0))
        common = 1 + 2 * (len(problem.objectives) - 1)
        self.team = Team(
            agents=agents,
            actions=1 + int(np.ceil((self._sizes.max() - 1) / steps)),
            observation_size=self._features.shape[1] + 2 + common,
            state_size=agents + common,
        )

    @property
    def start(self) -> Indices:
        """(agents,) the least compressed levels."""
        top: Indices = self._sizes - 1
        return top

    def allowed(self, levels: Indices) -> NDArray[np.bool_]:
        """(..., agents, actions) whether an agent at (..., agents) levels can lower so far."""
        able: NDArray[np.bool_] = levels[..., None] >= np.arange(self.team.actions)
        return able

    def cuts(self, step: int, levels: Indices, end: Indices) -> NDArray[np.int64]:
        """(..., agents) the actions that lead evenly from levels to an end not above them."""
        left = self.steps - step
        cuts: NDArray[np.int64] = -((end - levels) // left)
        return cuts

    def path(self, end: Indices) -> NDArray[np.int64]:
        """(steps + 1, agents) levels of the episode that leads evenly to an end."""
        levels = [self.start]
        for step in range(self.steps):
            levels.append(levels[-1] - self.cuts(step, levels[-1], end))
        return np.array(levels)

    def costs(self, levels: Indices) -> Array:
        """(n_costs,) binary logarithms of the costs' shares of the baseline's."""
        return self._start_costs if np.array_equal(levels, self.start) else self._costs(levels)

    @cached_property
    def _start_costs(self) -> Array:
        """Those of the levels at which every episode begins."""
        return self._costs(self.start)

    def _costs(self, levels: Indices) -> Array:
        found = self._problem.cost(self._problem.space.decode(levels))
        names = self._problem.minimised_costs
        shares = [max(1e-6, found[name] / self._problem.baseline[name]) for name in names]
        logarithms: Array = np.log2(np.array(shares))
        return logarithms

    def observations(self, step: int, levels: Indices, preferences: Array) -> Array:
        """(n, agents, observation_size) what the agents of n teams see.

        Args:
            step: the iteration.
            levels: (n, agents).
            preferences: (n, n_costs) worth of halving each cost.
        """
        costs = np.array([self.costs(row) for row in levels])
        return self._seen(levels, self._common(np.full(len(levels), step), costs, preferences))

    def episodes(
        self, levels: NDArray[np.int64], costs: Array, final: Array, preferences: Array
    ) -> TeamEpisodes:
        """Episodes as a learner reads them.

        Args:
            levels: (n, steps + 1, agents).
            costs: (n, steps + 1, n_costs) as `costs` gives them.
            final: (n,) reward of the last network.
            preferences: (n, n_costs) worth of halving each cost.
        """
        rewards = np.einsum("ntc,nc->nt", costs[:, :-1] - costs[:, 1:], preferences)
        rewards[:, -1] += final
        before = levels[:, :-1]
        common = np.stack(
            [
                self._common(np.full(len(levels), step), costs[:, step], preferences)
                for step in range(self.steps)
            ],
            axis=1,
        )
        return TeamEpisodes(
            observations=self._seen(before, common),
            states=np.concatenate([self._left(before), common], axis=-1),
            allowed=self.allowed(before),
            actions=before - levels[:, 1:],
            rewards=rewards,
        )

    def _common(self, steps: NDArray[np.int64], costs: Array, preferences: Array) -> Array:
        """(n, ...) what all agents see: iteration, costs in octaves, preference likewise."""
        worth = np.log2(np.maximum(preferences, 1e-4)) / _WORTH_SCALE
        return np.hstack([steps[:, None] / self.steps, costs / _WORTH_SCALE, worth])

    def _left(self, levels: NDArray[np.int64]) -> Array:
        """(..., agents) share of each gene's choices that is left."""
        left: Array = levels / np.maximum(1, self._sizes - 1)
        return left

    def _seen(self, levels: NDArray[np.int64], common: Array) -> Array:
        """(..., agents, observation_size) of (..., agents) levels and what all see."""
        leading = levels.shape
        own = np.stack([self._left(levels), np.broadcast_to(self._sizes / 10.0, leading)], axis=-1)
        features = np.broadcast_to(self._features, (*leading, self._features.shape[1]))
        shared = np.broadcast_to(common[..., None, :], (*leading, common.shape[-1]))
        return np.concatenate([features, own, shared], axis=-1)
