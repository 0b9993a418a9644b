"""Conformance checks for search strategies: what every implementation must keep.

A check takes a builder, `(problem, seed) -> strategy`, and raises `AssertionError` with the rule
that was broken. In a test suite::

    @pytest.mark.parametrize("check", STRATEGY_CHECKS, ids=lambda check: check.__name__)
    def test_my_strategy(check):
        check(MyStrategy)

`check_second_process` takes importable names in place of a builder, and `check_seeds_differ`
holds for strategies that draw at random; neither is part of `STRATEGY_CHECKS`.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from automl_compress.evaluate import DIVERGENCE, Evaluation
from automl_compress.search import (
    Problem,
    RungOffer,
    State,
    Strategy,
    build_strategy,
    strategy_names,
)
from automl_compress.space import Policy
from automl_compress.testing.toy import ToyEstimator, ToyNetwork
from automl_compress.user_code import resolve

Builder = Callable[[Problem, int], Strategy]
Check = Callable[[Builder], None]

_NETWORK: Final = ToyNetwork()
_ROUNDS: Final = 5


def strategy_builder(name: str) -> Builder:
    """The builder behind a registered name, or behind `package.module:callable`."""
    if name in strategy_names():
        return lambda problem, seed: build_strategy(name, problem, seed)
    return resolve(name)


# What is asked.


def check_policies_belong_to_the_space(build: Builder) -> None:
    """Every policy asked for is one of the space's, in any batch size, also before any tell."""
    problem = _NETWORK.problem()
    for count in (1, 2, 7, 1_000):
        strategy = build(problem, 0)
        asked = strategy.ask(count)
        _expect(0 < len(asked) <= count, f"ask({count}) gave {len(asked)} policies")
        _check_members(problem, asked)
        _check_distinct(asked)


def check_nothing_is_asked_twice(build: Builder) -> None:
    """One instance never asks for a policy again, also when the space runs out."""
    for network in (_NETWORK, ToyNetwork(layers=2, channels=(), weight_bits=(2, 4, 8))):
        strategy = build(network.problem(), 1)
        _check_distinct(
            policy for asked in _asks(strategy, ToyEstimator(network)) for policy in asked
        )


def check_one_gene(build: Builder) -> None:
    """A space of one gene is searched to its end."""
    network = ToyNetwork(layers=1, channels=())
    problem = network.problem()
    strategy = build(problem, 0)
    found = [p for asked in _rounds(strategy, ToyEstimator(network), count=2) for p in asked]
    _check_members(problem, found)
    _check_distinct(found)
    _expect(len(found) == len(network.weight_bits), f"{len(found)} of 5 policies were found")


def check_tiny_space_ends(build: Builder) -> None:
    """In a space of two policies both are asked for, then nothing."""
    network = ToyNetwork(layers=1, channels=(), weight_bits=(4, 8))
    for told in (True, False):
        strategy = build(network.problem(), 3)
        found = strategy.ask(1)
        if told:
            strategy.tell(_estimates(ToyEstimator(network), found))
        found += strategy.ask(5)
        _check_distinct(found)
        _expect(len(found) == 2, f"{len(found)} of 2 policies were asked for")
        if told:
            strategy.tell(_estimates(ToyEstimator(network), found[1:]))
        _expect(strategy.ask(1) == [], "an exhausted space must give an empty ask")
        _expect(strategy.ask(10) == [], "an exhausted space must stay exhausted")


def check_cost_constraints(build: Builder) -> None:
    """Nothing is asked for that is known to break a constraint on costs.

    Some of the toy's policies meet the first, hardly any meet the last.
    """
    for text in ("size_bytes <= 0.1x", "macs <= 0.3x", "size_bytes <= 0.03x"):
        problem = _NETWORK.problem(constraints=[text])
        strategy = build(problem, 5)
        for asked in _asks(strategy, ToyEstimator(_NETWORK)):
            for policy in asked:
                excess = problem.cost_violation(policy)
                _expect(excess == 0, f"'{text}' is exceeded by {excess:.3f} in {policy}")


