"""Strategies of the user's own: found by name, and told in one line what no strategy may do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automl_compress.errors import StudyError
from automl_compress.search import (
    RungOffer,
    Strategy,
    build_strategy,
    check_strategy,
    find_strategy,
)
from automl_compress.testing import STRATEGY_CHECKS, ToyEstimator, ToyNetwork, strategy_builder
from automl_compress.testing.strategies import Check

NETWORK = ToyNetwork(layers=2)
HEAD = """
import numpy as np
from automl_compress.search import OnRung, Strategy
from automl_compress.search.random_search import RandomSearch
from automl_compress.space import Policy

class Mine(RandomSearch):
    pass

def build(problem, seed):
    return RandomSearch(problem, seed, scaled=True)

class Halves:
    Mine = Mine

value = 3
"""

Write = Callable[[str], None]


@pytest.fixture
def plug(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the module `plug_of_tests` into the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text: str) -> None:
        monkeypatch.delitem(sys.modules, "plug_of_tests", raising=False)
        (tmp_path / "plug_of_tests.py").write_text(HEAD + text)

    write("")
    return write


def _mine(methods: str, plug: Write) -> Strategy:
    """The strategy of a class with some methods of its own."""
    plug(f"class Wrong(RandomSearch):\n    {methods}\n")
    return build_strategy("plug_of_tests:Wrong", NETWORK.problem(), 0)


@pytest.mark.usefixtures("plug")
@pytest.mark.parametrize("check", STRATEGY_CHECKS, ids=lambda check: check.__name__)
def test_what_holds_it_to_the_contract_keeps_it_too(check: Check) -> None:
    check(find_strategy("plug_of_tests:Mine"))


@pytest.mark.usefixtures("plug")
@pytest.mark.parametrize(
    ("own", "shipped"), [("Mine", "random"), ("Halves.Mine", "random"), ("build", "scaled-random")]
)
def test_it_asks_what_it_would_without_a_name(own: str, shipped: str) -> None:
    name = f"plug_of_tests:{own}"
    expected = build_strategy(shipped, NETWORK.problem(), 3).ask(8)
    assert build_strategy(name, NETWORK.problem(), 3).ask(8) == expected
    assert strategy_builder(name)(NETWORK.problem(), 3).ask(8) == expected


def test_names_are_checked_without_an_import() -> None:
    check_strategy("no_such_module:Strategy")
    for wrong in ("no_such_module", "no such:Strategy", "no_such:"):
        with pytest.raises(StudyError, match=r"'package\.module:callable'") as caught:
            check_strategy(wrong)
        assert f"is '{wrong}'" in str(caught.value)


@pytest.mark.usefixtures("plug")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:Strategy", "no module 'no_such_module'; correct the part before the"),
        ("plug_of_tests:Missing", "has no 'Missing'; correct the part after the colon"),
        ("plug_of_tests:value", "a function or class, but is of type int; name something that"),
        ("plug_of_tests:Policy.from_json", "TypeError: .*; correct it"),
        ("plug_of_tests:np.add", "must give .*Strategy, but .* type|must not fail"),
    ],
)
def test_what_makes_no_strategy_is_refused(name: str, said: str) -> None:
    with pytest.raises(StudyError, match=said) as caught:
        build_strategy(name, NETWORK.problem(), 0)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def wrong(problem, seed): return None", "gave one of type NoneType; derive"),
        ("def wrong(problem): pass", "'plug_of_tests:wrong' must not fail, but raised TypeError"),
        ("def wrong(*_): raise KeyError('x')", "raised KeyError: 'x'; correct it"),
        ("def wrong(*_): raise SystemExit(3)", "raised SystemExit: 3"),
        ("wrong = Strategy", "raised TypeError: .*abstract"),
        ("raise ValueError('two\\nlines')", "importing .* raised ValueError: two lines"),
    ],
)
def test_what_fails_to_make_one_is_told(text: str, said: str, plug: Write) -> None:
    plug(text)
    with pytest.raises(StudyError, match=said) as caught:
        build_strategy("plug_of_tests:wrong", NETWORK.problem(), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("def ask(self, count): return 1 / 0", "'ask' of .* raised ZeroDivisionError"),
        ("def ask(self, count): return None", "'ask' of .* raised TypeError"),
        ("def ask(self, count): return super().ask(count + 1)", "asked for, 4, but asks for 5"),
        ("def ask(self, count): return [3]", "asks for one of type int"),
        ("def ask(self, count): return [Policy({})]", "of the space: .*lacks"),
        ("def tell(self, evaluations): evaluations[9]", "'tell' of .* raised IndexError"),
        ("batch = 0", "a batch of at least 1, but has 0"),
        ("batch = 'many'", "a batch of at least 1, but has 'many'"),
        ("batch = property(lambda self: 1 / 0)", "'batch' of .* raised ZeroDivisionError"),
        ("def ask_rungs(self, budget): return self.rungs", "'ask_rungs' of .* AttributeError"),
        (
            "def ask_rungs(self, budget): return [OnRung(self.ask(1)[0], 'half')]",
            "a rung of full by OnRung, but asks for OnRung",
        ),
        ("def ask_rungs(self, budget): return self.ask(1)", "but asks for Policy"),
        ("def state_dict(self): return {'f': [self.ask]}", r"\['f'\]\[0\] is of type method"),
        ("def state_dict(self): return {1: 2}", r"state_dict\(\) is of type dict"),
        ("def state_dict(self): return np.array([None])", "is of type ndarray"),
        ("def load_state_dict(self, state): state['x']", "'load_state_dict' of .* KeyError: 'x'"),
        ("def skip_start(self): raise OSError", "'skip_start' of .* raised OSError;"),
        ("def plan(self): return 1 / 0", "'plan' of .* raised ZeroDivisionError"),
    ],
)
def test_what_no_strategy_may_do_is_told(methods: str, said: str, plug: Write) -> None:
    plug(f"class Wrong(RandomSearch):\n    {methods}\n")
    problem = replace(NETWORK.problem(), rungs={"full": RungOffer("full", 2)})
    strategy = build_strategy("plug_of_tests:Wrong", problem, 0)

    def use() -> None:
        assert strategy.batch
        assert strategy.plan() == []
        strategy.ask_rungs(10)
        asked = strategy.ask(4)
        strategy.tell([ToyEstimator(NETWORK).estimate(policy) for policy in asked])
        strategy.skip_start()
        strategy.load_state_dict(strategy.state_dict())

    with pytest.raises(StudyError, match=said) as caught:
        use()
    message = str(caught.value)
    assert "strategy 'plug_of_tests:Wrong'" in message
    assert "\n" not in message


def test_its_batch_may_change_and_what_it_is_told_is_its_own(plug: Write) -> None:
    strategy = _mine(
        "batch = np.int64(3)\n"
        "    def tell(self, evaluations):\n"
        "        super().tell(evaluations)\n"
        "        self.batch = 5\n"
        "        evaluations.clear()",
        plug,
    )
    assert strategy.batch == 3
    assert type(strategy.batch) is int
    told = [ToyEstimator(NETWORK).estimate(policy) for policy in strategy.ask(3)]
    strategy.tell(told)
    assert len(told) == 3
    assert strategy.batch == 5


def test_any_plain_state_is_kept(plug: Write) -> None:
    strategy = _mine(
        "def state_dict(self):\n"
        "        return {'a': [1, 2.0, 'x', None, True], 'b': (np.ones(2), np.float32(1))}",
        plug,
    )
    assert np.array_equal(strategy.state_dict()["b"][0], np.ones(2))
