"""Deterministic actor-critic learners: DDPG and its modern twin, TD3.

- DDPG: Lillicrap et al. 2016, Continuous control with deep reinforcement learning.
- TD3: Fujimoto et al. 2018, Addressing function approximation error in actor-critic methods: two
  critics whose smaller value counts, an actor that learns less often, smoothed targets.

Actions lie in the unit cube. Deviations from the papers, each switched off by its setting:

1. `own_return`: a share of the critic's target is the return that the episode really had. With
   a reward at the end of some hundred steps, bootstrapping alone needs more episodes than
   a search can pay for.
2. `logit_penalty`: the actor is held away from the flat ends of its sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.search.networks import (
    Adam,
    Follower,
    perceptron,
    restore,
    seeded,
    stored,
    tensor,
    with_target,
)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Learning:
    """How an actor-critic learns. The defaults are DDPG's.

    Args:
        hidden: units of each of the two hidden layers of every network.
        actor_rate: step size of the actor's optimizer.
        critic_rate: step size of the critics' optimizer.
        target_step: share of the way that targets follow at every update.
        discount: of the value one step ahead, in [0, 1].
        critics: 1, or 2, of which the smaller target counts.
        actor_every: updates of the critics per update of actor and targets.
        smoothing: standard deviation of noise on target actions.
        smoothing_limit: largest absolute value of that noise.
        own_return: share of an episode's own return in the critic's target, in [0, 1].
        largest_logit: absolute value beyond which the actor's logits are penalised.
        logit_penalty: weight of that penalty.
    """

    hidden: int = 128
    actor_rate: float = 1e-3
    critic_rate: float = 2e-3
    target_step: float = 0.01
    discount: float = 1.0
    critics: int = 1
    actor_every: int = 1
    smoothing: float = 0.0
    smoothing_limit: float = 0.0
    own_return: float = 0.0
    largest_logit: float = 3.0
    logit_penalty: float = 0.1


def twin(learning: Learning) -> Learning:
    """TD3 in place of DDPG; its noise of 0.2 and 0.5, for a range of 1 in place of 2."""
    return replace(learning, critics=2, actor_every=2, smoothing=0.1, smoothing_limit=0.25)


@dataclass(frozen=True)
class Transitions:
    """What a learner is taught by.

    Args:
        states: (n, state_size) before the action.
        actions: (n, action_size) executed actions in [0, 1].
        rewards: (n,) for the action.
        next_states: (n, state_size) after it.
        last: (n,) whether the episode ended there, so that nothing is ahead.
        returns: (n,) the rest of the episode's own return; read only with `own_return`.
    """

    states: Array
    actions: Array
    rewards: Array
    next_states: Array
    last: NDArray[np.bool_]
    returns: Array


class ActorCritic:
    """An actor, its critics, and their targets.

    Args:
        state_size: length of a state.
        action_size: length of an action.
        seed: decides the first weights.
        learning: how it learns.
    """

    def __init__(self, state_size: int, action_size: int, seed: int, learning: Learning) -> None:
        self._learning = learning
        self._updates = 0
        seen = state_size + action_size

        def critics() -> nn.ModuleList:
            return nn.ModuleList(
                perceptron(seen, learning.hidden, 1) for _ in range(learning.critics)
            )

        with seeded(seed):
            self._actor, self._target_actor = with_target(
                lambda: perceptron(state_size, learning.hidden, action_size)
            )
            self._critics, self._target_critics = with_target(critics)
        self._followers = (
            Follower(self._target_critics, self._critics),
            Follower(self._target_actor, self._actor),
        )
        self._actor_step = Adam(self._actor.parameters(), learning.actor_rate)
        self._critic_step = Adam(self._critics.parameters(), learning.critic_rate)

    @torch.no_grad()
    def act(self, states: Array) -> Array:
        """(..., action_size) the actor's actions in (0, 1), without noise."""
        actions: Array = torch.sigmoid(self._actor(tensor(states))).numpy().astype(np.float64)
        return actions

    @torch.no_grad()
    def values(self, states: Array, actions: Array) -> Array:
        """(n,) the first critic's values of (n, action_size) actions."""
        pairs = torch.cat([tensor(states), tensor(actions)], 1)
        values: Array = self._critics[0](pairs)[:, 0].numpy().astype(np.float64)
        return values

    def update(self, batch: Transitions, rng: np.random.Generator) -> None:
        """One step of the critics and, when it is due, of actor and targets.

        Lillicrap et al. 2016, algorithm 1; Fujimoto et al. 2018, algorithm 1.

        Args:
            batch: transitions, sampled at random.
            rng: source of the smoothing noise.
        """
        states, actions = tensor(batch.states), tensor(batch.actions)
        targets = self._targets(batch, rng)
        pairs = torch.cat([states, actions], 1)
        losses = [nn.functional.mse_loss(critic(pairs), targets) for critic in self._critics]
        self._critic_step.descend(torch.stack(losses).sum())
        self._updates += 1
        if self._updates % self._learning.actor_every == 0:
            self._update_actor(states)

    @torch.no_grad()
    def _targets(self, batch: Transitions, rng: np.random.Generator) -> Tensor:
        """(n, 1) what the critics ought to say."""
        learning = self._learning
        following = tensor(batch.next_states)
        ahead_actions = torch.sigmoid(self._target_actor(following))
        if learning.smoothing:
            noise = learning.smoothing * rng.standard_normal(batch.actions.shape)
            limit = learning.smoothing_limit
            ahead_actions = (ahead_actions + tensor(noise.clip(-limit, limit))).clamp(0.0, 1.0)
        pairs = torch.cat([following, ahead_actions], 1)
        ahead = torch.stack([critic(pairs) for critic in self._target_critics]).amin(0)
        going = tensor(~batch.last)[:, None]
        bootstrapped = tensor(batch.rewards)[:, None] + learning.discount * going * ahead
        if not learning.own_return:
            return bootstrapped
        own = tensor(batch.returns)[:, None]
        return learning.own_return * own + (1 - learning.own_return) * bootstrapped

    def _update_actor(self, states: Tensor) -> None:
        """Climb the first critic (Silver et al. 2014, eq. 9); then targets follow."""
        logits = self._actor(states)
        value = self._critics[0](torch.cat([states, torch.sigmoid(logits)], 1)).mean()
        beyond = nn.functional.relu(logits.abs() - self._learning.largest_logit).pow(2).mean()
        self._actor_step.descend(self._learning.logit_penalty * beyond - value)
        for follower in self._followers:
            follower.follow(self._learning.target_step)

    def _networks(self) -> dict[str, nn.Module]:
        return {
            "actor": self._actor,
            "critics": self._critics,
            "target_actor": self._target_actor,
            "target_critics": self._target_critics,
        }

    def _optimizers(self) -> dict[str, Adam]:
        return {"actor_step": self._actor_step, "critic_step": self._critic_step}

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizers and the count of updates, as plain data and NumPy arrays."""
        return {"updates": self._updates, **stored(self._networks(), self._optimizers())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly."""
        self._updates = state["updates"]
        restore(self._networks(), self._optimizers(), state)