# What decides it.


def check_same_seed_same_asks(build: Builder) -> None:
    """Equal seeds and equal tells give equal asks, whatever the global generators hold."""
    with _GlobalGenerators() as generators:
        first = trace(build, 11)
        generators.advance()
        _check_same(first, trace(build, 11), "another run in this process")


def check_second_process(*names: str, seed: int = 11) -> None:
    """Equal seeds and equal tells give equal asks in another process.

    Args:
        names: registered strategies, or `package.module:callable`; one process asks them all.
        seed: the strategies' seed.
    """
    code = "import sys; from automl_compress.testing.strategies import print_traces; print_traces()"
    done = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", code, str(seed), *names], capture_output=True, text=True, check=False
    )
    _expect(done.returncode == 0, f"the second process failed: {done.stderr[-2000:]}")
    for name, elsewhere in zip(names, json.loads(done.stdout), strict=True):
        _check_same(trace(strategy_builder(name), seed), elsewhere, f"{name} in a second process")


def check_seeds_differ(build: Builder) -> None:
    """Different seeds give different searches."""
    _expect(trace(build, 1, 1) != trace(build, 2, 1), "seeds 1 and 2 give the same asks")


def check_global_generators(build: Builder) -> None:
    """The generators of `random`, NumPy and torch are left as they were."""
    with _GlobalGenerators() as generators:
        before = generators.states()
        trace(build, 4)
        for name, (old, new) in zip(
            generators.names, zip(before, generators.states(), strict=True), strict=True
        ):
            _expect(old == new, f"the global generator of {name} was used")


# What it is told.


def check_ask_before_tell(build: Builder) -> None:
    """Asking again before anything is told gives new policies."""
    problem = _NETWORK.problem()
    strategy = build(problem, 2)
    first, second = strategy.ask(5), strategy.ask(5)
    _expect(bool(second), "the second ask before any tell gave nothing")
    strategy.tell(_estimates(ToyEstimator(_NETWORK), [*second, *first]))
    asked = [*first, *second, *strategy.ask(5)]
    _check_members(problem, asked)
    _check_distinct(asked)


def check_tell_in_any_way(build: Builder) -> None:
    """Tells may come out of order, in part, one by one, late, or empty."""
    problem, estimator = _NETWORK.problem(), ToyEstimator(_NETWORK)
    strategy = build(problem, 6)
    asked: list[Policy] = []
    late: list[Evaluation] = []
    for number in range(_ROUNDS):
        batch = strategy.ask(8)
        asked += batch
        evaluations = _estimates(estimator, batch)
        kept, lost = evaluations[: 1 + number % 8], evaluations[1 + number % 8 :]
        strategy.tell([])
        for evaluation in kept[::-1]:
            strategy.tell([evaluation])
        strategy.tell(late)
        late = lost[:3]
    _check_members(problem, asked)
    _check_distinct(asked)


def check_failures(build: Builder) -> None:
    """Failed and NaN evaluations neither stop a search nor spread NaN, alone or mixed."""
    problem = _NETWORK.problem(constraints=["accuracy >= 0.5"])
    for failing, nan in ((0.3, 0.3), (1.0, 0.0), (0.0, 1.0)):
        strategy = build(problem, 7)
        asked = [p for b in _rounds(strategy, ToyEstimator(_NETWORK, failing, nan)) for p in b]
        _check_members(problem, asked)
        _check_distinct(asked)
        for array in _arrays(strategy.state_dict()):
            _expect(not np.isnan(array).any(), "NaN is kept in the strategy's state")


