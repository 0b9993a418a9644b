"""`automl-compress replay`: race strategies on a recorded table and say who was ahead."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from automl_compress.cli.options import write_file
from automl_compress.errors import InputError
from automl_compress.search import strategy_names
from automl_compress.space import counted

if TYPE_CHECKING:
    from automl_compress.engine.replay import ReplayedContestant
    from automl_compress.evaluate.recorded import Simulation
    from automl_compress.search import Problem

LINE: Final = "scaled-random"
"""What strategies are tested against, when it takes part."""


@dataclass(frozen=True)
class ReplayRequest:
    """The words of the command.

    Args:
        table: the recorded table, or a study's folder.
        strategies: registered names, or callables of the user's; empty for all registered.
        seeds: how many, from 0.
        budget: evaluations of each contestant.
        objectives: names; empty for all recorded.
        constraints: texts such as `macs <= 0.5x`.
        columns: `metric=column` texts.
        genes: columns of genes; empty for those named by kind.
        json: file for the rows and all curves, written after each strategy.
        resume: contestants that the file holds already are not raced again.
        markdown: file for the table.
    """

    table: Path
    strategies: Sequence[str]
    seeds: int
    budget: int
    objectives: Sequence[str]
    constraints: Sequence[str]
    columns: Sequence[str]
    genes: Sequence[str]
    json: Path | None
    resume: bool
    markdown: Path | None


def run_replay(request: ReplayRequest) -> int:
    """Race, print the table, write the files asked for."""
    import numpy as np

    from automl_compress.engine.replay import replay
    from automl_compress.report import compare_curves, curves_caption, curves_table

    _check(request)
    table, problem = read_simulation(
        *(request.table, request.columns, request.genes),
        *(request.objectives, request.constraints),
    )
    names = tuple(request.strategies) or strategy_names()
    print(
        f"{request.table.name}: {counted(table.space.cardinality)} policies of "
        f"{len(table.space)} genes; {', '.join(problem.objectives)}; {request.seeds} seeds, "
        f"{request.budget} evaluations",
        flush=True,
    )
    if table.note:
        print(table.note, flush=True)
    race = _Race(request, table.identity, problem.objectives, table.judged_by)
    done = replay(table, problem, names, range(request.seeds), request.budget, race, race.done)
    curves, quality = (
        {name: np.stack([getattr(c, kind) for c in done if c.strategy == name]) for name in names}
        for kind in ("hypervolume", "quality")
    )
    line = LINE if LINE in names else names[0]
    points = sorted({max(1, request.budget // 4), max(1, request.budget // 2), request.budget})
    rows = compare_curves(curves, quality, points, line, table.judged_by)
    caption = curves_caption(table.scored_by, request.seeds, problem.objectives)
    remarks = [remark for remark in (_failures(done), _ended(done, request.budget)) if remark]
    caption = ". ".join(filter(None, (caption, table.note, *remarks)))
    result = curves_table(rows, line, caption)
    print("\n".join([result.to_text(), *remarks]))
    if request.markdown:
        write_file(request.markdown, result.to_markdown() + "\n")
    if request.json:
        write_file(request.json, race.document(rows))
    return 0


def _failures(done: Sequence[ReplayedContestant]) -> str:
    """Who asked for what failed, and how often; empty where nobody did."""
    means = _means((contestant.strategy, contestant.failed) for contestant in done)
    failed = [f"{name} {mean:.1%}" for name, mean in means.items() if mean > 0]
    return f"Failed, of what was asked: {', '.join(failed)}" if failed else ""


def _ended(done: Sequence[ReplayedContestant], budget: int) -> str:
    """Who asked for less than the budget, and for how much; empty where nobody did."""
    asked = [(c.strategy, budget if c.asked is None else c.asked) for c in done]
    ended = [f"{name} {mean:g}" for name, mean in _means(asked).items() if mean < budget]
    if not ended:
        return ""
    return f"Had nothing left to ask for before {budget} evaluations: {', '.join(ended)}"


def _means(numbers: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Mean of the numbers of each strategy."""
    found: dict[str, list[float]] = {}
    for name, number in numbers:
        found.setdefault(name, []).append(number)
    return {name: sum(values) / len(values) for name, values in found.items()}


