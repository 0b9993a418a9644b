"""`automl-compress bench latency`: make the table, and show what its predictions are worth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from automl_compress.cli.options import (
    add_command,
    add_json_option,
    add_page_option,
    add_shape_option,
    write_file,
)
from automl_compress.cli.shape import read_shape
from automl_compress.errors import InputError
from automl_compress.settings import significant

if TYPE_CHECKING:
    from torch import Tensor

    from automl_compress.bench.latency import LatencyBench
    from automl_compress.compress import Compressor
    from automl_compress.deploy.latency_calibration import LatencySettings
    from automl_compress.space import SpaceRules

SHOWN_KEY: Final = 12
"""Characters of a policy's key in tables."""
CALIBRATION_IMAGES: Final = 16
"""Training images for the ranges of activations; they change no latency."""


@dataclass(frozen=True)
class LatencyRequest:
    """The words of the command; None leaves what the sweep file says, or the default.

    Args:
        target: a sweep file, a shipped network's name or `package.module:factory`.
        policies: how many are measured.
        threads: threads of one run.
        batch: inputs per run.
        runs: runs of each network.
        table: the table's file.
        input_shape: of an example, of a network that is not shipped.
        json: file for the rows.
        output: folder of the page and its figure.
    """

    target: str
    policies: int
    threads: int | None
    batch: int | None
    runs: int | None
    table: Path | None
    input_shape: tuple[int, ...] | None
    json: Path | None
    output: Path


def add_latency(benches: Any) -> None:
    """Add the benchmark to a parser of benchmarks."""
    parser = add_command(benches, "latency", "what the table of layer latencies predicts")
    parser.add_argument(
        "target", metavar="MODEL|SWEEP.yaml", help="a network's name, or a sweep file"
    )
    parser.add_argument(
        "--policies", type=int, default=20, metavar="N", help="to measure; default: 20"
    )
    for option, what in (("--threads", "threads of a run"), ("--batch", "inputs per run")):
        parser.add_argument(option, type=int, metavar="N", help=f"{what}; default: 1")
    parser.add_argument("--runs", type=int, metavar="N", help="of each network; default: 100")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="where latencies of layers are kept; default: in the cache folder",
    )
    add_shape_option(parser)
    add_page_option(parser, "results/latency")
    add_json_option(parser)
    parser.set_defaults(
        run=lambda a: run_bench_latency(
            LatencyRequest(
                *(a.target, a.policies, a.threads, a.batch, a.runs, a.table),
                *(read_shape(a.input_shape), a.json, a.output),
            )
        )
    )


def run_bench_latency(request: LatencyRequest) -> int:
    """Predict, measure, print, and write what was asked for."""
    from automl_compress.bench.latency import bench_latency
    from automl_compress.compress import space_of_structure

    if request.policies < 2:
        raise InputError(f"--policies must be at least 2, but is {request.policies}; raise it")
    name, compressor, rules, example, settings = _loaded(request)
    settings = _changed(settings, request)
    space = space_of_structure(compressor.model, compressor.structure, rules).space
    print(f"{name}: timing the layers of {len(space)} genes into {settings.path()} ...", flush=True)
    bench = bench_latency(name, compressor, space, example, settings, request.policies)
    page, figure = _page(bench)
    stem = name.rpartition(":")[2]
    write_file(request.output / f"{stem}.svg", figure)
    path = request.output / f"{stem}.md"
    write_file(path, page.replace("FIGURE", f"{stem}.svg"))
    if request.json is not None:
        write_file(request.json, json.dumps(_document(bench), indent=1) + "\n")
    print(_table(bench).to_text())
    print("\n" + "\n".join(_findings(bench)))
    print(f"\npage: {path}")
    return 0


