from __future__ import annotations

import itertools

import numpy as np
import pytest

from automl_compress.evaluate import Evaluation, objective_values, references
from automl_compress.search import build_strategy
from automl_compress.search.additive_model import NOISE, NOISES, AdditiveModel
from automl_compress.search.knapsack import Knapsack
from automl_compress.search.record import milestone
from automl_compress.space import Gene, SearchSpace
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=4)


def _told(network: ToyNetwork, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Policies drawn near the largest, and their harms."""
    rng = np.random.default_rng(seed)
    space = network.space
    rows = np.stack([space.from_unit(1 - 0.6 * rng.random(len(space))) for _ in range(count)])
    accuracy = [network.accuracy(space.decode(row)) for row in rows]
    return rows, np.log(network.accuracy(space.largest) / np.array(accuracy))


def test_harms_are_predicted_where_they_add_up() -> None:
    rows, harms = _told(NETWORK, 60)
    model = AdditiveModel(NETWORK.space, rows, harms)
    new, expected = _told(NETWORK, 40, seed=1)
    found = np.array([model.mean().harm(row) for row in new])
    assert np.abs(found - expected).max() < 0.15 * expected.max()


def test_what_was_measured_is_known_better() -> None:
    space = NETWORK.space
    base = space.sizes - 1
    one = base.copy()
    one[3] = 0
    model = AdditiveModel(space, np.stack([base, one]), np.array([0.0, 0.3]))
    deviations = model.deviations
    assert deviations[3] < 0.6 * np.delete(deviations, 3).min()
    strengths = model.mean()
    assert strengths.harm(one) == pytest.approx(0.3, abs=0.1)


def test_pairs_learn_what_two_genes_do_together() -> None:
    space = SearchSpace(
        [Gene("channels:a", "channels", (1, 2, 4)), Gene("weight_bits:a", "weight_bits", (2, 4, 8))]
    )
    rows = np.array(list(itertools.product(range(3), repeat=2)))
    harms = np.array([0.0 if 2 in row else 0.2 for row in rows])
    together = AdditiveModel(space, np.repeat(rows, 5, axis=0), np.repeat(harms, 5))
    alone = AdditiveModel(space, np.repeat(rows, 5, axis=0), np.repeat(harms, 5), pairs=False)
    both = np.zeros(2, dtype=np.int64)
    assert together.mean().pairs[0, 1] > 0
    assert not alone.mean().pairs.any()
    error = abs(together.mean().harm(both) - 0.2)
    assert error < abs(alone.mean().harm(both) - 0.2)


def _all_harmed(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Policies that are cut about as hard as each other, and their harms."""
    rng = np.random.default_rng(seed)
    space = NETWORK.space
    rows = np.stack([space.from_unit(0.6 * rng.random(len(space))) for _ in range(count)])
    accuracy = [NETWORK.accuracy(space.decode(row)) for row in rows]
    return rows, np.log(NETWORK.accuracy(space.largest) / np.array(accuracy))


def test_where_all_are_harmed_the_likeliest_noise_tells_more_of_them_apart() -> None:
    (rows, harms), (new, expected) = _all_harmed(40, 0), _all_harmed(60, 1)
    errors = {}
    for noises in ((NOISE,), NOISES):
        model = AdditiveModel(NETWORK.space, rows, harms, noises=noises)
        errors[model.shape.noise] = np.std([model.mean().harm(row) for row in new] - expected)
    assert list(errors) == [NOISE, min(NOISES)]
    assert errors[min(NOISES)] < 0.8 * errors[NOISE]
    unexplained = harms * np.exp(np.random.default_rng(2).normal(0, 0.3, len(harms)))
    assert AdditiveModel(NETWORK.space, rows, unexplained, noises=NOISES).shape.noise == NOISE


@pytest.mark.parametrize(("constraint", "bound"), [("macs <= 0.2x", True), ("macs <= 1x", False)])
def test_noise_is_chosen_where_constraints_leave_the_uncompressed_network_out(
    constraint: str, bound: bool
) -> None:
    problem = NETWORK.problem(constraints=[constraint])
    strategy = Knapsack(problem, 0)
    rows, _ = _all_harmed(40, 0)
    strategy.tell([ToyEstimator(NETWORK).estimate(NETWORK.space.decode(row)) for row in rows])
    assert (strategy._model().shape.noise < NOISE) == bound


def test_draws_spread_around_the_mean() -> None:
    rows, harms = _told(NETWORK, 10)
    model = AdditiveModel(NETWORK.space, rows, harms)
    rng = np.random.default_rng(0)
    drawn = np.stack([model.draw(rng).single for _ in range(400)])
    assert (drawn > 0).all()
    ratio = drawn.std(axis=0) / model.deviations
    assert ratio.max() < 1.15  # draws below the floor are raised to it
    assert np.median(ratio) > 0.4


def test_a_chain_is_the_exact_front_of_an_additive_problem() -> None:
    """Bits only, sizes additive: by brute force, no policy of a chain is beaten at its size."""
    network = ToyNetwork(layers=4, channels=(), weight_bits=(2, 4, 8))
    problem = network.problem(("error", "size_bytes"))
    strategy = Knapsack(problem, 0)
    space = network.space
    rows = np.array(list(itertools.product(range(3), repeat=4)))
    harms = np.log(0.94 / np.array([network.accuracy(space.decode(row)) for row in rows]))
    strengths = AdditiveModel(space, rows, harms, pairs=False).mean()
    chain = strategy._chain(strengths, np.ones(1))
    assert (np.diff(chain, axis=0) <= 0).all()
    assert np.array_equal(chain[0], space.sizes - 1)
    assert not chain[-1].any()
    sizes = np.array([network.costs(space.decode(row))["size_bytes"] for row in rows])
    lost = np.array([strengths.harm(row) for row in rows])
    for row in chain:
        size, harm = network.costs(space.decode(row))["size_bytes"], strengths.harm(row)
        assert lost[sizes <= size].min() >= harm - 1e-6


@pytest.mark.parametrize(("harm", "together"), [(6.0, False), (0.2, True)])
def test_probes_cut_several_genes_where_one_would_drown_in_noise(
    harm: float, together: bool
) -> None:
    network = ToyNetwork(layers=8, harm=harm)
    problem = network.problem()
    strategy = Knapsack(problem, 0)
    estimator = ToyEstimator(network)
    space = problem.space
    while not (strategy.state_dict()["probed"] > 0).all():
        strategy.tell([estimator.estimate(p) for p in strategy.ask(5)])
    told = strategy.state_dict()["record"]["indices"]
    extreme = ((told == space.sizes - 1) | (told == 0)).all(axis=1)
    changed = (told[extreme] == 0).sum(axis=1)
    assert (changed == 0).sum() == 1  # the least compressed network itself
    assert len(told) < 3 * len(space)
    assert (np.sort(changed)[-3] > 1) == together


def test_it_beats_random_and_evolution_on_the_toy() -> None:
    """The toy's harms add up, as the model assumes; this says that the parts fit together."""
    network = ToyNetwork(layers=12)
    problem = network.problem(("error", "size_bytes"))
    estimator = ToyEstimator(network)
    _, useful = references(problem.objectives, problem.baseline)
    reached = {}
    for name in ("scaled-random", "nsga2", "knapsack"):
        strategy = build_strategy(name, problem, 0)
        told: list[Evaluation] = []
        while len(told) < 60:
            evaluations = [estimator.estimate(policy) for policy in strategy.ask(5)]
            strategy.tell(evaluations)
            told += evaluations
        reached[name] = useful.share(objective_values(told, problem.objectives))
    assert reached["knapsack"] > max(reached["scaled-random"], reached["nsga2"]) + 0.015


def test_shapes_are_chosen_at_milestones_only() -> None:
    counts = (0, 1, 2, 9, 19, 20, 21, 22, 23, 41)
    assert [milestone(count) for count in counts] == [0, 1, 2, 9, 19, 20, 20, 22, 22, 39]
    problem, estimator = NETWORK.problem(), ToyEstimator(NETWORK)
    strategy = Knapsack(problem, 0)
    rows, _ = _told(NETWORK, 41)
    evaluations = [estimator.estimate(NETWORK.space.decode(row)) for row in rows]
    strategy.tell(evaluations[:40])
    before = strategy._model()
    strategy.tell(evaluations[40:])
    after = strategy._model()
    assert after.shape is before.shape
    assert (after.mean().single != before.mean().single).any()  # all that is told still counts
    restored = Knapsack(problem, 1)
    restored.load_state_dict(strategy.state_dict())
    assert (restored._model().mean().single == after.mean().single).all()
