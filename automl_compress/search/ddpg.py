"""DDPG (Lillicrap et al. 2016, Continuous control with deep reinforcement learning).

The agent walks through the genes (`layer_mdp`), as AMC (He et al. 2018) walks through layers: one
continuous action per gene, decoded to a choice. One agent covers the whole front: what actor and
critic see holds a preference, the costs the network shall have, and every episode is asked for
under a preference of its own. The reward is the accuracy kept.

Deviations from the papers:

1. Costs are computed, not learnt: when a walk is done, all its actions are shifted by one amount,
   as little as makes the network meet the preferred costs exactly as well as the choices allow.
   AMC's clamps leave the last layers to pay for all others.
2. In replay, the preference of an episode is the cost it really has (Andrychowicz et al. 2017,
   hindsight experience replay). So any evaluated policy is a lesson, whoever asked for it, and
   what an action does is judged among networks of equal cost.
3. The critic's target is half the episode's own return and half the bootstrapped value. With
   a reward at the end of some hundred steps, bootstrapping alone needs more episodes than a
   search can pay for.
4. The executed action is stored, not the wanted one: the centre of the chosen value's cell.
5. Exploration is truncated normal noise around the actor, as in AMC, whose spread decays
   slowly and not below a floor, nor below what can leave a choice's cell, so that it is alive at
   the end of a search. The actor is held away from the flat ends of its sigmoid.
6. The first episodes are drawn by `priors.scaled_indices`. Most later ones return to the policy
   that has done best under the episode's preference and decide only some of its genes anew
   (Ecoffet et al. 2021, first return, then explore): with a hundred genes, one noisy decision
   in each ruins every network.
7. Episodes that ended in a useful network are learnt from more often than ruined ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.evaluate import Evaluation
from automl_compress.pareto import front_mask
from automl_compress.search.layer_mdp import LayerMDP
from automl_compress.search.priors import (
    Draw,
    draw_new,
    mildest,
    scaled_indices,
    stratified_mildness,
)
from automl_compress.search.replay import EpisodeReplay
from automl_compress.search.strategy import TOLERATED, Problem, Seen, State, Strategy
from automl_compress.space import Indices, Policy

WARM_UP: Final = 30
HIDDEN: Final = 128
LEARNING_RATES: Final = (1e-3, 2e-3)  # actor, critic
TARGET_STEP: Final = 0.01
UPDATES_PER_EPISODE: Final = 10
BATCH: Final = 256
NOISE: Final = (0.30, 0.99, 0.08)  # first spread, decay per episode, floor
CELLS: Final = 0.6  # least spread, in cells of the gene
OWN_RETURN: Final = 0.5
RETURNING: Final = 0.8  # share of episodes that return to an evaluated policy
DECIDED_ANEW: Final = (0.03, 0.3)  # bounds of the share of its genes that they decide anew
LARGEST_LOGIT: Final = 3.0
LOGIT_PENALTY: Final = 0.1
PREFERENCE_SPREAD: Final = 0.5  # of preferred costs around a front's, in doublings
OVERRUN: Final = 2.0  # useful losses of accuracy that doubling a preferred cost is worth
HALVINGS: Final = 12

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
        self._mildest = mildest(problem)
        self._start = deque(
            self._mildest * float(m) for m in stratified_mildness(self.rng, WARM_UP)
        )
        self._episodes = 0
        self._error = problem.objectives.index("error")
        seen_size = self._mdp.state_size + len(problem.objectives) - 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(self.rng.integers(2**31)))
            self._actor, self._target_actor = _twins(seen_size)
            self._critic, self._target_critic = _twins(seen_size + 1)
        self._optimizers = [
            torch.optim.Adam(network.parameters(), rate, fused=True)
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
        space = self.problem.space
        mildness = (
            self._start.popleft() if self._start else self._mildest * float(self.rng.random())
        )
        if not len(self._seen) and self._mildest == 1.0:
            return self._new(lambda: space.sizes - 1)
        return self._new(lambda: scaled_indices(space, self.rng, mildness))

    def _episode(self) -> Policy | None:
        """One walk under a preference of its own, until it is a policy nobody tried."""
        first, decay, floor = NOISE
        spread = max(floor, first * decay**self._episodes)
        self._episodes += 1
        with _one_thread():
            return self._new(lambda: self._walk(self._draw_preference(), spread))

    def _new(self, draw: Draw) -> Policy | None:
        return draw_new(self.problem, self._seen, draw, self.rng)

    def _draw_preference(self) -> Array:
        """(n_costs,) costs near those of an evaluated network on the useful front."""
        values = self._replay.outcomes[:, :-1]
        useful = values[:, self._error] <= _damped(TOLERATED)
        among = values[useful] if useful.any() else values
        front = among[front_mask(among)]
        chosen = self._costs(front[int(self.rng.integers(len(front)))])
        preferred: Array = chosen + PREFERENCE_SPREAD * self.rng.standard_normal(len(chosen))
        return preferred

    def _costs(self, outcomes: Array) -> Array:
        """(..., n_costs) the scaled costs of (..., n_objectives) or longer outcomes."""
        count = len(self.problem.objectives)
        return np.delete(outcomes[..., :count], self._error, axis=-1)

    def _anchor(self, preference: Array) -> tuple[Array | None, float]:
        """Actions to return to, and the share of them to decide anew; none for a free walk."""
        if self.rng.random() >= RETURNING:
            return None, 1.0
        outcomes = self._replay.outcomes
        overrun = np.maximum(0.0, self._costs(outcomes) - preference).sum(axis=1)
        best = int(np.argmax(self._rewards(outcomes) - OVERRUN * overrun))
        low, high = DECIDED_ANEW
        share = low * (high / low) ** self.rng.random()
        return self._replay.actions[best], float(share)

    @torch.no_grad()
    def _walk(self, preference: Array, spread: float) -> Indices:
        """One episode, shifted to the preferred costs."""
        anchor, share = self._anchor(preference)
        cells = 1.0 / self.problem.space.sizes
        wanted, executed = np.zeros(self._mdp.steps), np.zeros(self._mdp.steps)
        for step, cell in enumerate(cells):
            if anchor is not None and self.rng.random() >= share:
                wanted[step] = anchor[step] + cell * (self.rng.random() - 0.5)
            else:
                state = np.concatenate([self._mdp.state(step, executed[:step]), preference])
                mean = float(torch.sigmoid(self._actor(_tensor(state))))
                wanted[step] = _truncated_normal(self.rng, mean, max(spread, CELLS * cell))
            executed[step] = self._mdp.execute(step, wanted[step : step + 1])[1][0]
        return self._shifted(wanted, preference)

    def _shifted(self, wanted: Array, preference: Array) -> Indices:
        """The least compressed choices, all actions moved alike, within the preferred costs."""
        space = self.problem.space
        names = [name for name in self.problem.objectives if name != "error"]
        limits = [2.0**p * self.problem.baseline[n] for p, n in zip(preference, names, strict=True)]

        def fits(shift: float) -> bool:
            costs = self.problem.cost(space.decode(space.from_unit(wanted + shift)))
            return all(costs[name] <= limit for name, limit in zip(names, limits, strict=True))

        low, high = -1.0, 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return space.from_unit(wanted + low)

    # Learning.

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Put episodes into replay, whoever asked for them, and train on it."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
            actions = self._mdp.actions(self.problem.space.encode(evaluation.policy))
            self._replay.add(self._mdp.states(actions), actions, self._outcome(evaluation))
        if self._start or len(self._replay) < 2:
            return
        with _one_thread():
            for _ in range(UPDATES_PER_EPISODE * len(evaluations)):
                self._update()

    def _attention(self) -> Array:
        """(episodes,) how often each is learnt from: useful networks more than ruined ones."""
        lost = self._replay.outcomes[:, self._error]
        attention: Array = 1.0 / (1.0 + np.maximum(lost, 0.0)) ** 2
        return attention

    def _outcome(self, evaluation: Evaluation) -> Array:
        """(n_objectives + 1,) scaled objectives, the error's damped, and the violation."""
        scaled = self.problem.scaled(self.problem.values(evaluation))
        scaled[self._error] = _damped(scaled[self._error])
        return np.append(scaled, min(10.0, self.problem.violation(evaluation)))

    def _rewards(self, outcomes: Array) -> Array:
        """(episodes,) reward: useful losses of accuracy and violations, negated."""
        return -outcomes[:, self._error] - outcomes[:, -1]

    def _update(self) -> None:
        """One step of critic, actor and targets (Lillicrap et al. 2016, algorithm 1)."""
        batch = self._replay.sample(self.rng, BATCH, self._attention())
        preferences = _tensor(self._costs(batch.outcomes))
        states = torch.cat([_tensor(batch.states), preferences], dim=1)
        following = torch.cat([_tensor(batch.next_states), preferences], dim=1)
        actions = _tensor(batch.actions)[:, None]
        returns = _tensor(self._rewards(batch.outcomes))[:, None]
        last = torch.from_numpy(batch.last)[:, None]
        with torch.no_grad():
            next_actions = torch.sigmoid(self._target_actor(following))
            ahead = self._target_critic(torch.cat([following, next_actions], 1))
            mixed = OWN_RETURN * returns + (1 - OWN_RETURN) * ahead
            targets = torch.where(last, returns, mixed)
        actor_step, critic_step = self._optimizers
        loss = nn.functional.mse_loss(self._critic(torch.cat([states, actions], 1)), targets)
        _step(critic_step, loss)
        self._critic.requires_grad_(False)  # its gradients are not needed here
        logits = self._actor(states)
        value = self._critic(torch.cat([states, torch.sigmoid(logits)], 1)).mean()
        beyond = nn.functional.relu(logits.abs() - LARGEST_LOGIT).pow(2).mean()
        _step(actor_step, LOGIT_PENALTY * beyond - value)
        self._critic.requires_grad_(True)
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


def _twins(inputs: int) -> tuple[nn.Module, nn.Module]:
    """A network and its target, equal at the start."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(inputs, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.ReLU(),
            nn.Linear(HIDDEN, 1),
        )

    network, target = build(), build()
    target.load_state_dict(network.state_dict())
    return network, target.requires_grad_(False)


def _damped(steps_lost: float) -> float:
    """Useful losses of accuracy as they are, ruinous ones by their root, so none drowns all."""
    return steps_lost if steps_lost <= 1 else 2.0 * float(np.sqrt(steps_lost)) - 1.0


def _truncated_normal(rng: np.random.Generator, mean: float, spread: float) -> float:
    """A normal draw within [0, 1], by rejection."""
    for _ in range(100):
        value = float(rng.normal(mean, spread))
        if 0.0 <= value <= 1.0:
            return value
    return min(1.0, max(0.0, mean))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, and sums must not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _follow(target: nn.Module, source: nn.Module) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), TARGET_STEP)


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
