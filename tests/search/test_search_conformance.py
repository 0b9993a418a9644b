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
from automl_compress.testing.strategies import (
    Check,
    check_cost_constraints,
    check_failures,
    check_nothing_is_asked_twice,
    check_policies_belong_to_the_space,
    check_same_seed_same_asks,
    check_state_resumes,
    check_tiny_space_ends,
)


def _late_gaussian_process(problem: Problem, seed: int) -> Strategy:
    """Optuna's Gaussian process proposes little of what the checks ask: it takes a second each."""
    return OptunaSearch(problem, seed, "gp", settings={"n_startup_trials": 60})


# Classes that another name covers, and what takes long.
VARIANTS = {"td3", "cotrim", "amc-accuracy", "haq", "vdn", "optuna-tpe", "nsga2-knapsack"}
SLOW = {"optuna-gp"}
# What is made of others, which are checked by themselves, takes seconds for each check.
COMPOSED = {"amc", "hybrid", "sensitive", "two-stage"}
CORE = {
    check_policies_belong_to_the_space,
    check_nothing_is_asked_twice,
    check_tiny_space_ends,
    check_cost_constraints,
    check_failures,
    check_state_resumes,
}


def _marks(check: Check, name: str) -> list[Any]:
    # What is asked in a second process, too, is asked again in this one.
    if check is check_same_seed_same_asks or name in SLOW | VARIANTS:
        return [pytest.mark.slow]
    return [pytest.mark.slow] * (name in COMPOSED and check not in CORE)


@pytest.mark.parametrize(
    ("check", "name"),
    [
        pytest.param(check, name, id=f"{check.__name__}-{name}", marks=_marks(check, name))
        for check in STRATEGY_CHECKS
        for name in strategy_names()
    ],
)
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
