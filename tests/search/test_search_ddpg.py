from __future__ import annotations

import copy
import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from automl_compress.evaluate import USEFUL_LOSS, Evaluation, objective_values, references
from automl_compress.search import Problem, build_strategy, ddpg
from automl_compress.search.ddpg import DDPG, NOISE, WARM_UP
from automl_compress.search.layer_mdp import LayerMDP
from automl_compress.search.replay import EpisodeReplay
from automl_compress.search.reward import rewards, scaled_costs
from automl_compress.space import SearchSpace
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=4)


def _with_features(problem: Problem) -> Problem:
    rng = np.random.default_rng(0)
    return Problem(
        problem.space, problem.objectives, problem.baseline, problem.cost,
        features=rng.random((len(problem.space), 5)),
    )  # fmt: skip


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("problem", [NETWORK.problem(), _with_features(NETWORK.problem())])
def test_states_of_an_episode_are_the_states_of_its_steps(problem: Problem, together: bool) -> None:
    mdp = LayerMDP(problem, together)
    point = np.random.default_rng(1).random(len(problem.space))
    rows = mdp.states(point)
    assert rows.shape == (mdp.steps, mdp.state_size)
    decided: list[int] = []
    for step in range(mdp.steps):
        known = np.full(len(point), np.nan)  # what is not decided yet must not be read
        known[decided] = point[decided]
        np.testing.assert_allclose(mdp.state(step, known), rows[step], atol=1e-12)
        decided += mdp.genes(step)


def _uneven(problem: Problem) -> Problem:
    """Bits come first in the space, and the last layer has no channels to cut."""
    genes = [g for g in problem.space if g.kind == "weight_bits"]
    genes += [g for g in problem.space if g.kind == "channels"][:-1]
    return replace(problem, space=SearchSpace(genes))


def test_a_layers_genes_are_decided_together() -> None:
    mdp = LayerMDP(_uneven(NETWORK.problem()), together=True)
    assert [mdp.genes(step) for step in range(mdp.steps)] == [[0, 4], [1, 5], [2, 6], [3]]
    assert mdp.action_size == 2
    action = np.array([0.1, 0.9])  # channels, bits
    assert mdp.wanted(0, action).tolist() == [0.9, 0.1]
    assert mdp.wanted(3, action).tolist() == [0.9]


@pytest.mark.parametrize("together", [True, False])
def test_actions_lead_back_to_their_point(together: bool) -> None:
    mdp, rng = LayerMDP(_uneven(NETWORK.problem()), together), np.random.default_rng(3)
    point = rng.random(7)
    actions = mdp.actions(point, rng)
    assert actions.shape == (mdp.steps, mdp.action_size)
    assert np.array_equal(mdp.point(actions), point)


def test_a_state_by_hand() -> None:
    problem = NETWORK.problem()
    features = np.zeros((8, 3))
    features[:, 1] = [4, 0, 0, 0, 1, 0, 0, 0]  # share of bytes
    features[:, 2] = 1.0  # share of multiply-accumulates
    mdp = LayerMDP(
        Problem(problem.space, problem.objectives, problem.baseline, problem.cost, (), features)
    )
    state = mdp.state(2, np.array([0.25, 0.5, *np.ones(6)]))
    saved = [0.75 * 0.8, 0.75 / 8 + 0.5 / 8]
    left = [0.2, 6 / 8]
    np.testing.assert_allclose(state, [0, 0, 1, 2 / 7, *saved, *left, 0.5])


@pytest.mark.parametrize(("wanted", "index"), [(0.0, 0), (0.24, 0), (0.26, 1), (0.99, 3), (1.0, 3)])
def test_the_executed_action_is_the_centre_of_the_chosen_cell(wanted: float, index: int) -> None:
    mdp = LayerMDP(NETWORK.problem())  # gene 0 has four channel counts
    chosen, executed = mdp.execute(0, np.array([wanted]))
    assert (chosen.tolist(), executed.tolist()) == ([index], [(index + 0.5) / 4])


def _told(
    count: int,
    problem: Problem | None = None,
    seed: int = 0,
    settings: dict[str, bool] | None = None,
) -> tuple[DDPG, list[Evaluation]]:
    strategy = DDPG(problem or NETWORK.problem(), seed, **(settings or {}))
    estimator = ToyEstimator(NETWORK)
    told: list[Evaluation] = []
    while len(told) < count:
        evaluations = [estimator.estimate(p) for p in strategy.ask(5)]
        strategy.tell(evaluations)
        told += evaluations
    return strategy, told


