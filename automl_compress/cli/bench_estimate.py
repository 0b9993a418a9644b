"""`automl-compress bench estimate`: the estimates of a search against the loop everybody writes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from automl_compress.bench.estimate import (
    DEFAULT,
    NAIVE,
    EstimateBench,
    EstimateTask,
    RateRow,
    measure_estimates,
)
from automl_compress.cli.options import write_file
from automl_compress.engine.config import read_config
from automl_compress.errors import InputError
from automl_compress.evaluate import QUALITIES
from automl_compress.settings import significant
from automl_compress.workload import CLASSIFICATION, Workload, load_workload


def run_bench_estimate(
    sweep: Path,
    overrides: Sequence[str],
    policies: int,
    output: Path | None,
    page: Path | None,
) -> int:
    """Measure, print and write.

    Args:
        sweep: names network, data, space and images.
        overrides: `key=value` of the sweep file.
        policies: how many each loop answers.
        output: JSON file, or None.
        page: folder of the Markdown page, or None.

    Raises:
        InputError: something given is wrong.
    """
    if policies < 3:
        raise InputError(f"--policies must be at least 3, but is {policies}; raise it")
    config = read_config(sweep, overrides)
    processes = len(os.sched_getaffinity(0))

    def hear(row: RateRow) -> None:
        print(f"{row.loop}, {_where(row)}: {row.per_second:.2f} a second", flush=True)

    given = config.workload
    workload = given if isinstance(given, Workload) else load_workload(given)
    task = EstimateTask(workload, config.estimate, config.space)
    bench = measure_estimates(task, policies, processes, hear)
    text = estimate_page(bench, config.name)
    print(f"\n{text}")
    if output is not None:
        write_file(output, json.dumps(asdict(bench), indent=1) + "\n")
    if page is not None:
        write_file(page / "estimate.md", text)
        print(page / "estimate.md")
    return 0


def estimate_page(bench: EstimateBench, name: str) -> str:
    """The measurements as Markdown.

    Args:
        bench: what was measured.
        name: of the study.
    """
    naive = {_where(row): row.per_second for row in bench.rates if row.loop == NAIVE}
    fastest = max(naive.values())
    lines = [
        f"# Estimates of {name}: ours against the naive loop",
        "",
        f"{bench.policies} random policies for every time, {bench.images} images; policies "
        f"choose weight bits and cut the {bench.groups} of {bench.all_groups} channel groups that "
        "Torch-Pruning follows rightly. The naive loop copies the network, cuts it by "
        "Torch-Pruning, rounds, recalibrates BatchNorm and judges in float32. Loops answer by "
        "turns, a few policies each. Ratios are to the naive loop in the same processes and "
        "threads, with the lowest and highest of all turns, and to its fastest row.",
        "",
        "| loop | processes x threads | networks/s | ratio | of turns | to the fastest "
        "| the very first/s | images |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {row.loop} | {row.processes} x {row.threads} | {row.per_second:.2f} "
            f"| {row.per_second / naive[_where(row)]:.2f} "
            f"| {row.lowest_ratio:.2f}..{row.highest_ratio:.2f} | {row.per_second / fastest:.2f} "
            f"| {row.first_per_second:.2f} | {row.images:.0f} |"
            for row in bench.rates
        ),
        "",
        f"Where the time of an estimate goes ({DEFAULT}, all images, one thread, layers known):",
        "",
        *_findings(bench),
        "",
    ]
    return "\n".join(lines)


def _findings(bench: EstimateBench) -> list[str]:
    part = bench.breakdown
    passes = part.forward_share + part.statistics_forward_share
    return [
        f"- cutting and rounding {part.build_share:.0%} ({significant(part.build_ms, 3)} ms), "
        f"BatchNorm statistics {part.statistics_share:.0%}, forward passes and judging "
        f"{part.forward_share:.0%}; with the pass that statistics are taken in "
        f"({part.statistics_forward_share:.0%}), forward passes are {passes:.0%};",
        f"- {part.over_forward:.2f} times the bare forward passes of the same compressed network, "
        f"{part.over_plain_forward:.2f} times those of plain PyTorch in float32;",
        f"- ours in float32 and the naive loop, rounding by the same steps, differ by at most "
        f"{_difference(bench)}, over {bench.compared} policies;",
        f"- Spearman's correlation of the default with the same networks run plainly in float32: "
        f"{bench.rank_correlation:.4f}, over the same.",
    ]


def _difference(bench: EstimateBench) -> str:
    """Images where answers are counted, points of the quality elsewhere."""
    if bench.judged_by == CLASSIFICATION.quality:
        return f"{round(bench.largest_difference * bench.images)} of {bench.images} images"
    return f"{100 * bench.largest_difference:.2f} points of {QUALITIES[bench.judged_by]}"


def _where(row: RateRow) -> str:
    return f"{row.processes} x {row.threads}"
