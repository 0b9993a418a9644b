"""A team of agents that learns one joint value: QMIX, and VDN as its ablation.

- QMIX: Rashid et al. 2018, QMIX: monotonic value function factorisation for deep multi-agent
  reinforcement learning. Each agent values its own actions; a mixing network whose weights are
  never negative makes the joint value of them, so that every agent can act alone. Hypernetworks
  make the mixing network's weights from the global state.
- VDN: Sunehag et al. 2018, Value-decomposition networks: the joint value is the plain sum.

All agents share one recurrent network, fed with the agent's observation, its last action and its
identity. Targets are double-Q (van Hasselt et al. 2016): the learner chooses, the target judges.

Deviations from the paper:

1. Adam in place of RMSprop, and targets that follow a little at every update in place of copies
   every 200 episodes.
2. `own_return`: a share of the target is the return that the episode really had.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.search.networks import (
    Adam,
    Follower,
    restore,
    seeded,
    stored,
    tensor,
    with_target,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Team:
    """The sizes of a cooperative game.

    Args:
        agents: number of agents.
        actions: actions of each.
        observation_size: length of what an agent sees.
        state_size: length of the global state.
    """

    agents: int
    actions: int
    observation_size: int
    state_size: int


@dataclass(frozen=True)
class Mixing:
    """How a team learns.

    Args:
        monotonic: mix by hypernetworks (QMIX); otherwise by the sum (VDN).
        hidden: units of the agents' layers and of their memory.
        embedding: units of the mixing network's hidden layer.
        rate: step size of the optimizer.
        target_step: share of the way that targets follow at every update.
        discount: of the value one step ahead, in [0, 1].
        own_return: share of an episode's own return in the target, in [0, 1].
    """

    monotonic: bool = True
    hidden: int = 32
    embedding: int = 16
    rate: float = 1e-3
    target_step: float = 0.02
    discount: float = 1.0
    own_return: float = 0.0


@dataclass(frozen=True)
class TeamEpisodes:
    """Whole episodes of equal length; after the last step nothing is ahead.

    Args:
        observations: (n, steps, agents, observation_size).
        states: (n, steps, state_size).
        allowed: (n, steps, agents, actions) which actions can be taken; one at least.
        actions: (n, steps, agents) the actions taken.
        rewards: (n, steps) the team's.
    """

    observations: Array
    states: Array
    allowed: NDArray[np.bool_]
    actions: NDArray[np.int64]
    rewards: Array


class TeamLearner:
    """The agents' network, the mixer, and their targets.

    Args:
        team: sizes of the game.
        seed: decides the first weights.
        mixing: how it learns.
    """

    def __init__(self, team: Team, seed: int, mixing: Mixing) -> None:
        self._team = team
        self._mixing = mixing
        with seeded(seed):
            self._agents, self._target_agents = with_target(lambda: _Agents(team, mixing.hidden))
            self._mixer, self._target_mixer = with_target(
                lambda: _Monotonic(team, mixing.embedding) if mixing.monotonic else _Sum()
            )
        self._followers = (
            Follower(self._target_agents, self._agents),
            Follower(self._target_mixer, self._mixer),
        )
        parameters = [*self._agents.parameters(), *self._mixer.parameters()]
        self._step = Adam(parameters, mixing.rate)

    def memory(self, *teams: int) -> Array:
        """(*teams, agents, hidden) what agents remember before their first step: nothing."""
        return np.zeros((*teams, self._team.agents, self._mixing.hidden))

    @torch.no_grad()
    def values(
        self, observations: Array, last_actions: NDArray[np.int64], memory: Array
    ) -> tuple[Array, Array]:
        """The agents' values of their actions, one step on, of one team or of several at once.

        Args:
            observations: (..., agents, observation_size).
            last_actions: (..., agents) the actions taken before; -1 in the first step.
            memory: (..., agents, hidden) what the agents remember.

        Returns:
            (..., agents, actions) values, and (..., agents, hidden) the new memory.
        """
        last = _one_hot(torch.from_numpy(last_actions), self._team.actions)
        values, kept = self._agents(tensor(observations), last, tensor(memory))
        return values.numpy().astype(np.float64), kept.numpy().astype(np.float64)

    @torch.no_grad()
    def joint_values(self, episodes: TeamEpisodes) -> Array:
        """(n, steps) joint value of the actions that were taken."""
        chosen = _taken(self._unroll(self._agents, episodes), torch.from_numpy(episodes.actions))
        joint: Array = self._mixer(chosen, tensor(episodes.states)).numpy().astype(np.float64)
        return joint

    def update(self, episodes: TeamEpisodes) -> None:
        """One step of agents and mixer (Rashid et al. 2018, eq. 6); then targets follow."""
        values = self._unroll(self._agents, episodes)
        states = tensor(episodes.states)
        joint = self._mixer(_taken(values, torch.from_numpy(episodes.actions)), states)
        targets = self._targets(episodes, values.detach(), states)
        self._step.descend(nn.functional.mse_loss(joint, targets))
        for follower in self._followers:
            follower.follow(self._mixing.target_step)

    @torch.no_grad()
    def _targets(self, episodes: TeamEpisodes, values: Tensor, states: Tensor) -> Tensor:
        """(n, steps) what the joint value ought to be."""
        forbidden = torch.from_numpy(~episodes.allowed)
        greedy = values.masked_fill(forbidden, -torch.inf).argmax(-1)
        judged = _taken(self._unroll(self._target_agents, episodes), greedy)
        ahead = self._target_mixer(judged, states)[:, 1:]
        rewards = tensor(episodes.rewards)
        targets = rewards.clone()
        targets[:, :-1] += self._mixing.discount * ahead
        if not self._mixing.own_return:
            return targets
        own = _returns(rewards, self._mixing.discount)
        return self._mixing.own_return * own + (1 - self._mixing.own_return) * targets

    def _unroll(self, agents: _Agents, episodes: TeamEpisodes) -> Tensor:
        """(n, steps, agents, actions) values of all actions along episodes."""
        taken = _one_hot(torch.from_numpy(episodes.actions), self._team.actions)
        last = torch.cat([torch.zeros_like(taken[:, :1]), taken[:, :-1]], 1)
        inputs = agents.inputs(tensor(episodes.observations), last)
        memory = torch.zeros_like(inputs[:, 0])
        kept = []
        for step in range(inputs.shape[1]):
            memory = agents.remembered(inputs[:, step], memory)
            kept.append(memory)
        values: Tensor = agents.values(torch.stack(kept, 1))
        return values

    def _networks(self) -> dict[str, nn.Module]:
        return {
            "agents": self._agents,
            "mixer": self._mixer,
            "target_agents": self._target_agents,
            "target_mixer": self._target_mixer,
        }

    def state_dict(self) -> dict[str, Any]:
        """Networks and optimizer, as plain data and NumPy arrays."""
        return stored(self._networks(), {"step": self._step})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly."""
        restore(self._networks(), {"step": self._step}, state)


