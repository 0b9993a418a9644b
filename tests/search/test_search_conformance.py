from __future__ import annotations

from typing import Any

import pytest

from automl_compress.search import Problem, Strategy, strategy_names
from automl_compress.search.optuna_search import OptunaSearch
from automl_compress.testing import (
    STRATEGY_CHECKS,
    check_second_process,
    check_seeds_differ,
    strategy_builder,
)
from automl_compress.testing.strategies import Check, check_same_seed_same_asks


def _late_gaussian_process(problem: Problem, seed: int) -> Strategy:
    """Optuna's Gaussian process proposes little of what the checks ask: it takes a second each."""
    return OptunaSearch(problem, seed, "gp", settings={"n_startup_trials": 60})


# Classes that another name covers, and what takes long.
VARIANTS = {"td3", "cotrim", "amc-accuracy", "haq", "vdn", "optuna-tpe", "nsga2-knapsack"}
SLOW = {"optuna-gp"}
NAMES: list[Any] = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW | VARIANTS))
    for name in strategy_names()
]
# What is asked in a second process, too, is asked again in this one.
CHECKS: list[Any] = [
    pytest.param(
        check,
        id=check.__name__,
        marks=[pytest.mark.slow] * (check is check_same_seed_same_asks),
    )
    for check in STRATEGY_CHECKS
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", CHECKS)
def test_strategies_conform(check: Check, name: str) -> None:
    check(_late_gaussian_process if name == "optuna-gp" else strategy_builder(name))


def test_strategies_ask_the_same_in_a_second_process() -> None:
    check_second_process(*(n for n in strategy_names() if n not in SLOW | VARIANTS))


@pytest.mark.slow
def test_variants_ask_the_same_in_a_second_process() -> None:
    check_second_process(*(n for n in strategy_names() if n in SLOW | VARIANTS))


# The line has no chance in it; what starts with it, or with probes, has none at first.
CERTAIN = {"uniform", "nsga2-uniform", "sensitive"}


@pytest.mark.parametrize("name", [n for n in strategy_names() if n not in CERTAIN])
def test_seeds_differ(name: str) -> None:
    check_seeds_differ(strategy_builder(name))
