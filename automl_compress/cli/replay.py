"""`automl-compress replay`: race strategies on a recorded table and say who was ahead."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from automl_compress.errors import InputError
from automl_compress.search import strategy_names

if TYPE_CHECKING:
    from automl_compress.engine.replay import ReplayedContestant

LINE: Final = "scaled-random"
"""What strategies are tested against, when it takes part."""


@dataclass(frozen=True)
class ReplayRequest:
    """The words of the command.

    Args:
        table: the recorded table.
        strategies: registered names; empty for all.
        seeds: how many, from 0.
        budget: evaluations of each contestant.
        objectives: names; empty for all recorded.
        constraints: texts such as `macs <= 0.5x`.
        columns: `metric=column` texts.
        json: file for the rows and all curves.
        markdown: file for the table.
    """

    table: Path
    strategies: Sequence[str]
    seeds: int
    budget: int
    objectives: Sequence[str]
    constraints: Sequence[str]
    columns: Sequence[str]
    json: Path | None
    markdown: Path | None


def run_replay(request: ReplayRequest) -> int:
    """Race, print the table, write the files asked for."""
    import numpy as np

    from automl_compress.engine.replay import replay, table_problem
    from automl_compress.evaluate.recorded import read_table
    from automl_compress.report import compare_curves, curves_table

    _check(request)
    table = read_table(request.table, _columns(request.columns))
    problem = table_problem(table, request.objectives, request.constraints)
    names = tuple(request.strategies) or strategy_names()
    print(
        f"{request.table.name}: {table.space.cardinality} policies of {len(table.space)} genes; "
        f"{', '.join(problem.objectives)}; {request.seeds} seeds, {request.budget} evaluations",
        flush=True,
    )
    done = replay(table, problem, names, range(request.seeds), request.budget, _Progress())
    curves, accuracy = (
        {name: np.stack([getattr(c, kind) for c in done if c.strategy == name]) for name in names}
        for kind in ("hypervolume", "accuracy")
    )
    line = LINE if LINE in names else names[0]
    points = sorted({max(1, request.budget // 4), max(1, request.budget // 2), request.budget})
    rows = compare_curves(curves, accuracy, points, line)
    caption = (
        f"Hypervolume as a share of the exact front's, mean ± standard deviation of "
        f"{request.seeds} seeds; p: Mann-Whitney, Holm-corrected; {', '.join(problem.objectives)}"
    )
    result = curves_table(rows, line, caption)
    print(result.to_text())
    if request.markdown:
        _write(request.markdown, result.to_markdown() + "\n")
    if request.json:
        _write(request.json, _document(request, table.identity, problem.objectives, rows, done))
    return 0


def _check(request: ReplayRequest) -> None:
    for name, number in (("--seeds", request.seeds), ("--budget", request.budget)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, but is {number}; correct it")
    if len(set(request.strategies)) != len(request.strategies):
        raise InputError(
            f"--strategies must differ, but are {', '.join(request.strategies)}; remove repeats"
        )


def _columns(texts: Sequence[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        metric, equals, column = text.partition("=")
        if not (metric and equals and column):
            raise InputError(f"--columns must be METRIC=COLUMN, but is '{text}'; correct it")
        found[metric] = column
    return found


class _Progress:
    """A line for each strategy."""

    def __init__(self) -> None:
        self._strategy = ""

    def __call__(self, contestant: ReplayedContestant) -> None:
        if contestant.strategy != self._strategy:
            self._strategy = contestant.strategy
            print(f"racing {contestant.strategy} ...", flush=True)


def _document(
    request: ReplayRequest,
    identity: str,
    objectives: Sequence[str],
    rows: Sequence[dict[str, Any]],
    done: Sequence[ReplayedContestant],
) -> str:
    document = {
        "version": 1,
        "table": request.table.name,
        "identity": identity,
        "objectives": list(objectives),
        "constraints": list(request.constraints),
        "budget": request.budget,
        "seeds": request.seeds,
        "comparison": rows,
        "hypervolume": {
            f"{c.strategy}-{c.seed}": [round(float(share), 6) for share in c.hypervolume]
            for c in done
        },
    }
    return json.dumps(document, allow_nan=False) + "\n"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as reason:
        raise InputError(
            f"'{path}' must be a file that can be written, but is not: {reason.strerror}; "
            "give another"
        ) from reason