def check_any_loss(build: Builder) -> None:
    """Where the divergence is minimised, it takes the place of the error everywhere."""
    errors = _NETWORK.problem(constraints=["error <= 0.5", "size_bytes <= 0.5x"])
    renamed = {"error": DIVERGENCE}
    divergences = replace(
        errors,
        objectives=tuple(renamed.get(name, name) for name in errors.objectives),
        baseline={renamed.get(name, name): value for name, value in errors.baseline.items()},
        constraints=tuple(
            replace(limit, metric=renamed.get(limit.metric, limit.metric))
            for limit in errors.constraints
        ),
    )
    by_error, by_divergence = build(errors, 10), build(divergences, 10)
    told: list[Evaluation] = []
    for number in range(_ROUNDS):
        by_error.tell(told)
        by_divergence.tell([_diverging(evaluation) for evaluation in told])
        asked = by_error.ask(8)
        same = [policy.key for policy in by_divergence.ask(8)] == [policy.key for policy in asked]
        _expect(same, f"ask {number} differs where the same loss is the divergence")
        told = _estimates(ToyEstimator(_NETWORK, failing=0.1), asked)


def _diverging(evaluation: Evaluation) -> Evaluation:
    """The error as a divergence, beside an accuracy that says nothing."""
    if not evaluation.ok:
        return evaluation
    losses = {"accuracy": 0.5, DIVERGENCE: evaluation.minimised("error")}
    return replace(evaluation, metrics={**evaluation.metrics, **losses})


def check_foreign_evaluations(build: Builder) -> None:
    """What was never asked for may be told, before the first ask and in between."""
    problem, estimator = _NETWORK.problem(), ToyEstimator(_NETWORK, failing=0.1)
    rng = np.random.default_rng(0)
    strategy = build(problem, 8)
    asked: list[Policy] = []
    for _ in range(3):
        foreign = [problem.space.decode(problem.space.sample(rng)) for _ in range(6)]
        strategy.tell(_estimates(estimator, foreign))
        batch = strategy.ask(6)
        _expect(bool(batch), "nothing is asked after foreign evaluations")
        asked += batch
        strategy.tell(_estimates(estimator, batch))
    _check_members(problem, asked)
    _check_distinct(asked)


# What it is saved as.


def check_rungs(build: Builder) -> None:
    """Rungs are asked for only where they are offered, and their evaluations can be told."""
    _expect(not build(_NETWORK.problem(), 3).ask_rungs(10), "a rung is asked for, none is offered")
    offer = RungOffer("toy-rung", 2)
    problem = replace(_NETWORK.problem(), rungs={"full": offer})
    strategy, estimator = build(problem, 3), ToyEstimator(_NETWORK)
    for _ in range(_ROUNDS):
        wanted = strategy.ask_rungs(10)
        _expect(all(w.rung in problem.rungs for w in wanted), f"{wanted} are not all offered")
        _check_members(problem, [w.policy for w in wanted])
        found = _estimates(estimator, [w.policy for w in wanted])
        answers = [replace(evaluation, estimator=offer.estimator) for evaluation in found]
        strategy.tell([*answers, *_estimates(estimator, strategy.ask(6))])
    stored_and_read(strategy.state_dict())


def check_state_is_plain(build: Builder) -> None:
    """The state holds nothing but what JSON and NumPy archives can hold."""
    for rounds in (0, 1, _ROUNDS):
        strategy = build(_NETWORK.problem(), 9)
        list(_rounds(strategy, ToyEstimator(_NETWORK), rounds))
        _check_plain(strategy.state_dict(), "state")