def read_simulation(
    path: Path,
    columns: Sequence[str],
    genes: Sequence[str],
    objectives: Sequence[str],
    constraints: Sequence[str],
) -> tuple[Simulation, Problem]:
    """The table, or the surrogate of one that lacks policies or of a ledger, and its problem.

    Args:
        path: of the recorded table, or a study's folder.
        columns: `metric=column` texts, for tables.
        genes: columns of genes, for tables; empty for those named by kind.
        objectives: names; empty for all recorded, or for the study's.
        constraints: texts such as `macs <= 0.5x`; empty for none, or for the study's.

    Raises:
        InputError: columns or genes are given for a study.
        StudyError: neither can be read, or an objective is not recorded.
    """
    from automl_compress.engine.replay import table_problem
    from automl_compress.engine.simulations import of_ledger, of_table
    from automl_compress.evaluate.table import read_table
    from automl_compress.ledger import StudyResult

    if not path.is_dir():
        table = of_table(read_table(path, read_columns(columns), genes))
        return table, table_problem(table, objectives, constraints)
    if columns or genes:
        raise InputError(
            "--columns and --genes must go with a table, but a study names its own; leave them out"
        )
    result = StudyResult(path)
    stated = [constraint.text for constraint in result.manifest.constraints]
    surrogate = of_ledger(result)
    return surrogate, table_problem(
        surrogate, objectives or result.manifest.objectives, constraints or stated
    )


def _check(request: ReplayRequest) -> None:
    for name, number in (("--seeds", request.seeds), ("--budget", request.budget)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, but is {number}; correct it")
    if len(set(request.strategies)) != len(request.strategies):
        raise InputError(
            f"--strategies must differ, but are {', '.join(request.strategies)}; remove repeats"
        )


def read_columns(texts: Sequence[str]) -> dict[str, str]:
    """Column by metric, of `metric=column` texts.

    Raises:
        InputError: one has another form, or a metric is repeated.
    """
    found = {}
    for text in texts:
        metric, equals, column = text.partition("=")
        if not (metric and equals and column):
            raise InputError(f"--columns must be METRIC=COLUMN, but is '{text}'; correct it")
        if metric in found:
            raise InputError(f"--columns must name '{metric}' once, but repeats it; remove one")
        found[metric] = column
    return found


class _Race:
    """What is done so far: a line printed and the file written for each strategy.

    Args:
        request: the words of the command.
        identity: of the table.
        objectives: names.
        judged_by: the quality of the second curve, by which the file names it.

    Raises:
        InputError: the file to go on from is of another race.
    """

    def __init__(
        self, request: ReplayRequest, identity: str, objectives: Sequence[str], judged_by: str
    ) -> None:
        self._request = request
        self._curves = {"hypervolume": "hypervolume", judged_by: "quality"}
        self._head = {
            "version": 1,
            "table": request.table.name,
            "identity": identity,
            "objectives": list(objectives),
            "constraints": list(request.constraints),
            "budget": request.budget,
        }
        self._strategy = ""
        self.done = self._before()

    def _before(self) -> list[ReplayedContestant]:
        """Contestants of the file to go on from."""
        path = self._request.json
        if not self._request.resume:
            return []
        if path is None:
            raise InputError("--resume must name the file to go on from; give it with --json")
        if not path.exists():
            return []
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            same = all(document[name] == value for name, value in self._head.items())
            done = [self._contestant(document, name) for name in document["hypervolume"]]
        except (OSError, ValueError, KeyError, TypeError) as reason:
            raise InputError(
                f"--resume must go on from a replay's file, but '{path}' is none; give another"
            ) from reason
        if not same:
            raise InputError(
                f"--resume must go on with the same table, objectives, constraints and budget, "
                f"but '{path}' has others; give another file"
            )
        return done

    def _contestant(self, document: dict[str, Any], name: str) -> ReplayedContestant:
        """A contestant of a file.

        Those of earlier versions do not say what failed or was asked, and round to six decimals.
        """
        import numpy as np

        from automl_compress.engine.replay import ReplayedContestant

        strategy, _, seed = name.rpartition("-")
        hypervolume, quality = (np.array(document[kind][name]) for kind in self._curves)
        failed = float(document.get("failed", {}).get(name, 0.0))
        asked = document.get("asked", {}).get(name)
        return ReplayedContestant(strategy, int(seed), hypervolume, quality, failed, asked)

    def __call__(self, contestant: ReplayedContestant) -> None:
        if contestant.strategy != self._strategy:
            if self._strategy and self._request.json:
                write_file(self._request.json, self.document([]))
            self._strategy = contestant.strategy
            print(f"racing {contestant.strategy} ...", flush=True)
        self.done.append(contestant)

    def document(self, rows: Sequence[dict[str, Any]]) -> str:
        """The file's text. Numbers are whole: rounded, equal results would differ from new ones.

        Args:
            rows: of the comparison; none while the race is on.
        """
        curves = {
            kind: {
                f"{c.strategy}-{c.seed}": [float(x) for x in getattr(c, curve)] for c in self.done
            }
            for kind, curve in self._curves.items()
        }
        failed = {f"{c.strategy}-{c.seed}": c.failed for c in self.done}
        asked = {f"{c.strategy}-{c.seed}": c.asked for c in self.done}
        document = {
            **self._head,
            **{"seeds": self._request.seeds, "comparison": rows},
            **{"failed": failed, "asked": asked, **curves},
        }
        return json.dumps(document, allow_nan=False, separators=(",", ":")) + "\n"
