"""The learner of `qmix` and `vdn` on the two-step game of Rashid et al. 2018, section 5."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from search_two_step import PAYOFF_2A, PAYOFF_2B, TWO_STEP_TEAM, two_step_episodes

from automl_compress.search.networks import one_thread
from automl_compress.search.value_mixing import Mixing, Team, TeamEpisodes, TeamLearner

DISCOUNT = 0.99


def _learnt(monotonic: bool, updates: int, seed: int = 0) -> TeamLearner:
    """A learner that has seen all actions equally often, as in the paper."""
    mixing = Mixing(
        monotonic=monotonic, hidden=16, embedding=8, rate=3e-3, target_step=0.02, discount=DISCOUNT
    )
    learner = TeamLearner(TWO_STEP_TEAM, seed, mixing)
    rng = np.random.default_rng(seed)
    with one_thread():
        for _ in range(updates):
            learner.update(two_step_episodes(rng.integers(0, 2, (32, 2, 2))))
    return learner


def _joint_values(learner: TeamLearner) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(2, 2) of the first state, and (2, 2, 2) of 2A and 2B, by the agents' actions."""
    actions = np.array(list(itertools.product((0, 1), repeat=4))).reshape(16, 2, 2)
    values = learner.joint_values(two_step_episodes(actions)).reshape(2, 2, 2, 2, 2)
    return values[:, :, 0, 0, 0], values[:, 0, :, :, 1]


def _greedy_payoff(learner: TeamLearner) -> float:
    """What the agents earn when each takes the action it values most."""
    memory, last = learner.memory(), np.array([-1, -1])
    state = 0
    for step in range(2):
        seen = np.repeat(np.eye(3)[state][None], 2, axis=0)
        values, memory = learner.values(seen, last, memory)
        last = values.argmax(axis=1)
        if step == 0:
            state = 1 + int(last[0])
    return float((PAYOFF_2A, PAYOFF_2B)[state - 1][tuple(last)])


def test_qmix_finds_the_payoff_of_8_and_the_joint_values_of_the_paper() -> None:
    learner = _learnt(monotonic=True, updates=1_200)
    first, second = _joint_values(learner)
    assert _greedy_payoff(learner) == 8
    np.testing.assert_allclose(first, [[6.93, 6.93], [7.92, 7.92]], atol=0.1)
    np.testing.assert_allclose(second, [PAYOFF_2A, PAYOFF_2B], atol=0.1)


@pytest.mark.slow
def test_vdn_settles_for_7_as_its_sums_must() -> None:
    learner = _learnt(monotonic=False, updates=1_200)
    first, second = _joint_values(learner)
    assert _greedy_payoff(learner) == 7
    # The additive fit of least squares to the payoffs of 2B: row and column means less the mean.
    rows, columns = PAYOFF_2B.mean(axis=1), PAYOFF_2B.mean(axis=0)
    fit = rows[:, None] + columns - PAYOFF_2B.mean()
    np.testing.assert_allclose(second[1], fit, atol=0.35)
    np.testing.assert_allclose(second[0], PAYOFF_2A, atol=0.35)
    assert first[0].min() > first[1].max()


def _random_episodes(team: Team, count: int, steps: int, seed: int) -> TeamEpisodes:
    rng = np.random.default_rng(seed)
    shape = (count, steps, team.agents)
    return TeamEpisodes(
        observations=rng.standard_normal((*shape, team.observation_size)),
        states=rng.standard_normal((count, steps, team.state_size)),
        allowed=np.ones((*shape, team.actions), dtype=bool),
        actions=rng.integers(0, team.actions, shape),
        rewards=rng.standard_normal((count, steps)),
    )


def test_the_joint_value_never_falls_when_an_agents_value_rises() -> None:
    team = Team(agents=4, actions=3, observation_size=5, state_size=6)
    mixer = TeamLearner(team, 0, Mixing())._mixer
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 1, 4, generator=generator, requires_grad=True)
    states = torch.randn(20, 1, 6, generator=generator)
    (slopes,) = torch.autograd.grad(mixer(values, states).sum(), values)
    assert (slopes >= 0).all()
    assert (slopes > 0).any()


def test_values_step_by_step_are_those_of_whole_episodes() -> None:
    team = Team(agents=3, actions=4, observation_size=2, state_size=3)
    learner = TeamLearner(team, 1, Mixing(monotonic=False))
    episodes = _random_episodes(team, count=1, steps=3, seed=0)
    memory, last = learner.memory(), np.full(3, -1)
    for step, joint in enumerate(learner.joint_values(episodes)[0]):
        values, memory = learner.values(episodes.observations[0, step], last, memory)
        last = episodes.actions[0, step]
        assert values[range(3), last].sum() == pytest.approx(joint, abs=1e-5)


def test_only_allowed_actions_are_ahead() -> None:
    """With one allowed action its value alone, judged by the target, is bootstrapped."""
    team = Team(agents=1, actions=2, observation_size=1, state_size=1)
    learner = TeamLearner(team, 2, Mixing(monotonic=False, discount=0.5))
    episodes = _random_episodes(team, count=4, steps=2, seed=1)
    for only in (0, 1):
        allowed = np.zeros_like(episodes.allowed)
        allowed[..., only] = True
        actions = episodes.actions.copy()
        actions[:, 1] = only
        told = TeamEpisodes(
            episodes.observations, episodes.states, allowed, actions, episodes.rewards
        )
        values = learner._unroll(learner._agents, told)
        targets = learner._targets(told, values, torch.zeros(4, 2, 1)).numpy()
        ahead = learner.joint_values(told)[:, 1]  # targets are still equal to the learner
        np.testing.assert_allclose(targets[:, 0], told.rewards[:, 0] + 0.5 * ahead, atol=1e-5)
        np.testing.assert_allclose(targets[:, 1], told.rewards[:, 1], atol=1e-6)


def test_a_learner_goes_on_from_its_state() -> None:
    team = Team(agents=2, actions=2, observation_size=2, state_size=2)
    first, second = TeamLearner(team, 0, Mixing()), TeamLearner(team, 1, Mixing())
    batches = [_random_episodes(team, 3, 2, seed) for seed in range(3)]
    first.update(batches[0])
    second.load_state_dict(first.state_dict())
    for batch in batches[1:]:
        first.update(batch)
        second.update(batch)
        assert np.array_equal(first.joint_values(batch), second.joint_values(batch))