def check_state_resumes(build: Builder) -> None:
    """A fresh instance with a saved state goes on as if it had never stopped.

    Saved before the first ask, after a few rounds, with policies out, and after many rounds.
    """
    problem, estimator = _NETWORK.problem(), ToyEstimator(_NETWORK, failing=0.1, nan=0.05)
    for rounds, waiting in ((0, 0), (1, 5), (_ROUNDS, 3)):
        going = build(problem, 10)
        list(_rounds(going, estimator, rounds))
        out = going.ask(waiting) if waiting else []
        saved = stored_and_read(going.state_dict())
        fresh = build(problem, 99)
        fresh.load_state_dict(saved)
        _expect_equal(fresh.state_dict(), going.state_dict(), "state after loading")
        for strategy in (going, fresh):
            strategy.tell(_estimates(estimator, out))
        for number, (expected, found) in enumerate(
            zip(_asks(going, estimator, 3), _asks(fresh, estimator, 3), strict=True)
        ):
            _expect(
                found == expected,
                f"after {rounds} rounds with {waiting} out, ask {number} after loading differs",
            )


def check_state_is_a_snapshot(build: Builder) -> None:
    """A state that was taken does not change when the strategy goes on."""
    strategy = build(_NETWORK.problem(), 12)
    estimator = ToyEstimator(_NETWORK)
    list(_rounds(strategy, estimator))
    state = strategy.state_dict()
    before = stored_and_read(state)
    list(_rounds(strategy, estimator, 3))
    _expect_equal(state, before, "a state taken earlier")


STRATEGY_CHECKS: Final[tuple[Check, ...]] = (
    check_policies_belong_to_the_space,
    check_nothing_is_asked_twice,
    check_one_gene,
    check_tiny_space_ends,
    check_cost_constraints,
    check_same_seed_same_asks,
    check_global_generators,
    check_ask_before_tell,
    check_tell_in_any_way,
    check_failures,
    check_any_loss,
    check_foreign_evaluations,
    check_rungs,
    check_state_is_plain,
    check_state_resumes,
    check_state_is_a_snapshot,
)
"""Every check that takes a builder and holds for all strategies."""


# Tools.


def trace(build: Builder, seed: int, rounds: int = _ROUNDS) -> list[list[str]]:
    """Keys of what a strategy asks on the toy problem, round by round.

    Args:
        build: makes the strategy.
        seed: its seed.
        rounds: how often it is asked for 8 policies and told all of them.
    """
    network = replace(_NETWORK, layers=7)
    strategy = build(network.problem(), seed)
    estimator = ToyEstimator(network, failing=0.05, nan=0.05)
    return [[policy.key for policy in asked] for asked in _asks(strategy, estimator, rounds)]


def print_traces() -> None:
    """Print the traces of the seed and the strategies that the process was given, as JSON."""
    seed, *names = sys.argv[1:]
    print(json.dumps([trace(strategy_builder(name), int(seed)) for name in names]))


