"""What the Ray engine costs: the dispatcher's time, the evaluators' memory and idle time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from automl_compress.compress import space_of_structure
from automl_compress.engine.config import StudyConfig
from automl_compress.engine.engine import Race
from automl_compress.engine.restore import load_estimators, torch_threads
from automl_compress.engine.start import started
from automl_compress.errors import InputError
from automl_compress.evaluate import loss_of, minimised_metrics, useful_loss
from automl_compress.ledger import ContestantRecord, Ledger
from automl_compress.search import Problem
from automl_compress.settings import significant
from automl_compress.space import Policy

STRATEGY: Final = "random"
"""It takes next to no time itself."""
_MB: Final = 2**20


@dataclass(frozen=True)
class EngineCost:
    """What was measured of one race.

    Args:
        workers: evaluators.
        contestants: that asked, each for its own policies.
        evaluations: of all of them.
        dispatcher_ms: processor time of the dispatcher's process per evaluation.
        busy: share of the time from the first to the last answer that evaluators spent on
            estimates.
        baseline_mb: private memory of a Python process that has loaded torch.
        evaluators_mb: private memory of each evaluator at the end, beyond that.
    """

    workers: int
    contestants: int
    evaluations: int
    dispatcher_ms: float
    busy: float
    baseline_mb: float
    evaluators_mb: tuple[float, ...]


def measure_engine(config: StudyConfig, contestants: int, evaluations: int) -> EngineCost:
    """Race contestants that draw at random on a Ray of this machine.

    Args:
        config: names network, data, space, estimates, workers and threads.
        contestants: how many.
        evaluations: of each.

    Raises:
        InputError: a number is below 2, or see `engine.restore.load_estimators`.
        EngineError: Ray cannot be started, or a contestant failed.
    """
    from automl_compress.engine.cluster import ClusterEngine

    for name, number in (("--contestants", contestants), ("--evaluations", evaluations)):
        if number < 2:
            raise InputError(f"{name} must be at least 2, but is {number}; raise it")
    with tempfile.TemporaryDirectory() as name:
        race = _race(config, evaluations, Path(name) / "ledger.sqlite")
        records = [ContestantRecord(f"{STRATEGY}-{n}", STRATEGY, n) for n in range(contestants)]
        with started(race, replace(config.engine, kind="cluster"), Path(name)) as engine:
            assert isinstance(engine, ClusterEngine)
            engine.run(records, lambda _: None)
            usage = engine.usage()
        with Ledger(race.ledger) as ledger:
            charges = [charge for record in records for charge in ledger.charges(record.name)]
    made = [charge for charge in charges if not charge.hit]
    ends = sorted(charge.finished for charge in made)
    spent = sum(charge.evaluation.seconds for charge in made)
    workers = len(usage.evaluator_bytes)
    baseline = _baseline_bytes()
    return EngineCost(
        workers,
        contestants,
        len(charges),
        1e3 * usage.dispatcher_seconds / len(charges),
        spent / len(made) * (len(made) - workers) / (workers * max(ends[-1] - ends[0], 1e-9)),
        baseline / _MB,
        tuple((held - baseline) / _MB for held in usage.evaluator_bytes),
    )


def _race(config: StudyConfig, budget: int, ledger: Path) -> Race:
    with torch_threads(config.engine.threads):
        _, search, test = load_estimators(config)
        compressor = search.compressor
        space = space_of_structure(compressor.model, compressor.structure, config.space).space
        baseline = search.estimate(Policy({}))
    minimised = minimised_metrics(baseline.metrics)
    problem = Problem(
        space,
        config.objectives,
        minimised,
        compressor.cost,
        useful_loss=useful_loss(loss_of(config.objectives)),
    )
    return Race(problem, search, test, budget, ledger)


def _baseline_bytes() -> int:
    """Private memory of a new process that has loaded torch and computed something."""
    code = (
        "import torch; from automl_compress.engine.memory import private_bytes; "
        "torch.set_num_threads(1); torch.ones(64, 64) @ torch.ones(64, 64); print(private_bytes())"
    )
    done = subprocess.run(  # noqa: S603 - these very lines
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    return int(done.stdout)


def engine_table(cost: EngineCost) -> str:
    """Markdown: a line per finding."""
    most = max(cost.evaluators_mb)
    return "\n".join(
        [
            "| engine | |",
            "| --- | ---: |",
            f"| evaluators | {cost.workers} |",
            f"| contestants x evaluations | {cost.contestants} x "
            f"{cost.evaluations // cost.contestants} |",
            f"| dispatcher, processor ms per evaluation | {significant(cost.dispatcher_ms, 3)} |",
            f"| evaluators' time spent on estimates | {cost.busy:.1%} |",
            f"| private memory of Python and torch | {cost.baseline_mb:.0f} MB |",
            f"| of an evaluator beyond that, at most | {most:.0f} MB |",
        ]
    )
