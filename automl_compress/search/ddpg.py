"""DDPG (Lillicrap et al. 2016, Continuous control with deep reinforcement learning).

The agent walks through the genes (`layer_mdp`), as AMC (He et al. 2018) walks through layers:
one continuous action per gene, decoded to a choice. One agent covers the whole front: a
preference over the objectives is part of what actor and critic see (Abels et al. 2019, dynamic
weights), and every episode is asked for under a preference of its own.

Deviations from the papers:

1. Replay holds episodes and their outcomes. The reward under any preference follows from the
   outcome, so each sampled transition is scored under a freshly drawn preference: one evaluation
   teaches the agent about all of them.
2. The critic's target is half the episode's own return and half the bootstrapped value. With
   a reward at the end of some hundred steps, bootstrapping alone needs more episodes than a
   search can pay for.
3. The executed action is stored, not the wanted one: the centre of the chosen value's cell.
4. Exploration is truncated normal noise around the actor, as in AMC, whose spread decays
   slowly and not below a floor, so that it is alive at the end of a search.
5. The first episodes are drawn by `priors.scaled_indices`, and a part of the later ones starts
   from an evaluated policy near the front, whose actions the actor's are mixed with.
6. Costs within the walk are first-order estimates; the reward uses the exact ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.evaluate import Evaluation
from automl_compress.search.layer_mdp import LayerMDP
from automl_compress.search.priors import draw_new, scaled_indices, stratified_mildness
from automl_compress.search.replay import EpisodeReplay
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Indices, Policy

WARM_UP: Final = 30
HIDDEN: Final = 128
LEARNING_RATES: Final = (1e-3, 2e-3)  # actor, critic
TARGET_STEP: Final = 0.01
UPDATES_PER_EPISODE: Final = 12
BATCH: Final = 256
NOISE: Final = (0.30, 0.99, 0.08)  # first spread, decay per episode, floor
OWN_RETURN: Final = 0.5

Array = NDArray[np.float64]


class DDPG(Strategy):
    """Deep deterministic policy gradient over the walk through a network's genes.

    Args:
        problem: what is searched.
        seed: decides every random choice.
    """

    batch = 5

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self._mdp = LayerMDP(problem)
        self._replay = EpisodeReplay(self._mdp.steps, self._mdp.state_size)
        self._seen = Seen()
        self._start = deque(float(m) for m in stratified_mildness(self.rng, WARM_UP))
        self._episodes = 0
        seen_size = self._mdp.state_size + len(problem.objectives)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.rng.integers(2**31)))
            self._actor, self._target_actor = _twins(seen_size, last=nn.Sigmoid())
            self._critic, self._target_critic = _twins(seen_size + 1, last=nn.Identity())
        self._optimizers = [
            torch.optim.Adam(network.parameters(), rate)
            for network, rate in zip((self._actor, self._critic), LEARNING_RATES, strict=True)
        ]

    # Acting.

    def ask(self, count: int) -> list[Policy]:
        """Warm-up draws, then episodes; fewer when the space is exhausted."""
        asked = []
        for _ in range(count):
            policy = self._warm_up() if self._start or not len(self._replay) else self._episode()
            if policy is None:
                break
            asked.append(policy)
        return asked

    def _warm_up(self) -> Policy | None:
        mildness = self._start.popleft() if self._start else float(self.rng.random())
        if not len(self._seen):
            return draw_new(self.problem, self._seen, lambda: self.problem.space.sizes - 1)
        return draw_new(
            self.problem,
            self._seen,
            lambda: scaled_indices(self.problem.space, self.rng, mildness),
        )

    def _episode(self) -> Policy | None:
        """One walk under a preference of its own, until it is a policy nobody tried."""
        first, decay, floor = NOISE
        spread = max(floor, first * decay**self._episodes)
        self._episodes += 1
        return draw_new(
            self.problem, self._seen, lambda: self._walk(self._draw_preferences(1)[0], spread)
        )

    @torch.no_grad()
    def _walk(self, preference: Array, spread: float) -> Indices:
        actions = np.zeros(self._mdp.steps)
        indices = np.zeros(self._mdp.steps, dtype=np.int64)
        for step in range(self._mdp.steps):
            state = self._mdp.state(step, actions[:step])
            wanted = float(self._actor(_tensor(np.concatenate([state, preference]))))
            noisy = _truncated_normal(self.rng, wanted, spread)
            indices[step], actions[step] = self._mdp.execute(step, np.array(noisy))
        return indices

    def _draw_preferences(self, count: int) -> Array:
        """(count, n_objectives) weights that sum to 1, uniform over all of them."""
        drawn: Array = self.rng.dirichlet(np.ones(len(self.problem.objectives)), size=count)
        return drawn

    # Learning.

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Put episodes into replay, whoever asked for them, and train on it."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            actions = self._mdp.actions(self.problem.space.encode(evaluation.policy))
            self._replay.add(self._mdp.states(actions), actions, self._outcome(evaluation))
        if self._start or len(self._replay) < 2:
            return
        for _ in range(UPDATES_PER_EPISODE * len(evaluations)):
            self._update()

    def _outcome(self, evaluation: Evaluation) -> Array:
        """(n_objectives + 1,) scaled objectives, the error's damped, and the violation."""
        scaled = self.problem.scaled(self.problem.values(evaluation))
        place = self.problem.objectives.index("error")
        scaled[place] = _damped(scaled[place])
        return np.append(scaled, min(10.0, self.problem.violation(evaluation)))

    def _rewards(self, outcomes: Array, preferences: Array) -> Array:
        """(n,) reward of an episode: weighted objectives and violations, all to be small."""
        return -(outcomes[:, :-1] * preferences).sum(axis=1) - outcomes[:, -1]

    def _update(self) -> None:
        """One step of critic, actor and targets (Lillicrap et al. 2016, algorithm 1)."""
        batch = self._replay.sample(self.rng, BATCH)
        weights = self._draw_preferences(BATCH)
        preferences = _tensor(weights)
        states = torch.cat([_tensor(batch.states), preferences], dim=1)
        following = torch.cat([_tensor(batch.next_states), preferences], dim=1)
        actions = _tensor(batch.actions)[:, None]
        returns = _tensor(self._rewards(batch.outcomes, weights))[:, None]
        last = torch.from_numpy(batch.last)[:, None]
        with torch.no_grad():
            ahead = self._target_critic(torch.cat([following, self._target_actor(following)], 1))
            mixed = OWN_RETURN * returns + (1 - OWN_RETURN) * ahead
            targets = torch.where(last, returns, mixed)
        actor_step, critic_step = self._optimizers
        loss = nn.functional.mse_loss(self._critic(torch.cat([states, actions], 1)), targets)
        _step(critic_step, loss)
        _step(actor_step, -self._critic(torch.cat([states, self._actor(states)], 1)).mean())
        _follow(self._target_critic, self._critic)
        _follow(self._target_actor, self._actor)

    # State.

    def _networks(self) -> dict[str, nn.Module]:
        return {
            "actor": self._actor,
            "critic": self._critic,
            "target_actor": self._target_actor,
            "target_critic": self._target_critic,
        }

    def state_dict(self) -> State:
        """Generator, replay, networks and optimizers."""
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "start": list(self._start),
            "episodes": self._episodes,
            "replay": self._replay.state_dict(),
            "networks": {n: _to_numpy(m.state_dict()) for n, m in self._networks().items()},
            "optimizers": [_to_numpy(o.state_dict()) for o in self._optimizers],
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._start = deque(state["start"])
        self._episodes = state["episodes"]
        self._replay.load_state_dict(state["replay"])
        for name, network in self._networks().items():
            network.load_state_dict(_to_torch(state["networks"][name]))
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(_to_torch(saved))