@functools.cache
def _told_once() -> tuple[DDPG, list[Evaluation]]:
    return _told(75)


def _learnt() -> tuple[DDPG, list[Evaluation]]:
    """A strategy halfway through a search, of the caller's own."""
    return copy.deepcopy(_told_once())


def test_replay_holds_the_episodes_that_were_told() -> None:
    strategy, told = _told(15)
    space, mdp = strategy.problem.space, LayerMDP(strategy.problem)
    replay = strategy.state_dict()["replay"]
    assert len(replay["actions"]) == len(told)
    for evaluation, states, actions in zip(told, replay["states"], replay["actions"], strict=True):
        assert np.array_equal(actions[:, 0], space.to_unit(space.encode(evaluation.policy)))
        assert np.array_equal(states, mdp.states(actions[:, 0]))


def _episodes(count: int = 6, steps: int = 4) -> tuple[EpisodeReplay, NDArray[np.float64]]:
    """Episodes whose states say which episode and step they are."""
    replay = EpisodeReplay(steps, 2)
    states = np.array([[(e, s) for s in range(steps)] for e in range(count)], dtype=float)
    for episode in range(count):
        replay.add(states[episode], states[episode, :, 1] / 10, np.array([float(episode)]))
    return replay, states


def test_replay_gives_only_transitions_that_were_taken() -> None:
    replay, _ = _episodes()
    batch = replay.sample(np.random.default_rng(0), 500, np.ones(len(replay)))
    episodes, steps = batch.states.T
    assert {(e, s) for e, s in batch.states} == {(e, s) for e in range(6) for s in range(4)}
    assert np.array_equal(batch.actions, steps / 10)
    assert np.array_equal(batch.outcomes[:, 0], episodes)
    assert np.array_equal(batch.last, steps == 3)
    going = ~batch.last
    assert np.array_equal(batch.next_states[going], batch.states[going] + [0, 1])
    assert (batch.next_states[batch.last] == 0).all()


def test_replay_drops_the_oldest() -> None:
    replay = EpisodeReplay(1, 1, capacity=3)
    for number in range(5):
        replay.add(np.full((1, 1), number), np.zeros(1), np.array([float(number)]))
    assert replay.outcomes[:, 0].tolist() == [2, 3, 4]
    assert len(replay) == 3


