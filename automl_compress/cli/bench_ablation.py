"""`automl-compress bench ablation`: what each part of `hybrid` contributes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from automl_compress.cli.options import (
    add_command,
    add_json_option,
    add_markdown_option,
    add_race_options,
    write_file,
)
from automl_compress.cli.replay import read_simulation
from automl_compress.errors import InputError

if TYPE_CHECKING:
    from automl_compress.bench.ablation import Landscape


@dataclass(frozen=True)
class AblationRequest:
    """The words of the command.

    Args:
        table: a recorded table, or a study's folder; None for the toy.
        objectives: names; empty for all recorded.
        constraints: texts such as `macs <= 0.5x`.
        columns: `metric=column` texts.
        genes: columns of genes; empty for those named by kind.
        seeds: how many, from 0.
        budget: evaluations of each contestant.
        json: file for the rows.
        markdown: file for the table.
    """

    table: Path | None
    objectives: Sequence[str]
    constraints: Sequence[str]
    columns: Sequence[str]
    genes: Sequence[str]
    seeds: int
    budget: int
    json: Path | None
    markdown: Path | None


def add_ablation(benches: Any) -> None:
    """Add the benchmark to a parser of benchmarks."""
    parser = add_command(benches, "ablation", "what each part of the strategy hybrid contributes")
    parser.add_argument(
        "table",
        type=Path,
        nargs="?",
        metavar="TABLE|DIR",
        help="a recorded table or a study's folder; default: an additive toy of 90 genes",
    )
    add_race_options(parser)
    add_json_option(parser)
    add_markdown_option(parser)
    parser.set_defaults(
        run=lambda a: run_ablation(
            AblationRequest(
                *(a.table, a.objectives, a.constraints, a.columns, a.genes),
                *(a.seeds, a.budget, a.json, a.markdown),
            )
        )
    )


def run_ablation(request: AblationRequest) -> int:
    """Race all variants, print the table, write the files asked for."""
    from automl_compress.bench.ablation import WHOLE, ablate
    from automl_compress.report import compare_curves, curves_caption, curves_table

    for name, number in (("--seeds", request.seeds), ("--budget", request.budget)):
        if number < 1:
            raise InputError(f"{name} must be at least 1, but is {number}; correct it")
    landscape, where, note = _landscape(request)
    curves = ablate(landscape, request.seeds, request.budget, _say)
    points = sorted({max(1, request.budget // 4), max(1, request.budget // 2), request.budget})
    rows = compare_curves(
        {name: pair[0] for name, pair in curves.items()},
        {name: pair[1] for name, pair in curves.items()},
        points,
        WHOLE,
        landscape.judged_by,
    )
    caption = curves_caption(where, request.seeds, landscape.problem.objectives)
    caption = ". ".join(filter(None, (caption, note)))
    table = curves_table(rows, WHOLE, caption)
    print(f"{caption}\n{table.to_text()}")
    if request.markdown:
        write_file(request.markdown, table.to_markdown() + "\n")
    if request.json:
        write_file(request.json, json.dumps(rows, indent=1) + "\n")
    return 0


def _say(name: str) -> None:
    print(f"racing {name} ...", flush=True)


def _landscape(request: AblationRequest) -> tuple[Landscape, str, str]:
    """Where to race, what hypervolumes are, and what is to be said of the answers."""
    from automl_compress.bench.ablation import TOY, Landscape

    if request.table is None:
        if request.objectives or request.constraints or request.columns or request.genes:
            raise InputError(
                "--objectives, --constraints, --columns and --genes must go with a table or a "
                "study, but none is given; name one"
            )
        genes = len(TOY.space)
        return Landscape.of_toy(), f"Useful hypervolume on an additive toy of {genes} genes", ""
    table, problem = read_simulation(
        *(request.table, request.columns, request.genes),
        *(request.objectives, request.constraints),
    )
    where = f"{request.table.name}: {table.scored_by}"
    return Landscape.of_table(table, problem), where, table.note