def _twins(inputs: int, last: nn.Module) -> tuple[nn.Module, nn.Module]:
    """A network and its target, equal at the start."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(inputs, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 1),
            last,
        )

    network, target = build(), build()
    target.load_state_dict(network.state_dict())
    return network, target.requires_grad_(False)


def _damped(steps_lost: float) -> float:
    """Useful losses of accuracy as they are, ruinous ones logarithmically, so none drowns all."""
    return steps_lost if steps_lost <= 1 else 1.0 + float(np.log(steps_lost))


def _truncated_normal(rng: np.random.Generator, mean: float, spread: float) -> float:
    """A normal draw within [0, 1], by rejection."""
    for _ in range(100):
        value = float(rng.normal(mean, spread))
        if 0.0 <= value <= 1.0:
            return value
    return min(1.0, max(0.0, mean))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _follow(target: nn.Module, source: nn.Module) -> None:
    with torch.no_grad():
        for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
            slow.lerp_(fast, TARGET_STEP)


def _tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.asarray(array, dtype=np.float32))


def _to_numpy(value: Any) -> Any:
    """Nested data with arrays in place of tensors, keys as texts."""
    if isinstance(value, Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, dict):
        return {str(key): _to_numpy(item) for key, item in value.items()}
    return [_to_numpy(item) for item in value] if isinstance(value, list | tuple) else value


def _to_torch(value: Any) -> Any:
    """The reverse; keys that are numbers become numbers."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {int(k) if k.isdigit() else k: _to_torch(item) for k, item in value.items()}
    return [_to_torch(item) for item in value] if isinstance(value, list) else value