def stored_and_read(state: State) -> State:
    """A state written as JSON text and a NumPy archive without pickles, and read back."""
    arrays: dict[str, Any] = {}

    def emptied(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[f"array{len(arrays)}"] = value
            return {"array": f"array{len(arrays) - 1}"}
        if isinstance(value, dict):
            return {"dict": {key: emptied(item) for key, item in value.items()}}
        return [emptied(item) for item in value] if isinstance(value, list) else value

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            if "array" in value:
                return archive[value["array"]]
            return {key: filled(item) for key, item in value["dict"].items()}
        return [filled(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(emptied(state))
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    stream.seek(0)
    with np.load(stream, allow_pickle=False) as archive:
        read: State = filled(json.loads(text))
    return read


class _GlobalGenerators:
    """The global generators, put back as they were at the end."""

    def __init__(self) -> None:
        import torch

        self._torch = torch
        self.names = ("random", "numpy.random", "torch")

    def __enter__(self) -> _GlobalGenerators:
        self._saved = (random.getstate(), np.random.get_state(), self._torch.get_rng_state())  # noqa: NPY002
        return self

    def __exit__(self, *_: object) -> None:
        random.setstate(self._saved[0])
        np.random.set_state(self._saved[1])  # noqa: NPY002
        self._torch.set_rng_state(self._saved[2])

    def states(self) -> tuple[str, ...]:
        """One text per generator."""
        numpy_state: Any = np.random.get_state()  # noqa: NPY002
        return (
            repr(random.getstate()),
            repr((numpy_state[0], numpy_state[1].tolist(), numpy_state[2:])),
            repr(self._torch.get_rng_state().tolist()),
        )

    def advance(self) -> None:
        """Draw from all of them."""
        random.random()  # noqa: S311
        np.random.random()  # noqa: NPY002
        self._torch.rand(1)


def _rounds(
    strategy: Strategy, estimator: ToyEstimator, rounds: int = _ROUNDS, count: int = 8
) -> Iterable[list[Policy]]:
    """Ask, evaluate, tell; what was asked, round by round."""
    for _ in range(rounds):
        asked = strategy.ask(count)
        yield asked
        strategy.tell(_estimates(estimator, asked))


def _asks(
    strategy: Strategy, estimator: ToyEstimator, rounds: int = _ROUNDS
) -> Iterable[list[Policy]]:
    """The same, but the last round is not told: nothing is asked that could show it."""
    return itertools.islice(_rounds(strategy, estimator, rounds), rounds)


def _estimates(estimator: ToyEstimator, policies: Iterable[Policy]) -> list[Evaluation]:
    return [estimator.estimate(policy) for policy in policies]


def _expect(good: bool, message: str) -> None:
    if not good:
        raise AssertionError(message)


def _check_members(problem: Problem, policies: Iterable[Policy]) -> None:
    for policy in policies:
        _expect(isinstance(policy, Policy), f"{policy!r} is no Policy")
        indices = problem.space.encode(policy)
        _expect(problem.space.decode(indices) == policy, f"{policy} does not round-trip")


def _check_distinct(policies: Iterable[Policy]) -> None:
    keys = [policy.key for policy in policies]
    _expect(len(set(keys)) == len(keys), f"{len(keys) - len(set(keys))} policies are repeated")


def _check_same(expected: Sequence[list[str]], found: Sequence[list[str]], where: str) -> None:
    for number, (one, other) in enumerate(zip(expected, found, strict=True)):
        _expect(one == other, f"ask {number} differs in {where}")


def _arrays(value: Any) -> Iterable[np.ndarray[Any, Any]]:
    """Numbers and numeric arrays anywhere in nested data."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _arrays(item)
    elif isinstance(value, float | np.ndarray):
        yield np.asarray(value)


def _check_plain(value: Any, where: str) -> None:
    if type(value) is dict:
        for key, item in value.items():
            _expect(type(key) is str, f"the key {key!r} in {where} must be a text")
            _check_plain(item, f"{where}.{key}")
    elif type(value) is list:
        for index, item in enumerate(value):
            _check_plain(item, f"{where}[{index}]")
    elif type(value) is np.ndarray:
        _expect(value.dtype.kind in "biuf", f"{where} is an array of {value.dtype}")
    else:
        plain = value is None or type(value) in (str, int, float, bool)
        _expect(plain, f"{where} must be plain data, but is a {type(value).__name__}")


def _expect_equal(found: Any, expected: Any, where: str) -> None:
    """Equal to the bit, NaN included, types of containers included."""
    if isinstance(expected, dict):
        _expect(isinstance(found, dict) and set(found) == set(expected), f"{where}: keys differ")
        for key, item in expected.items():
            _expect_equal(found[key], item, f"{where}.{key}")
    elif isinstance(expected, list):
        _expect(isinstance(found, list) and len(found) == len(expected), f"{where}: lengths differ")
        for index, item in enumerate(expected):
            _expect_equal(found[index], item, f"{where}[{index}]")
    elif isinstance(expected, np.ndarray):
        same = found.dtype == expected.dtype and found.shape == expected.shape
        _expect(same and found.tobytes() == expected.tobytes(), f"{where}: arrays differ")
    else:
        both_nan = isinstance(expected, float) and math.isnan(expected) and math.isnan(found)
        _expect(both_nan or found == expected, f"{where}: {found!r} is not {expected!r}")
