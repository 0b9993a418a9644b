from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from automl_compress.evaluate import USEFUL_LOSS, Evaluation, objective_values, references
from automl_compress.search import Problem, Strategy, build_strategy
from automl_compress.search.archive import Archive
from automl_compress.search.nsga2 import NSGA2
from automl_compress.search.strategy import TOLERATED
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=12)


def _hypervolume(name: str, problem: Problem, seed: int, budget: int) -> float:
    strategy = build_strategy(name, problem, seed)
    estimator = ToyEstimator(NETWORK)
    told: list[Evaluation] = []
    while len(told) < budget:
        evaluations = [estimator.estimate(p) for p in strategy.ask(strategy.batch)]
        strategy.tell(evaluations)
        told += evaluations
    _, useful = references(problem.objectives, problem.baseline)
    return useful.share(objective_values(told[:budget], problem.objectives))


def test_the_toy_front_grows_beyond_scaled_random() -> None:
    problem = NETWORK.problem(("error", "size_bytes"))
    for seed in (0, 1):
        learned = _hypervolume("nsga2", problem, seed, 300)
        assert learned > _hypervolume("scaled-random", problem, seed, 300) + 0.008


def test_the_first_policy_is_the_least_compressed_and_the_rest_are_stratified() -> None:
    problem = ToyNetwork(layers=40).problem()
    asked = build_strategy("nsga2", problem, 0).ask(30)
    assert asked[0] == problem.space.largest
    means = [problem.space.to_unit(problem.space.encode(p)).mean() for p in asked[1:]]
    assert np.histogram(means, bins=4, range=(0, 1))[0].min() >= 4


def _survivors(strategy: Strategy) -> set[Policy]:
    population = strategy.state_dict()["population"]
    space = strategy.problem.space
    return {space.decode(space.repair(row)) for row in population["X"]}


def _made(policies: Iterable[Policy], accuracy: float) -> list[Evaluation]:
    return [Evaluation(p, "e", {"accuracy": accuracy, **NETWORK.costs(p)}) for p in policies]


def _policies(count: int, seed: int = 0) -> list[Policy]:
    rng = np.random.default_rng(seed)
    return [NETWORK.space.decode(NETWORK.space.sample(rng)) for _ in range(count)]


def test_what_meets_the_constraints_survives_what_does_not() -> None:
    problem = NETWORK.problem(("error", "size_bytes"), ["accuracy >= 0.9"])
    policies = _policies(12)
    strategy = NSGA2(problem, 0, population=4)
    strategy.tell(_made(policies[:8], 0.899))  # useful, but below the constraint
    strategy.tell(_made(policies[8:], 0.91))
    assert _survivors(strategy) == set(policies[8:])


def test_among_those_that_break_constraints_the_least_survive() -> None:
    problem = NETWORK.problem(("error", "size_bytes"), ["accuracy >= 0.9"])
    policies = _policies(12)
    strategy = NSGA2(problem, 0, population=4)
    strategy.tell(_made(policies[:4], 0.88))
    strategy.tell(_made(policies[4:], 0.86))
    assert _survivors(strategy) == set(policies[:4])


def test_ruined_failed_and_nan_never_push_out_what_works() -> None:
    problem = NETWORK.problem(("error", "size_bytes"))
    works, *others = _policies(16)
    ruined = 1.0 - problem.baseline["error"] - TOLERATED * USEFUL_LOSS - 0.01
    strategy = NSGA2(problem, 0, population=1)
    strategy.tell(_made([works], 0.9))
    strategy.tell(_made(others[:5], ruined))
    strategy.tell(_made(others[5:10], math.nan))
    strategy.tell([Evaluation.failed(p, "e", "no memory") for p in others[10:]])
    assert _survivors(strategy) == {works}


def test_ruined_networks_may_be_kept() -> None:
    problem = NETWORK.problem(("error", "size_bytes"))
    strategy = NSGA2(problem, 0, population=2, keep_ruined=True)
    extremes = [NETWORK.space.largest, NETWORK.space.smallest]
    strategy.tell([ToyEstimator(NETWORK).estimate(p) for p in extremes])
    strategy.tell(_made(_policies(3), 0.0))
    assert _survivors(strategy) == set(extremes)


def test_nothing_is_ruined_as_far_as_the_only_hypervolume_reaches() -> None:
    problem = replace(NETWORK.problem(("error", "size_bytes")), counted_error=0.95)
    small, large = NETWORK.space.smallest, NETWORK.space.largest
    told = [*_made([large], 0.9), *_made(_policies(3), 0.3), *_made([small], 0.1)]
    strategy, archive = NSGA2(problem, 0, population=2), Archive(problem)
    for part in (told[:1], told[1:]):
        strategy.tell(part)
    assert _survivors(strategy) == {large, small}
    for evaluation in told:
        archive.add(evaluation)
    assert len(archive) > 2
    archive.add(_made([NETWORK.space.decode(np.ones(24, dtype=np.int64))], 0.04)[0])
    assert max(archive.values[:, 0]) == pytest.approx(0.9)


def test_state_holds_the_population_with_its_values() -> None:
    problem = NETWORK.problem(("error", "size_bytes"))
    strategy = build_strategy("nsga2", problem, 0)
    estimator = ToyEstimator(NETWORK)
    evaluations = [estimator.estimate(p) for p in strategy.ask(60)]
    assert strategy.state_dict()["population"] is None
    strategy.tell(evaluations[:50])
    strategy.tell(evaluations[50:])
    population = strategy.state_dict()["population"]
    by_policy = {e.policy: e for e in evaluations}
    assert population["X"].shape == (20, len(problem.space))
    for row, values in zip(population["X"], population["F"], strict=True):
        policy = problem.space.decode(problem.space.repair(row))
        assert np.array_equal(values, problem.values(by_policy[policy]))


def test_no_child_is_a_duplicate_in_a_small_space() -> None:
    network = ToyNetwork(layers=2, channels=(8, 16), weight_bits=(2, 4, 8))
    strategy = build_strategy("nsga2", network.problem(), 0)
    found: list[Policy] = []
    while asked := strategy.ask(4):
        found += asked
        strategy.tell([ToyEstimator(network).estimate(p) for p in asked])
    assert len(found) == len(set(found)) == network.space.cardinality


def test_a_population_that_stands_still_is_no_end() -> None:
    """pymoo ends a run of its own when nothing changes for some thirty generations."""
    problem = NETWORK.problem(("error", "size_bytes"))
    strategy = NSGA2(problem, 0, population=4)
    best = _made([problem.space.largest], 1.0)
    poor = _made(_policies(4), 0.86)
    strategy.tell(best + poor)
    for _ in range(150):
        strategy.tell(poor)
    assert len(strategy.ask(5)) == 5


def test_the_plain_form_starts_anywhere_and_keeps_what_is_small_and_ruined() -> None:
    problem = ToyNetwork(layers=40).problem()
    strategy = build_strategy("nsga2-random", problem, 0)
    space = problem.space
    asked = strategy.ask(strategy.batch)
    assert len(asked) == 20
    means = [space.to_unit(space.encode(policy)).mean() for policy in asked]
    assert np.std(means) < 0.05
    assert space.largest not in asked
    strategy.tell(
        [Evaluation(p, "e", {"accuracy": 0.1, **problem.cost(p)}) for p in [space.smallest]]
        + [Evaluation(p, "e", {"accuracy": 0.9, **problem.cost(p)}) for p in asked]
    )
    assert space.smallest in _survivors(strategy)
