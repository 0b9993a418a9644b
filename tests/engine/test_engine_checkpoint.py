from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from automl_compress.engine.checkpoint import load_state, save_state
from automl_compress.search import build_strategy, strategy_names
from automl_compress.testing import ToyEstimator, ToyNetwork

STATE = {
    "numbers": [1, 2.5, None, True, 2**127],
    "arrays": {"a": np.arange(6.0).reshape(2, 3), "deep": [{"b": np.array([True, False])}]},
    "empty": [{}, [], np.zeros((0, 4))],
    "text": "é",
}


def _assert_same(one: object, other: object) -> None:
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert list(one) == list(other)
        for key in one:
            _assert_same(one[key], other[key])
    elif isinstance(one, list):
        assert isinstance(other, list)
        for a, b in zip(one, other, strict=True):
            _assert_same(a, b)
    elif isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other
        assert type(one) is type(other)


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    save_state(tmp_path / "state.npz", STATE)
    _assert_same(STATE, load_state(tmp_path / "state.npz"))


def test_nothing_pickled_is_written(tmp_path: Path) -> None:
    save_state(tmp_path / "state.npz", STATE)
    with np.load(tmp_path / "state.npz", allow_pickle=False) as stored:
        assert all(stored[name].dtype != object for name in stored.files)


def test_no_part_is_left_beside_it(tmp_path: Path) -> None:
    save_state(tmp_path / "state.npz", STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["state.npz"]


# One of each kind of state; the conformance checks have all strategies' states stored and read.
KINDS = {"random", "nsga2", "ddpg", "qmix", "optuna-tpe", "hybrid"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in KINDS)) for n in strategy_names()]
)
def test_every_strategy_goes_on_from_a_saved_state(name: str, tmp_path: Path) -> None:
    network = ToyNetwork(layers=3)
    problem, estimator = network.problem(), ToyEstimator(network)
    first = build_strategy(name, problem, 5)
    for _ in range(4):
        first.tell([estimator.estimate(policy) for policy in first.ask(10)])
    save_state(tmp_path / "state.npz", first.state_dict())
    second = build_strategy(name, problem, 6)
    second.load_state_dict(load_state(tmp_path / "state.npz"))
    _assert_same(first.state_dict(), second.state_dict())
    for _ in range(2):
        asked = first.ask(6)
        assert second.ask(6) == asked
        answers = [estimator.estimate(policy) for policy in asked]
        first.tell(answers)
        second.tell(answers)
