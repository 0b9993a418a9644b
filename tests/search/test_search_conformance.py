from __future__ import annotations

import pytest

from automl_compress.search import strategy_names
from automl_compress.testing import (
    STRATEGY_CHECKS,
    check_second_process,
    check_seeds_differ,
    strategy_builder,
)
from automl_compress.testing.strategies import Check


@pytest.mark.parametrize("name", strategy_names())
@pytest.mark.parametrize("check", STRATEGY_CHECKS, ids=lambda check: check.__name__)
def test_strategies_conform(check: Check, name: str) -> None:
    check(strategy_builder(name))


@pytest.mark.parametrize("name", strategy_names())
def test_strategies_ask_the_same_in_a_second_process(name: str) -> None:
    check_second_process(name)


@pytest.mark.parametrize("name", [n for n in strategy_names() if n != "uniform"])
def test_seeds_differ(name: str) -> None:
    check_seeds_differ(strategy_builder(name))
