"""NSGA-II warm started and screened: strategies made of strategies."""

from __future__ import annotations

import numpy as np
import pytest

from automl_compress.evaluate import Evaluation
from automl_compress.search import build_strategy, uniform_policies
from automl_compress.search.nsga2_surrogate import ScreenedNSGA2
from automl_compress.search.warm_start import WarmNSGA2
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=6)
ESTIMATOR = ToyEstimator(NETWORK)


def _estimates(policies: list[Policy]) -> list[Evaluation]:
    return [ESTIMATOR.estimate(policy) for policy in policies]


@pytest.mark.parametrize("first", ["uniform", "scaled-random", "knapsack"])
def test_a_warm_start_asks_what_the_first_strategy_asks(first: str) -> None:
    problem = NETWORK.problem()
    strategy = WarmNSGA2(problem, 3, first, evaluations=12)
    seeds = np.random.default_rng(3).integers(2**31, size=2)
    alone = build_strategy(first, problem, int(seeds[0]))
    for _ in range(3):
        asked = strategy.ask(4)
        assert asked == alone.ask(4)
        for one in (strategy, alone):
            one.tell(_estimates(asked))
    assert strategy.ask(4) != alone.ask(4)


def test_evolution_goes_on_from_what_the_first_strategy_found() -> None:
    problem = NETWORK.problem()
    strategy = WarmNSGA2(problem, 0, "uniform", evaluations=10)
    first = strategy.ask(10)
    assert first == uniform_policies(problem.space)[:10]
    strategy.tell(_estimates(first))
    population = strategy.state_dict()["evolution"]["population"]["X"]
    assert {problem.space.decode(problem.space.repair(row)) for row in population} == set(first)
    children = [problem.space.encode(policy) for policy in strategy.ask(10)]
    uniform = [problem.space.encode(policy) for policy in first]
    assert any((child == parent).mean() > 0.5 for child in children for parent in uniform)


def test_evolution_after_the_uniform_line_depends_on_the_seed() -> None:
    asked = []
    for seed in (0, 1):
        strategy = WarmNSGA2(NETWORK.problem(), seed, "uniform", evaluations=10)
        strategy.tell(_estimates(strategy.ask(10)))
        asked.append(strategy.ask(5))
    assert asked[0] != asked[1]


def test_a_first_strategy_that_ends_early_hands_over() -> None:
    network = ToyNetwork(layers=3, channels=(), weight_bits=(2, 4, 8))
    problem = network.problem()
    strategy = WarmNSGA2(problem, 0, "uniform", evaluations=20)
    asked = strategy.ask(5)
    assert asked[:3] == uniform_policies(problem.space)
    assert len(asked) == 5


def test_offspring_are_not_asked_for_yet() -> None:
    problem = NETWORK.problem()
    evolution = ScreenedNSGA2(problem, 0)._evolution
    evolution.tell(_estimates(evolution.ask(12)))
    before = evolution.state_dict()["seen"]
    assert len(set(evolution.offspring(40))) == 40
    assert evolution.state_dict()["seen"] == before


def test_screening_chooses_what_promises_most() -> None:
    """Of a pool, the chosen children add more hypervolume than the pool's average."""
    problem = NETWORK.problem(("error", "size_bytes"))
    strategy = ScreenedNSGA2(problem, 1)
    for _ in range(8):
        strategy.tell(_estimates(strategy.ask(5)))
    cells = strategy._record.cells()

    def gain(policies: list[Policy]) -> float:
        errors = [1 - NETWORK.accuracy(policy) for policy in policies]
        return float(cells.gains(strategy._record.shares(policies), np.array(errors)).mean())

    pool = strategy._evolution.offspring(100)
    assert gain(strategy.ask(5)) > 2 * gain(pool)


def test_failed_networks_teach_nothing_but_do_no_harm() -> None:
    problem = NETWORK.problem()
    strategy = ScreenedNSGA2(problem, 1)
    for _ in range(5):
        asked = strategy.ask(5)
        strategy.tell([Evaluation.failed(policy, "e", "no memory") for policy in asked])
    assert len(strategy.ask(5)) == 5