def _loaded(
    request: LatencyRequest,
) -> tuple[str, Compressor, SpaceRules, Tensor, LatencySettings]:
    """Name, compressor, rules, example input and latency settings of what was named."""
    from automl_compress.compress import Compressor
    from automl_compress.deploy.latency_calibration import LatencySettings
    from automl_compress.space import SpaceRules

    path = Path(request.target)
    if path.suffix not in (".yaml", ".yml"):
        from automl_compress.cli.space_file import network_and_example

        model, example = network_and_example(request.target, request.input_shape)
        compressor = Compressor(model, example, repair="none")
        return request.target, compressor, SpaceRules(), example, LatencySettings()
    from automl_compress.engine.config import read_config
    from automl_compress.workload import Workload, load_workload

    config = read_config(path)
    given = config.workload
    workload = given if isinstance(given, Workload) else load_workload(given)
    count = min(CALIBRATION_IMAGES, len(workload.splits.train))
    images = workload.splits.train.draw(count, config.estimate.seed).tensor(workload.normalization)
    compressor = Compressor(workload.model, workload.example_input(), images, repair="none")
    settings = config.latency or LatencySettings()
    return workload.name, compressor, config.space, workload.example_input(), settings


def _changed(settings: LatencySettings, request: LatencyRequest) -> LatencySettings:
    from automl_compress.deploy.measuring import FEWEST_RUNS

    words = {"threads": request.threads, "batch": request.batch, "runs": request.runs}
    changes: dict[str, Any] = {name: value for name, value in words.items() if value is not None}
    for name, value in changes.items():
        least = FEWEST_RUNS if name == "runs" else 1
        if value < least:
            raise InputError(f"--{name} must be at least {least}, but is {value}; raise it")
    measure = replace(settings.measure, **changes)
    return replace(settings, measure=measure, table=request.table or settings.table)


def _conditions(bench: LatencyBench) -> str:
    form = "INT8" if bench.int8 else "float32"
    return (
        f"{bench.conditions['runtime']}, threads {bench.conditions['threads']}, batch "
        f"{bench.conditions['batch']}, low-bit layers in {form}"
    )


def _measured(bench: LatencyBench) -> list[tuple[float, float, float]]:
    return [(row.measured_ms, row.lower_ms, row.upper_ms) for row in bench.rows]


def _table(bench: LatencyBench) -> Any:
    from automl_compress.report.latency import latency_table

    rows = [(row.policy[:SHOWN_KEY], row.macs / 1e6, row.predicted_ms) for row in bench.rows]
    return latency_table(_conditions(bench), rows, _measured(bench))


def _findings(bench: LatencyBench) -> Sequence[str]:
    return (
        f"{_conditions(bench)}, medians of {bench.runs} runs, networks in turn.",
        f"Spearman {bench.spearman:.3f} (of MACs alone {bench.macs_spearman:.3f}), Pearson "
        f"{bench.pearson:.3f}, median error {bench.median_error:.1%} over {len(bench.rows)} "
        "networks.",
        f"Predicted: {significant(bench.run_ms)} ms + {bench.slope:.3f} x the sum of layers, "
        f"fitted to {bench.calibrated_by} other networks; the space needs {bench.entries} layers.",
    )


def _page(bench: LatencyBench) -> tuple[str, str]:
    """Markdown that names its figure FIGURE, and the figure."""
    from automl_compress.report.latency import draw_latencies

    predicted = [row.predicted_ms for row in bench.rows]
    drawing = draw_latencies(bench.network, _conditions(bench), predicted, _measured(bench))
    lines = [
        f"# Predicted and measured latencies of {bench.network}",
        *(f"\n{finding}" for finding in _findings(bench)),
        "\nIntervals hold the median in 95 % of cases, by order statistics; runs close to each",
        "other are not quite independent, and other work on the machine disturbs them. They hold",
        "within this one session: another may give medians outside of them.",
        f"\n![{drawing.alt}](FIGURE)",
        f"\n{drawing.caption}",
        f"\n{_table(bench).to_markdown()}\n",
    ]
    return "\n".join(lines), drawing.svg


def _document(bench: LatencyBench) -> dict[str, Any]:
    names = ("spearman", "pearson", "macs_spearman", "median_error")
    found = {name: getattr(bench, name) for name in names}
    return {
        "version": 1,
        **asdict(bench),
        **{name: None if math.isnan(value) else value for name, value in found.items()},
    }
