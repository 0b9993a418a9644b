"""The learners of `ddpg` and `td3` on Gymnasium's Pendulum-v1, and by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from search_pendulum import Pendulum

from automl_compress.search.actor_critic import ActorCritic, Learning, Transitions, twin
from automl_compress.search.networks import Adam, one_thread

PENDULUM = Learning(
    critic_rate=1e-3, target_step=0.01, discount=0.98, largest_logit=10.0, actor_rate=1e-3
)
STEPS = 10_000
WARM_UP = 1_000
NOISE = 0.05  # of the range of actions, as 0.1 of the torque in rl-baselines3-zoo


def _transitions(rows: list[tuple[np.ndarray, np.ndarray, float, np.ndarray]]) -> Transitions:
    """Transitions of episodes that are cut off by time, so that something is always ahead."""
    states, actions, rewards, following = zip(*rows, strict=True)
    return Transitions(
        np.array(states), np.array(actions), np.array(rewards), np.array(following),
        np.zeros(len(rows), dtype=bool), np.zeros(len(rows)),
    )  # fmt: skip


def _trained(learning: Learning, seed: int) -> ActorCritic:
    rng = np.random.default_rng(seed)
    learner, game = ActorCritic(3, 1, seed, learning), Pendulum(rng)
    replay: list[tuple[np.ndarray, np.ndarray, float, np.ndarray]] = []
    state = game.reset()
    for step in range(STEPS):
        noisy = learner.act(state) + NOISE * rng.standard_normal(1)
        action = rng.random(1) if step < WARM_UP else noisy.clip(0.0, 1.0)
        following, reward = game.step(4.0 * float(action[0]) - 2.0)
        replay.append((state, action, reward, following))
        state = game.reset() if (step + 1) % game.steps == 0 else following
        if step >= WARM_UP:
            chosen = rng.integers(len(replay), size=128)
            learner.update(_transitions([replay[i] for i in chosen]), rng)
    return learner


def _mean_return(learner: ActorCritic, episodes: int = 50) -> float:
    total = 0.0
    game = Pendulum(np.random.default_rng(1_000))
    for _ in range(episodes):
        state = game.reset()
        for _ in range(game.steps):
            state, reward = game.step(4.0 * float(learner.act(state)[0]) - 2.0)
            total += reward
    return total / episodes


@pytest.mark.slow
@pytest.mark.parametrize("learning", [PENDULUM, twin(PENDULUM)], ids=["ddpg", "td3"])
def test_the_pendulum_is_held_up(learning: Learning) -> None:
    """rl-baselines3-zoo's DDPG, after 20,000 steps: -152 +- 94; a random one: about -1,200."""
    with one_thread():
        assert _mean_return(_trained(learning, seed=0)) >= -250


def test_a_step_of_the_pendulum_by_hand() -> None:
    game = Pendulum(np.random.default_rng(0))
    game._angle, game._speed = np.pi / 2, 1.0
    seen, reward = game.step(5.0)  # a torque above 2 counts as 2
    speed = 1.0 + (15.0 + 6.0) * 0.05
    angle = np.pi / 2 + 0.05 * speed
    np.testing.assert_allclose(seen, [np.cos(angle), np.sin(angle), speed])
    assert reward == pytest.approx(-((np.pi / 2) ** 2 + 0.1 + 0.004))


def _one(last: bool, reward: float = 1.0, own: float = 5.0) -> Transitions:
    states = np.array([[0.3, -0.2]])
    return Transitions(
        states, np.array([[0.4]]), np.array([reward]), states + 1, np.array([last]), np.array([own])
    )


def _ahead(learner: ActorCritic, batch: Transitions) -> list[float]:
    """The target critics' values of the target actor's next actions."""
    following = torch.tensor(batch.next_states, dtype=torch.float32)
    action = torch.sigmoid(learner._target_actor(following))
    pairs = torch.cat([following, action], 1)
    return [float(critic(pairs)) for critic in learner._target_critics]


def test_targets_by_hand() -> None:
    rng = np.random.default_rng(0)
    learning = Learning(discount=0.9)
    learner = ActorCritic(2, 1, 0, learning)
    (ahead,) = _ahead(learner, _one(False))
    assert float(learner._targets(_one(False), rng)) == pytest.approx(1.0 + 0.9 * ahead, rel=1e-5)
    assert float(learner._targets(_one(True), rng)) == pytest.approx(1.0)
    mixed = ActorCritic(2, 1, 0, replace(learning, own_return=0.25))
    expected = 0.25 * 5.0 + 0.75 * (1.0 + 0.9 * ahead)
    assert float(mixed._targets(_one(False), rng)) == pytest.approx(expected, rel=1e-5)


def test_the_smaller_of_two_critics_counts() -> None:
    for seed in range(5):
        learner = ActorCritic(2, 1, seed, replace(twin(Learning()), smoothing=0.0))
        first, second = _ahead(learner, _one(False))
        assert first != second
        target = float(learner._targets(_one(False), np.random.default_rng(0)))
        assert target == pytest.approx(1.0 + min(first, second), rel=1e-5)


def test_target_actions_are_smoothed_within_a_limit() -> None:
    learner = ActorCritic(2, 1, 0, replace(Learning(), smoothing=0.1, smoothing_limit=0.01))
    (exact,) = _ahead(learner, _one(False))
    rng = np.random.default_rng(0)
    found = [float(learner._targets(_one(False), rng)) - 1.0 for _ in range(20)]
    assert len(set(found)) > 1
    assert max(abs(value - exact) for value in found) < 0.05


def test_the_actor_of_td3_learns_at_every_second_update() -> None:
    learner, rng = ActorCritic(2, 1, 0, twin(Learning())), np.random.default_rng(0)
    state, actions = np.array([0.3, -0.2]), []
    for _ in range(4):
        learner.update(_one(True), rng)
        actions.append(float(learner.act(state)[0]))
    assert actions[0] != actions[1] == actions[2] != actions[3]


def test_a_learner_goes_on_from_its_state() -> None:
    state = np.array([0.1, 0.2])
    first, second = (ActorCritic(2, 1, seed, twin(Learning())) for seed in (0, 1))
    first.update(_one(False), np.random.default_rng(0))
    second.load_state_dict(first.state_dict())
    for seed in range(3):
        for learner in (first, second):
            learner.update(_one(False), np.random.default_rng(seed))
        assert first.act(state) == second.act(state)


def test_steps_are_those_of_torchs_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    first = [torch.randn(size, generator=generator) for size in ((4, 3), (4,), ())]
    ours, theirs = ([w.clone().requires_grad_() for w in first] for _ in range(2))
    own, known = Adam(ours, 0.01), torch.optim.Adam(theirs, 0.01, fused=True)
    for goal in (1.0, -2.0, 0.5, 3.0):
        own.descend(torch.stack([(weight - goal).pow(2).sum() for weight in ours]).sum())
        known.zero_grad()
        torch.stack([(weight - goal).pow(2).sum() for weight in theirs]).sum().backward()
        known.step()
        for one, other, start in zip(ours, theirs, first, strict=True):
            assert torch.equal(one, other)
            assert not torch.equal(one, start)
