"""Strategies by name: those shipped here, and the user's own by `package.module:callable`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Final

from automl_compress.errors import StudyError
from automl_compress.search.own_strategy import OwnStrategy
from automl_compress.search.strategy import Problem, Strategy
from automl_compress.user_code import check_known_or_own, resolve

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
    """Check that a name is registered or written as a callable; nothing is imported.

    Raises:
        StudyError: it is neither.
    """
    check_known_or_own("a strategy", name, _PLACES, StudyError)


def find_strategy(name: str) -> Builder:
    """What makes a strategy, imported.

    Args:
        name: a registered name, or `package.module:callable`; the current folder is importable.

    Raises:
        StudyError: the name is unknown, there is no such callable, or a library is not installed.
    """
    check_strategy(name)
    if name not in _PLACES:
        return partial(OwnStrategy, name=name, build=resolve(name, StudyError))
    module, kind, settings = _PLACES[name]
    try:
        found = getattr(importlib.import_module(f"automl_compress.search.{module}"), kind)
    except ModuleNotFoundError as reason:
        library = str(reason.name).partition(".")[0]
        raise StudyError(
            f"strategy '{name}' needs the library '{library}', but it is not installed; leave the "
            f"strategy out, or run: pip install {library}"
        ) from reason
    return partial(found, **settings)


def build_strategy(name: str, problem: Problem, seed: int) -> Strategy:
    """A fresh strategy.

    Args:
        name: a registered name, or `package.module:callable`.
        problem: what it searches.
        seed: decides its random choices.

    Raises:
        StudyError: the name is unknown, a library is not installed, or the user's own callable does
            not make a strategy.
    """
    return find_strategy(name)(problem, seed)