def test_outcome_and_reward_by_hand() -> None:
    problem = NETWORK.problem(("error", "size_bytes", "macs"), ["accuracy >= 0.92"])
    strategy = DDPG(problem, 0)
    policy = problem.space.decode(problem.space.sizes // 2)
    costs = NETWORK.costs(policy)
    strategy.tell([Evaluation(policy, "e", {"accuracy": 0.90, **costs})])
    outcomes = strategy.state_dict()["replay"]["outcomes"]
    lost = (0.10 - 0.06) / 0.10  # of a useful loss
    halvings = [math.log2(costs[n] / NETWORK.baseline[n]) for n in ("size_bytes", "macs")]
    excess = (0.10 - 0.08) / 0.08
    np.testing.assert_allclose(outcomes, [[lost, *halvings, excess]])
    np.testing.assert_allclose(rewards(problem, outcomes), [-lost - excess])
    np.testing.assert_allclose(scaled_costs(problem, outcomes), [halvings])


def test_ruin_and_failure_count_as_a_damped_loss() -> None:
    strategy = DDPG(NETWORK.problem(), 0)
    first, second = NETWORK.space.largest, NETWORK.space.smallest
    strategy.tell([
        Evaluation.failed(first, "e", "no memory"),
        Evaluation(second, "e", {"accuracy": math.nan, **NETWORK.costs(second)}),
    ])  # fmt: skip
    outcomes = strategy.state_dict()["replay"]["outcomes"]
    assert outcomes[:, 0] == pytest.approx(2 * math.sqrt(9.4) - 1)
    assert outcomes[1, 1] == pytest.approx(
        math.log2(NETWORK.costs(second)["size_bytes"] / NETWORK.baseline["size_bytes"])
    )


def test_a_walk_keeps_within_the_preferred_costs_and_comes_near() -> None:
    strategy, _ = _learnt()
    problem = strategy.problem
    wanted = np.full(len(problem.space), 0.9)
    for share in (0.1, 0.15):
        preference = np.log2([share, 1.0])
        policy = problem.space.decode(strategy._shifted(wanted, preference))
        size = problem.cost(policy)["size_bytes"] / problem.baseline["size_bytes"]
        assert size <= share
        relaxed = preference + np.array([0.5, 0.0])
        milder = problem.space.decode(strategy._shifted(wanted, relaxed))
        assert problem.cost(milder)["size_bytes"] > problem.cost(policy)["size_bytes"]


def test_preferences_spread_over_the_useful_front() -> None:
    strategy, told = _learnt()
    problem = strategy.problem
    drawn = strategy._draw_preferences(200)
    sizes = [np.log2(e.minimised("size_bytes") / problem.baseline["size_bytes"]) for e in told]
    assert drawn[:, 0].std() > 0.2
    assert min(sizes) - 2 < drawn[:, 0].min() < drawn[:, 0].max() < max(sizes) + 2


@pytest.mark.slow
def test_asks_stay_different_in_a_space_of_many_genes() -> None:
    network = ToyNetwork(layers=43)
    problem = network.problem()
    strategy, estimator = DDPG(problem, 0), ToyEstimator(network)
    for _ in range(24):
        strategy.tell([estimator.estimate(policy) for policy in strategy.ask(5)])
    places = [problem.space.to_unit(problem.space.encode(p)) for p in strategy.ask(10)]
    assert np.array(places).std(axis=0).mean() > 0.03


def test_exploration_is_alive_halfway_through_a_search() -> None:
    strategy, _ = _learnt()
    assert NOISE.spread(strategy.state_dict()["episodes"]) >= 0.15
    space = strategy.problem.space
    places = np.array([space.to_unit(space.encode(p)) for p in strategy.ask(20)])
    assert places.std(axis=0).min() > 0.05


@pytest.mark.parametrize(
    "settings",
    [{}, *(pytest.param({name: True}, marks=pytest.mark.slow) for name in ("twin", "together"))],
    ids=str,
)
def test_the_search_is_better_than_its_warm_up(settings: dict[str, bool]) -> None:
    problem = NETWORK.problem(("error", "size_bytes"))
    _, useful = references(problem.objectives, problem.baseline)
    _, told = _told(90, problem, settings=settings)
    values = objective_values(told, problem.objectives)
    useful_networks = values[:, 0] <= problem.baseline["error"] + USEFUL_LOSS
    assert useful_networks[-WARM_UP:].sum() > useful_networks[:WARM_UP].sum()
    drawn = build_strategy("scaled-random", problem, 0).ask(len(told))  # the warm-up gone on with
    warm_up = [ToyEstimator(NETWORK).estimate(policy) for policy in drawn]
    assert useful.share(values) > useful.share(objective_values(warm_up, problem.objectives))


def test_walks_side_by_side_are_walks_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is left to chance, a walk does not depend on who walks beside it."""
    strategy, _ = _told(40)
    monkeypatch.setattr(ddpg, "truncated_normal", lambda _, means, __: means)
    genes = len(NETWORK.space)  # all decided anew
    monkeypatch.setattr(
        strategy, "_anchors", lambda p: (np.zeros((len(p), genes)), np.ones(len(p)))
    )
    preferences = np.log2([[0.1, 0.3], [0.2, 0.2], [0.15, 0.5]])

    def walked(chosen: list[int]) -> list[list[int]]:
        monkeypatch.setattr(strategy, "_draw_preferences", lambda _: preferences[chosen])
        return [walk.tolist() for walk in strategy._ends(np.ones(len(chosen)))]

    together = walked([0, 1, 2])
    assert together == [*walked([0]), *walked([1]), *walked([2])]
    assert together[0] != together[1]


def test_the_number_of_threads_is_left_alone_and_changes_nothing() -> None:
    before = torch.get_num_threads()
    try:
        asked = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            strategy, _ = _told(35)
            asked.append(strategy.ask(3))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert asked[0] == asked[1]


def test_the_critic_tells_good_walks_from_bad_ones_of_equal_cost() -> None:
    """That small networks lose more is easily learnt; here their bytes are taken out."""
    strategy, _ = _learnt()
    space, rng = NETWORK.space, np.random.default_rng(5)
    policies = [space.decode(space.sample(rng)) for _ in range(150)]
    predicted = strategy._predicted(policies)
    sizes = np.log([NETWORK.costs(policy)["size_bytes"] for policy in policies])
    harms = -np.log([NETWORK.accuracy(policy) for policy in policies])
    left = [x - np.polyval(np.polyfit(sizes, x, 2), sizes) for x in (predicted, harms)]
    assert np.corrcoef(left)[0, 1] < -0.25
