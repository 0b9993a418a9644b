"""What every engine does, and what it is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from automl_compress.engine.contestant import Request, Standing
from automl_compress.evaluate.estimator import Estimator
from automl_compress.ledger import ContestantRecord
from automl_compress.search import Problem
from automl_compress.space import Policy

FINALISTS: Final = "finalists"
"""Name under which finalists are asked for in the ledger."""

EngineKind = Literal["cluster", "serial"]
ENGINES: Final[tuple[EngineKind, ...]] = ("cluster", "serial")


@dataclass(frozen=True)
class RungStanding:
    """How far a measurement outside the race has come: `done` of `total` networks on a rung."""

    rung: str
    done: int
    total: int


RungListener = Callable[[RungStanding], None]
"""Hears of a rung after each network."""
Listener = Callable[[Standing | RungStanding], None]
"""The same, and of a contestant after each of its rounds."""


def ignore(_: Any) -> None:
    """A listener for those who do not want to know."""


@dataclass(frozen=True)
class EngineSettings:
    """Where a study runs. Nothing here changes what it finds.

    Args:
        kind: `cluster` runs contestants side by side on Ray, `serial` one after another in
            this process.
        workers: evaluators of a cluster; None takes as many as there are processors for.
        threads: torch threads of each evaluator.
        address: a running Ray cluster; None is what `RAY_ADDRESS` names, else a Ray of its own.
    """

    kind: EngineKind = "cluster"
    workers: int | None = None
    threads: int = 1
    address: str | None = None


@dataclass(frozen=True)
class Race:
    """What an engine runs.

    Args:
        problem: what is searched.
        search: estimator that contestants are answered by.
        test: estimator that finalists are measured by.
        budget: evaluations each contestant is charged.
        ledger: path of the ledger's file.
        rungs: estimators between them by name, see `engine.rungs`.
    """

    problem: Problem
    search: Estimator
    test: Estimator
    budget: int
    ledger: Path
    rungs: Mapping[str, Estimator] = field(default_factory=dict)

    def estimator(self, request: Request) -> Estimator:
        """Who answers a contestant's request."""
        return self.rungs[request.rung] if request.rung else self.search

    @property
    def measures(self) -> dict[str, Estimator]:
        """Estimators by the name under which policies are measured after the race."""
        return {FINALISTS: self.test, **self.rungs}


class Engine(Protocol):
    """Runs contestants over evaluators. All engines give the same evaluations."""

    def run(self, contestants: Sequence[ContestantRecord], listener: Listener) -> None:
        """Run contestants until their budgets are spent.

        Raises:
            EngineError: a contestant could not finish.
            InterruptedStudy: the user stopped it; finished evaluations are in the ledger.
        """

    def measure(
        self, policies: Sequence[Policy], rung: str = FINALISTS, listener: RungListener = ignore
    ) -> None:
        """Measure policies into the ledger, by the test estimator or by that of a rung.

        Args:
            policies: what is measured; what the ledger holds is not measured again.
            rung: the rung's name in `Race.measures`.
            listener: hears how far it has come.

        Raises:
            EngineError: the evaluators failed.
            InterruptedStudy: the user stopped it; finished evaluations are in the ledger.
        """

    def close(self) -> None:
        """Free everything the engine holds."""
