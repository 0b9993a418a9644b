"""Search strategies: ask, tell, and nothing else. They never see a model."""

from automl_compress.search.registry import (
    build_strategy,
    check_strategy,
    find_strategy,
    strategy_names,
)
from automl_compress.search.strategy import OnRung, Problem, RungOffer, State, Strategy
from automl_compress.search.uniform import uniform_policies

__all__ = [
    "OnRung",
    "Problem",
    "RungOffer",
    "State",
    "Strategy",
    "build_strategy",
    "check_strategy",
    "find_strategy",
    "strategy_names",
    "uniform_policies",
]
