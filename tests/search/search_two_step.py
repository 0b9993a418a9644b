"""A game of other people, on which teams are proven before they are trusted with networks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.value_mixing import Team, TeamEpisodes

TWO_STEP_TEAM = Team(agents=2, actions=2, observation_size=3, state_size=3)
PAYOFF_2A = np.full((2, 2), 7.0)
PAYOFF_2B = np.array([[0.0, 1.0], [1.0, 8.0]])


def two_step_episodes(actions: NDArray[np.int64]) -> TeamEpisodes:
    """The two-step game of Rashid et al. 2018, section 5.

    In the first state the first agent's action leads to state 2A or 2B; there, the payoff matrix
    pays both. Both agents see the state.

    Args:
        actions: (n, 2, 2) by step and agent, in {0, 1}.
    """
    first, second = actions[:, 0], actions[:, 1]
    states = np.zeros((len(actions), 2, 3))
    states[:, 0, 0] = 1.0
    states[np.arange(len(actions)), 1, 1 + first[:, 0]] = 1.0
    payoffs = np.stack([PAYOFF_2A, PAYOFF_2B])[first[:, 0], second[:, 0], second[:, 1]]
    return TeamEpisodes(
        observations=np.repeat(states[:, :, None], 2, axis=2),
        states=states,
        allowed=np.ones((len(actions), 2, 2, 2), dtype=bool),
        actions=actions,
        rewards=np.stack([np.zeros(len(actions)), payoffs], axis=1),
    )