class _Agents(nn.Module):
    """One recurrent network for all agents; an identity is a learnt offset of its first layer."""

    def __init__(self, team: Team, hidden: int) -> None:
        super().__init__()
        self.seen = nn.Linear(team.observation_size + team.actions, hidden)
        self.identity = nn.Parameter(0.1 * torch.randn(team.agents, hidden))
        self.memory = nn.GRUCell(hidden, hidden)
        self.values = nn.Linear(hidden, team.actions)

    def forward(self, observations: Tensor, last: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """(..., agents, actions) values and (..., agents, hidden) memory, one step on."""
        kept = self.remembered(self.inputs(observations, last), memory)
        return self.values(kept), kept

    def inputs(self, observations: Tensor, last: Tensor) -> Tensor:
        """(..., agents, hidden) what goes into the memory."""
        return torch.relu(self.seen(torch.cat([observations, last], -1)) + self.identity)

    def remembered(self, inputs: Tensor, memory: Tensor) -> Tensor:
        """(..., agents, hidden) memory, one step on."""
        kept: Tensor = self.memory(inputs.flatten(0, -2), memory.flatten(0, -2))
        return kept.view(memory.shape)


class _Monotonic(nn.Module):
    """The mixing network (Rashid et al. 2018, section 4 and figure 2)."""

    def __init__(self, team: Team, embedding: int) -> None:
        super().__init__()
        self.first = nn.Linear(team.state_size, team.agents * embedding)
        self.first_bias = nn.Linear(team.state_size, embedding)
        self.second = nn.Linear(team.state_size, embedding)
        self.second_bias = nn.Sequential(
            nn.Linear(team.state_size, embedding), nn.ReLU(), nn.Linear(embedding, 1)
        )

    def forward(self, values: Tensor, states: Tensor) -> Tensor:
        """(n, steps) joint value of (n, steps, agents) values."""
        weights = self.first(states).abs().unflatten(-1, (values.shape[-1], -1))
        mixed = (values[..., None, :] @ weights).squeeze(-2) + self.first_bias(states)
        joint = (nn.functional.elu(mixed) * self.second(states).abs()).sum(-1)
        total: Tensor = joint + self.second_bias(states).squeeze(-1)
        return total


class _Sum(nn.Module):
    """VDN's mixer."""

    def forward(self, values: Tensor, _: Tensor) -> Tensor:
        """(n, steps) joint value of (n, steps, agents) values."""
        return values.sum(-1)


def _taken(values: Tensor, actions: Tensor) -> Tensor:
    return values.gather(-1, actions[..., None]).squeeze(-1)


def _one_hot(actions: Tensor, count: int) -> Tensor:
    """(..., count) zeros and a one; zeros only for -1."""
    return (actions[..., None] == torch.arange(count)).float()


def _returns(rewards: Tensor, discount: float) -> Tensor:
    """(n, steps) discounted sum of the rewards from each step on."""
    returns = rewards.clone()
    for step in reversed(range(rewards.shape[1] - 1)):
        returns[:, step] += discount * returns[:, step + 1]
    return returns
