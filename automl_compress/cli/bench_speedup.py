"""`automl-compress bench speedup`: what a share of the channels is worth in milliseconds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from automl_compress.cli.options import (
    add_command,
    add_json_option,
    add_model,
    add_page_option,
    add_shape_option,
    write_file,
)
from automl_compress.cli.shape import read_shape
from automl_compress.errors import InputError


@dataclass(frozen=True)
class SpeedupRequest:
    """The words of the command.

    Args:
        model: a shipped network's name or `package.module:factory`.
        share: of the channels that stay.
        batches: inputs per run, each measured by itself.
        threads: threads of one run.
        runs: runs of each network.
        input_shape: of an example, of a network that is not shipped.
        output: folder of the page.
        json: file for the rows.
    """

    model: str
    share: float
    batches: tuple[int, ...]
    threads: int
    runs: int
    input_shape: tuple[int, ...] | None
    output: Path
    json: Path | None


def add_speedup(benches: Any) -> None:
    """Add the benchmark to a parser of benchmarks."""
    parser = add_command(
        benches, "speedup", "how much faster a network becomes, by how widths are chosen"
    )
    add_model(parser)
    parser.add_argument(
        "--share", type=float, default=0.5, metavar="X", help="of channels kept; default: 0.5"
    )
    parser.add_argument(
        "--batches",
        type=int,
        nargs="+",
        default=[1, 32],
        metavar="N",
        help="inputs per run, each measured by itself; default: 1 32",
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of a run; default: 1")
    parser.add_argument(
        "--runs", type=int, default=100, metavar="N", help="of each network; default: 100"
    )
    add_shape_option(parser)
    add_page_option(parser, "results/latency")
    add_json_option(parser)
    parser.set_defaults(
        run=lambda a: run_bench_speedup(
            SpeedupRequest(
                *(a.model, a.share, tuple(a.batches), a.threads, a.runs),
                *(read_shape(a.input_shape), a.output, a.json),
            )
        )
    )


def run_bench_speedup(request: SpeedupRequest) -> int:
    """Measure, print the page and write it."""
    from automl_compress.bench.speedup import measure_speedups, speedup_page
    from automl_compress.cli.space_file import network_and_example
    from automl_compress.compress import Compressor
    from automl_compress.deploy.measuring import FEWEST_RUNS, MeasureSettings

    for name, value, least in (
        ("threads", request.threads, 1),
        ("runs", request.runs, FEWEST_RUNS),
        *(("batches", batch, 1) for batch in request.batches),
    ):
        if value < least:
            raise InputError(f"--{name} must be at least {least}, but is {value}; raise it")
    model, example = network_and_example(request.model, request.input_shape)
    compressor = Compressor(model, example, repair="none")
    measure = MeasureSettings(threads=request.threads, runs=request.runs)
    print(f"{request.model}: timing layers ...", flush=True)
    found = measure_speedups(
        request.model, compressor, example, request.share, request.batches, measure
    )
    path = request.output / f"{request.model.rpartition(':')[2]}_speedup.md"
    write_file(path, speedup_page(found))
    if request.json is not None:
        write_file(request.json, json.dumps(asdict(found), indent=1) + "\n")
    print(f"{speedup_page(found)}\npage: {path}")
    return 0
