"""A toy race for the tests of engines, and ways to look at what it left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from automl_compress.engine.engine import Engine, Race
from automl_compress.engine.promotion import climb
from automl_compress.engine.rungs import RungSettings
from automl_compress.engine.serial import SerialEngine
from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.estimator import Estimator
from automl_compress.ledger import ContestantRecord, Ledger, Manifest, StudyResult
from automl_compress.search import RungOffer
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=3)
CONTESTANTS = (
    ContestantRecord("nsga2-0", "nsga2", 0),
    ContestantRecord("scaled-random-0", "scaled-random", 0),
    ContestantRecord("scaled-random-1", "scaled-random", 1),
    ContestantRecord("uniform-line", "uniform", 0, in_race=False),
)
BUDGET = 24


class CountingEstimator(Estimator):
    """A toy estimator that writes a line for every estimate it makes, and can misbehave.

    Args:
        log: file that gets the policy keys.
        deadly: policies whose key starts so kill their process once.
        broken: policies whose key starts so always raise.
        seconds: how long an estimate takes.
    """

    def __init__(
        self, log: Path, deadly: str = "-", broken: str = "-", seconds: float = 0.0
    ) -> None:
        self._toy = ToyEstimator(NETWORK)
        self._log = log
        self._deadly = deadly
        self._broken = broken
        self._seconds = seconds

    @property
    def identity(self) -> str:
        return self._toy.identity

    def estimate(self, policy: Policy) -> Evaluation:
        marker = self._log.with_name(f"{policy.key}.died")
        if policy.key.startswith(self._deadly) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if policy.key.startswith(self._broken):
            raise ValueError("this policy is broken")
        time.sleep(self._seconds)
        with self._log.open("a") as stream:
            stream.write(f"{policy.key}\n")
        return self._toy.estimate(policy)

    def made(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []


class TestEstimator(ToyEstimator):
    """The toy's final word: the same answers under another identity."""

    __test__ = False

    def __init__(self, network: ToyNetwork) -> None:
        super().__init__(network)
        self._identity = f"test-{self._identity}"


def race(folder: Path, **estimator: object) -> Race:
    search = CountingEstimator(folder / "made.log", **estimator)  # type: ignore[arg-type]
    return Race(NETWORK.problem(), search, TestEstimator(NETWORK), BUDGET, folder / "ledger.sqlite")


def frame(folder: Path) -> pd.DataFrame:
    """The table of evaluations of a race, timing left out."""
    toy = ToyEstimator(NETWORK)
    Manifest(
        study="toy",
        status="finished",
        config={},
        fingerprint="",
        objectives=("error", "size_bytes", "macs"),
        constraints=(),
        budget=BUDGET,
        estimator=toy.identity,
        test_estimator=f"test-{toy.identity}",
        baseline={"accuracy": 0.94, **NETWORK.baseline},
        test_baseline={},
        contestants=CONTESTANTS,
    ).write(folder)
    return StudyResult(folder).to_dataframe().drop(columns=["seconds", "finished"])


def ledger_size(folder: Path) -> int:
    with Ledger(folder / "ledger.sqlite") as ledger:
        return len(ledger)


LADDER = (RungSettings("full"), RungSettings("learned", 0.8, learned=True), RungSettings("last"))
FINALISTS = 3


class RungEstimator(ToyEstimator):
    """Sees harms that the race does not: every second policy is worse than it looks."""

    def __init__(self, name: str) -> None:
        super().__init__(NETWORK)
        self._identity = f"{name}-{self._identity}"

    def estimate(self, policy: Policy) -> Evaluation:
        evaluation = super().estimate(policy) if len(policy) else self._whole(policy)
        drop = 0.1 * (int(policy.key[:8], 16) % 2) if len(policy) else 0.0
        metrics = {**evaluation.metrics, "accuracy": evaluation.metrics["accuracy"] - drop}
        return replace(evaluation, estimator=self._identity, metrics=metrics)

    def _whole(self, policy: Policy) -> Evaluation:
        return Evaluation(policy, self._identity, {"accuracy": 0.94}, images=100)


def climbed(
    folder: Path, new_engine: Callable[[Race], Engine] = SerialEngine
) -> tuple[list[Policy], Manifest]:
    """A race whose candidates climbed `LADDER`: its finalists and its manifest."""
    folder.mkdir(exist_ok=True)
    rungs = {name: RungEstimator(name) for name in ("full", "last")}
    bare = race(folder)
    offers = {name: RungOffer(rung.identity, 3) for name, rung in rungs.items()}
    raced = replace(bare, problem=replace(bare.problem, rungs=offers), rungs=rungs)
    engine = new_engine(raced)
    engine.run(CONTESTANTS, lambda _: None)
    frame(folder)  # writes the manifest
    manifest = StudyResult(folder).manifest
    standing, manifest = climb(LADDER, raced, engine, manifest, folder, FINALISTS)
    engine.close()
    manifest.write(folder)
    return standing.finalists(FINALISTS), manifest
