"""Strategies by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Final

from automl_compress.errors import StudyError
from automl_compress.search.strategy import Problem, Strategy
from automl_compress.settings import suggestion

Builder = Callable[[Problem, int], Strategy]

_PLACES: Final[dict[str, tuple[str, str, dict[str, object]]]] = {
    "random": ("random_search", "RandomSearch", {}),
    "scaled-random": ("random_search", "RandomSearch", {"scaled": True}),
    "uniform": ("uniform", "Uniform", {}),
    "nsga2": ("nsga2", "NSGA2", {}),
    "nsga2-random": ("nsga2", "plain", {}),
    "nsga2-uniform": ("warm_start", "WarmNSGA2", {"first": "uniform"}),
    "nsga2-knapsack": ("warm_start", "WarmNSGA2", {"first": "knapsack"}),
    "nsga2-surrogate": ("nsga2_surrogate", "ScreenedNSGA2", {}),
    "ddpg": ("ddpg", "DDPG", {}),
    "knapsack": ("knapsack", "Knapsack", {}),
    "local": ("local", "LocalSearch", {}),
    "optuna-tpe": ("optuna_search", "OptunaSearch", {"sampler": "tpe"}),
    "optuna-nsga2": ("optuna_search", "OptunaSearch", {"sampler": "nsga2"}),
    "optuna-gp": ("optuna_search", "OptunaSearch", {"sampler": "gp"}),
    "td3": ("ddpg", "DDPG", {"twin": True}),
    "cotrim": ("ddpg", "DDPG", {"together": True}),
    "amc": ("budget_agent", "amc", {}),
    "amc-accuracy": ("budget_agent", "amc", {"meet": "reward"}),
    "haq": ("budget_agent", "haq", {}),
    "two-stage": ("two_stage", "TwoStage", {}),
    "sensitive": ("sensitive", "Sensitive", {}),
    "hybrid": ("hybrid", "Hybrid", {}),
    "qmix": ("qmix", "QMIX", {}),
    "vdn": ("qmix", "QMIX", {"monotonic": False}),
}
"""Module, class or function, settings; imported on use, for some need torch or pymoo."""


def strategy_names() -> tuple[str, ...]:
    """Every registered name."""
    return tuple(_PLACES)


def check_strategy(name: str) -> None:
    """Check that a name is registered.

    Raises:
        StudyError: it is not.
    """
    if name not in _PLACES:
        raise StudyError(
            f"a strategy must be one of {', '.join(_PLACES)}, but is '{name}'"
            f"{suggestion(name, _PLACES)}; correct it"
        )


def build_strategy(name: str, problem: Problem, seed: int) -> Strategy:
    """A fresh strategy.

    Args:
        name: a registered name.
        problem: what it searches.
        seed: decides its random choices.

    Raises:
        StudyError: the name is unknown.
    """
    check_strategy(name)
    module, kind, settings = _PLACES[name]
    found = getattr(importlib.import_module(f"automl_compress.search.{module}"), kind)
    builder: Builder = partial(found, **settings)
    return builder(problem, seed)
