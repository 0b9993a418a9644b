"""What the dispatcher makes of evaluators that die, hang or come late, without processes."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from engine_doubles import NETWORK
from ray.exceptions import RayError

from automl_compress.engine import dispatcher
from automl_compress.engine.contestant import Request
from automl_compress.engine.room import Pool
from automl_compress.errors import EngineError
from automl_compress.evaluate import Evaluation
from automl_compress.ledger import Place
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
LARGEST, SMALLEST = NETWORK.space.largest, NETWORK.space.smallest


class _Pretended:
    """An evaluator without a process.

    Args:
        starts: whether it does.
        hangs: how often whoever is asked for a policy does not answer.
    """

    def __init__(self, starts: bool = True, hangs: Counter[str] | None = None) -> None:
        self._starts = starts
        self._hangs = Counter() if hangs is None else hangs
        self.ready = SimpleNamespace(remote=self._ready)
        self.estimate = SimpleNamespace(remote=self._estimate)

    async def _ready(self) -> tuple[str, str]:
        if not self._starts:
            raise RayError("ip=10.0.0.7, and\nModuleNotFoundError: No module named 'torch'")
        return "process 5 on 10.0.0.7", "AVX2"

    async def _estimate(self, policy: Policy, _: str) -> Evaluation:
        self._hangs[policy.key] -= 1
        if self._hangs[policy.key] >= 0:
            await asyncio.Event().wait()
        return ToyEstimator(NETWORK).estimate(policy)


def _dispatcher(folder: Path, workers: int) -> dispatcher._Dispatcher:
    identity = ToyEstimator(NETWORK).identity
    return dispatcher._Dispatcher(str(folder / "ledger"), [None], {"": identity}, workers, 1)


def _asked(position: int, policy: Policy) -> list[Request]:
    return [Request(Place("nsga2-0", position, position), policy)]


@pytest.mark.parametrize("starting", [(True, False), (False, False)])
def test_a_machine_that_evaluators_cannot_start_on_is_left_to_the_others(
    starting: tuple[bool, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that joins a cluster when a study has run for hours; it is named."""
    made = iter([*starting, *[False] * 4])
    monkeypatch.setattr(dispatcher._Dispatcher, "_new_evaluator", lambda _: _Pretended(next(made)))
    monkeypatch.setattr(dispatcher.ray, "kill", lambda _: None)
    said = r"did not on 10\.0\.0\.7, 3 times in a row \(ModuleNotFoundError: No module named"

    async def ask() -> Pool:
        asked = _dispatcher(tmp_path, 2)
        answers, _ = await asked.answer(_asked(0, LARGEST))
        while not (pool := await asked.pool()).lost:
            await asyncio.sleep(0)
        assert answers[0].ok
        return pool

    if any(starting):
        pool = asyncio.run(ask())
        assert (pool.started, pool.asked, pool.kinds) == (1, 1, {"AVX2"})
        assert re.search(said, *pool.lost)
        return
    with pytest.raises(EngineError, match=said):
        asyncio.run(ask())


@pytest.mark.parametrize("times", [1, 3])
def test_who_hangs_is_ended_and_its_policy_tried_again(
    times: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far beyond the slowest answer so far, and told of before; it fails like one that kills."""
    hangs = Counter({LARGEST.key: times})
    ended: list[object] = []
    monkeypatch.setattr(dispatcher, "LATE_SECONDS", 1e-3)
    monkeypatch.setattr(dispatcher._Dispatcher, "_new_evaluator", lambda _: _Pretended(hangs=hangs))
    monkeypatch.setattr(dispatcher.ray, "kill", ended.append)

    async def ask() -> tuple[Evaluation, Pool]:
        asked = _dispatcher(tmp_path, 2)
        await asked.answer(_asked(0, SMALLEST))
        answers, _ = await asked.answer(_asked(1, LARGEST))
        return answers[0], await asked.pool()

    evaluation, pool = asyncio.run(ask())
    assert len(ended) == times
    (said,) = pool.late
    assert said.startswith(f"policy {LARGEST.key} has been evaluated for ")
    assert re.search(
        r" by process 5 on 10\.0\.0\.7, and the slowest other took .* is ended; ", said
    )
    assert evaluation.ok == (times < dispatcher.ATTEMPTS)
    assert evaluation.ok or "its evaluator did not answer for" in evaluation.reason


def test_nobody_is_ended_while_nothing_tells_how_long_answers_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line speaks for all who wait."""
    hangs = Counter({LARGEST.key: 1, SMALLEST.key: 1})
    monkeypatch.setattr(dispatcher, "LATE_SECONDS", 1e-3)
    monkeypatch.setattr(dispatcher._Dispatcher, "_new_evaluator", lambda _: _Pretended(hangs=hangs))
    monkeypatch.setattr(dispatcher.ray, "kill", lambda _: pytest.fail("an evaluator was ended"))

    async def wait() -> Pool:
        asked = _dispatcher(tmp_path, 2)
        waiting = asyncio.gather(
            *(asked.answer(_asked(n, policy)) for n, policy in enumerate((LARGEST, SMALLEST)))
        )
        await asyncio.wait([waiting], timeout=0.1)
        waiting.cancel()
        return await asked.pool()

    (said,) = asyncio.run(wait()).late
    assert "no other has finished, so that nothing tells how long it may take; should it" in said


@pytest.mark.parametrize("serves", [False, True])
def test_machines_that_join_later_are_used(
    serves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is there already stays."""
    monkeypatch.setattr(dispatcher._Dispatcher, "_new_evaluator", lambda _: _Pretended())

    async def grown() -> Pool:
        asked = _dispatcher(tmp_path, 1)
        if serves:
            await asked.answer(_asked(0, LARGEST))
        await asked.grow(3)
        await asked.grow(2)
        await asked.answer(_asked(1, SMALLEST))
        return await asked.pool()

    pool = asyncio.run(grown())
    assert (pool.started, pool.asked) == (3, 3)
