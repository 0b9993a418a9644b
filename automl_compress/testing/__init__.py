"""Conformance suites that every implementation must pass, third parties' too, and a toy problem."""

from automl_compress.testing.strategies import (
    STRATEGY_CHECKS,
    check_second_process,
    check_seeds_differ,
    strategy_builder,
)
from automl_compress.testing.toy import ToyEstimator, ToyNetwork

__all__ = [
    "STRATEGY_CHECKS",
    "ToyEstimator",
    "ToyNetwork",
    "check_second_process",
    "check_seeds_differ",
    "strategy_builder",
]
