from __future__ import annotations

import itertools

import numpy as np
import pytest

from automl_compress.evaluate import Evaluation, objective_values, references
from automl_compress.search.priors import scaled_indices
from automl_compress.search.pruning_game import PruningGame
from automl_compress.search.qmix import QMIX, WARM_UP
from automl_compress.search.reward import outcome
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=4)


def test_every_policy_is_the_end_of_an_episode_of_allowed_actions() -> None:
    problem = NETWORK.problem()
    game, rng = PruningGame(problem), np.random.default_rng(0)
    ends = [problem.space.sample(rng) for _ in range(50)]
    for end in [*ends, game.start, np.zeros_like(game.start)]:
        path = game.path(end)
        assert np.array_equal(path[0], problem.space.sizes - 1)
        assert np.array_equal(path[-1], end)
        for before, after in itertools.pairwise(path):
            allowed = game.allowed(before)
            assert allowed[np.arange(len(end)), before - after].all()


def test_an_agent_cannot_lower_its_gene_below_the_smallest_value() -> None:
    game = PruningGame(ToyNetwork(layers=1, channels=()).problem(), steps=2)
    assert game.team.actions == 3  # 5 bit-widths in 2 iterations: by 0, 1 or 2
    levels = np.array([[4], [1], [0]])
    assert game.allowed(levels)[:, 0].tolist() == [
        [True, True, True],
        [True, True, False],
        [True, False, False],
    ]


def test_rewards_of_an_episode_by_hand() -> None:
    problem = NETWORK.problem()
    game = PruningGame(problem, steps=2)
    costs = np.array([[[-2.0, 0.0], [-3.0, -0.5], [-5.0, -0.5]]])
    levels = game.path(np.zeros(len(problem.space), dtype=np.int64))[None]
    episodes = game.episodes(levels, costs, np.array([-1.5]), np.array([[0.1, 0.4]]))
    np.testing.assert_allclose(episodes.rewards, [[0.1 + 0.2, 0.2 - 1.5]])


def test_what_is_seen_in_play_is_what_is_learnt_from() -> None:
    problem = NETWORK.problem()
    game, rng = PruningGame(problem), np.random.default_rng(1)
    path, preference = game.path(problem.space.sample(rng)), np.array([0.1, 0.3])
    costs = np.array([game.costs(levels) for levels in path])
    episodes = game.episodes(path[None], costs[None], np.zeros(1), preference[None])
    for step in range(game.steps):
        seen = game.observations(step, path[step][None], preference[None])
        np.testing.assert_allclose(episodes.observations[:, step], seen)


def test_replay_holds_the_episodes_that_were_told() -> None:
    problem = NETWORK.problem()
    strategy, rng = QMIX(problem, 0), np.random.default_rng(2)
    policies = [problem.space.decode(problem.space.sample(rng)) for _ in range(5)]
    told = [ToyEstimator(NETWORK).estimate(policy) for policy in policies]
    strategy.tell(told)
    replay = strategy.state_dict()["replay"]
    for evaluation, levels, costs, found in zip(
        told, replay["actions"], replay["states"], replay["outcomes"], strict=True
    ):
        assert np.array_equal(levels[-1], problem.space.encode(evaluation.policy))
        assert np.array_equal(found, outcome(problem, evaluation))
        np.testing.assert_allclose(costs[-1], found[1:3])


def _searched(monotonic: bool, seed: int) -> list[Evaluation]:
    strategy = QMIX(NETWORK.problem(("error", "size_bytes")), seed, monotonic)
    estimator, told = ToyEstimator(NETWORK), []
    while len(told) < 90:
        evaluations = [estimator.estimate(policy) for policy in strategy.ask(5)]
        strategy.tell(evaluations)
        told += evaluations
    return told


@pytest.mark.parametrize("monotonic", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_search_is_better_than_its_warm_up(monotonic: bool) -> None:
    problem = NETWORK.problem(("error", "size_bytes"))
    _, useful = references(problem.objectives, problem.baseline)
    gains = []
    for seed in range(3):
        values = objective_values(_searched(monotonic, seed), problem.objectives)
        gains.append(useful.share(values[-WARM_UP:]) - useful.share(values[:WARM_UP]))
    assert np.mean(gains) > 0


@pytest.mark.parametrize("monotonic", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_agents_alone_learn_what_a_preference_asks_for(monotonic: bool) -> None:
    """Greedy episodes of a trained team: who pays more for bytes gets a smaller network."""
    problem = NETWORK.problem(("error", "size_bytes"))
    strategy, rng = QMIX(problem, 0, monotonic, returning=0.0), np.random.default_rng(3)
    strategy.ask(WARM_UP)
    estimator, space = ToyEstimator(NETWORK), problem.space
    for _ in range(10):
        drawn = [scaled_indices(space, rng, rng.random(), spread=0.25) for _ in range(20)]
        strategy.tell([estimator.estimate(space.decode(indices)) for indices in drawn])
    ends = strategy._play(np.array([[0.03], [2.0]]), exploring=np.zeros(2))
    sizes = [strategy._game.costs(levels)[0] for levels in ends]
    assert sizes[1] < sizes[0] - 0.3


def test_the_team_predicts_the_final_reward_of_policies() -> None:
    strategy, estimator = QMIX(NETWORK.problem(), 0), ToyEstimator(NETWORK)
    while len(strategy._replay) < 75:
        strategy.tell([estimator.estimate(policy) for policy in strategy.ask(5)])
    space, rng = NETWORK.space, np.random.default_rng(5)
    policies = [space.decode(scaled_indices(space, rng, float(rng.random()))) for _ in range(80)]
    accuracies = [NETWORK.accuracy(policy) for policy in policies]
    assert np.corrcoef(strategy._predicted(policies), accuracies)[0, 1] > 0.6
