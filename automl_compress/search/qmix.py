"""QMIX_FP: a team of agents prunes a network step by step (Li et al. 2024, Scientific Reports 14).

Each agent holds one gene: in the paper a convolution, here a coupled group's channels or a layer's
bits, for these are what can be decided alone. An episode begins with the least compressed network
and has some iterations; in each, every agent keeps its gene or lowers it by some choices. The
learner is `value_mixing`'s: QMIX (Rashid et al. 2018), or VDN (Sunehag et al. 2018) as its
ablation. One team covers the whole front: its states hold a preference, what halving each cost is
worth, and every episode is played under a preference of its own.

The paper publishes no code. What it leaves open, and where this deviates:

1. The team is paid for costs saved at each iteration, which is exact and free, and at the end for
   the accuracy kept. Only the last network of an episode is evaluated; the paper trains and
   evaluates after each iteration, which a search of some hundred evaluations cannot pay for.
2. An episode is rebuilt from any evaluated policy, whoever asked for it: its cuts are spread
   evenly over the iterations. In replay every episode is a lesson for any preference, since what it
   would have earned is known.
3. Half the target is the episode's own return, as in `ddpg`.
4. The first episodes are drawn by `priors.scaled_indices`. Most later ones follow the policy that
   has earned most under the preference, and only some agents decide anew; each of those explores
   by chance with a probability that decays, but not below a floor.
5. Of some episodes the one of largest predicted gain is evaluated (`imagination`). What the team
   expects at an iteration is the final reward and the costs still to be saved, which are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.exploration import Noise
from automl_compress.search.imagination import ImaginingAgent
from automl_compress.search.pruning_game import PruningGame
from automl_compress.search.replay import EpisodeReplay
from automl_compress.search.reward import attention, rewards, scaled_costs
from automl_compress.search.strategy import Problem
from automl_compress.search.value_mixing import Mixing, TeamEpisodes, TeamLearner
from automl_compress.space import Indices, Policy

WARM_UP: Final = 30
UPDATES_PER_EPISODE: Final = 2
BATCH: Final = 16
EXPLORING: Final = Noise(first=0.5, decay=0.99, floor=0.1)  # probability of a random action
RETURNING: Final = 0.8  # share of episodes that follow an evaluated policy
DECIDED_ANEW: Final = (0.03, 0.3)  # bounds of the share of agents that do not
HALVING_WORTH: Final = (0.03, 2.0)  # bounds of a preference, in useful losses of accuracy

Array = NDArray[np.float64]


class QMIX(ImaginingAgent[TeamLearner]):
    """A team of one agent per gene that lowers the genes iteration by iteration.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        monotonic: mix the agents' values by QMIX; otherwise sum them up (VDN).
        returning: share of episodes that follow an evaluated policy, in [0, 1].
    """

    def __init__(
        self, problem: Problem, seed: int, monotonic: bool = True, returning: float = RETURNING
    ) -> None:
        super().__init__(problem, seed, WARM_UP, EXPLORING, UPDATES_PER_EPISODE)
        self._returning = returning
        self._game = PruningGame(problem)
        self._replay = EpisodeReplay(self._game.steps + 1, len(problem.objectives) - 1)
        self._learner = TeamLearner(
            self._game.team,
            int(self.rng.integers(2**31)),
            Mixing(monotonic=monotonic, rate=3e-3, own_return=0.5),
        )

    def plan(self) -> list[str]:
        """Who is in the team."""
        return [
            *super().plan(),
            f"then a team with one agent for each of {self.problem.choices} lowers them in "
            f"{self._game.steps} iterations",
        ]

    # Acting.

    def _ends(self, exploring: Array) -> Indices:
        """(n, agents) where episodes lead, each under a preference of its own.

        Args:
            exploring: (n,) probability of a random action in each.
        """
        return self._play(self._draw_preferences(len(exploring)), exploring)

    def _predicted(self, policies: Sequence[Policy]) -> Array:
        """(n,) final reward of each policy: what the team expects, less the costs it will save."""
        levels = np.array([self._game.path(self.problem.space.encode(p)) for p in policies])
        episodes = self._game.episodes(
            levels=levels,
            costs=np.array([[self._game.costs(row) for row in rows] for rows in levels]),
            final=np.zeros(len(policies)),
            preferences=self._draw_preferences(len(policies)),
        )
        saved = episodes.rewards[:, ::-1].cumsum(axis=1)[:, ::-1]  # from each iteration on
        expected: Array = (self._learner.joint_values(episodes) - saved).mean(axis=1)
        return expected

    def _draw_preferences(self, count: int) -> Array:
        """(count, n_costs) what halving each cost is worth, in useful losses of accuracy."""
        costs = len(self.problem.objectives) - 1
        low, high = HALVING_WORTH
        worth = low * (high / low) ** self.rng.random((count, 1))
        preferences: Array = worth * self.rng.dirichlet(np.ones(costs), size=count)
        return preferences

    def _play(self, preferences: Array, exploring: Array) -> Indices:
        """(n, agents) where episodes side by side lead.

        Agents that do not decide anew follow the best known policy.

        Args:
            preferences: (n, n_costs).
            exploring: (n,) probability of a random action.
        """
        game, teams = self._game, len(preferences)
        anchors, following = self._anchors(preferences)
        levels, memory = np.repeat(game.start[None], teams, axis=0), self._learner.memory(teams)
        last = np.full(levels.shape, -1)
        for step in range(game.steps):
            seen = game.observations(step, levels, preferences)
            values, memory = self._learner.values(seen, last, memory)
            allowed = game.allowed(levels)
            greedy = np.where(allowed, values, -np.inf).argmax(axis=-1)
            chance = np.where(allowed, self.rng.random(allowed.shape), -np.inf).argmax(axis=-1)
            own = np.where(self.rng.random(levels.shape) < exploring[:, None], chance, greedy)
            last = np.where(following, game.cuts(step, levels, anchors), own)
            levels = levels - last
        return levels

    def _anchors(self, preferences: Array) -> tuple[Indices, NDArray[np.bool_]]:
        """(n, agents) levels of the policies that earned most, and who follows them."""
        outcomes, teams = self._replay.outcomes, len(preferences)
        saved = -preferences @ scaled_costs(self.problem, outcomes).T
        best = (rewards(self.problem, outcomes) + saved).argmax(axis=1)
        low, high = DECIDED_ANEW
        shares = low * (high / low) ** self.rng.random((teams, 1))
        following = self.rng.random((teams, self._game.team.agents)) >= shares
        following[np.arange(teams), self.rng.integers(self._game.team.agents, size=teams)] = False
        following[self.rng.random(teams) >= self._returning] = False
        return self._replay.actions[best, -1].astype(np.int64), following

    # Learning.

    def _episode(self, policy: Policy) -> tuple[Array, Array]:
        """(steps + 1, n_costs) costs and (steps + 1, agents) levels on the way to a policy."""
        levels = self._game.path(self.problem.space.encode(policy))
        costs = np.array([self._game.costs(row) for row in levels])
        return costs, levels.astype(float)

    def _learn(self) -> None:
        """One update of the team."""
        self._learner.update(self._lessons())

    def _lessons(self) -> TeamEpisodes:
        """Episodes drawn from replay, each under a preference of its own."""
        replay = self._replay
        weights = attention(self.problem, replay.outcomes)
        chosen = self.rng.choice(len(replay), size=BATCH, p=weights / weights.sum())
        return self._game.episodes(
            levels=replay.actions[chosen].astype(np.int64),
            costs=replay.states[chosen],
            final=rewards(self.problem, replay.outcomes[chosen]),
            preferences=self._draw_preferences(BATCH),
        )
