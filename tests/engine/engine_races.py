"""A toy race for the tests of engines, and ways to look at what it left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
from engine_doubles import NETWORK, CountingEstimator, RungEstimator, TestEstimator

from automl_compress.engine.engine import Engine, Race, RungListener, ignore
from automl_compress.engine.promotion import climb
from automl_compress.engine.rungs import RungSettings
from automl_compress.engine.serial import SerialEngine
from automl_compress.ledger import ContestantRecord, Ledger, Manifest, StudyResult
from automl_compress.search import RungOffer
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator

CONTESTANTS = (
    ContestantRecord("nsga2-0", "nsga2", 0),
    ContestantRecord("scaled-random-0", "scaled-random", 0),
    ContestantRecord("scaled-random-1", "scaled-random", 1),
    ContestantRecord("engine_doubles:own_random-0", "engine_doubles:own_random", 0),
    ContestantRecord("uniform-line", "uniform", 0, in_race=False),
)
BUDGET = 24


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
    return table(folder)


def table(folder: Path) -> pd.DataFrame:
    """The table of evaluations of a race that has its manifest, timing left out."""
    return StudyResult(folder).to_dataframe().drop(columns=["seconds", "finished"])


def ledger_size(folder: Path) -> int:
    with Ledger(folder / "ledger.sqlite") as ledger:
        return len(ledger)


LADDER = (RungSettings("full"), RungSettings("learned", 0.8, learned=True), RungSettings("last"))
FINALISTS = 3


def climbed(
    folder: Path,
    new_engine: Callable[[Race], Engine] = SerialEngine,
    listener: RungListener = ignore,
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
    standing, manifest = climb(LADDER, raced, engine, manifest, folder, FINALISTS, listener)
    engine.close()
    manifest.write(folder)
    return standing.finalists(FINALISTS), manifest
