"""`automl-compress bench`: measurements, each printed as a table and kept as JSON when asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from automl_compress.cli.bench_ablation import add_ablation
from automl_compress.cli.bench_latency import add_latency
from automl_compress.cli.bench_recovery import add_recovery
from automl_compress.cli.bench_speedup import add_speedup
from automl_compress.cli.options import (
    add_command,
    add_json_option,
    add_list_option,
    add_overrides_option,
    add_page_option,
    write_file,
)
from automl_compress.errors import InputError
from automl_compress.settings import significant


def add_bench(subparsers: Any) -> None:
    """Add the command and its benchmarks to a parser."""
    parser = add_command(subparsers, "bench", "measure what parts buy and cost")
    benches = parser.add_subparsers(
        dest="bench", required=True, parser_class=type(parser), title="benchmarks", metavar="BENCH"
    )
    _add_estimate(benches)
    _add_repair(benches)
    add_recovery(benches)
    _add_packed(benches)
    add_latency(benches)
    add_speedup(benches)
    _add_coverage(benches)
    _add_strategies(benches)
    add_ablation(benches)
    _add_engine(benches)


def _add_sweep(parser: Any) -> None:
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="names network and data")
    add_overrides_option(parser, "override a key of the sweep file")


def _add_repair(benches: Any) -> None:
    parser = add_command(benches, "repair", "what every repair buys without training")
    _add_sweep(parser)
    parser.add_argument("--images", type=int, metavar="N", help="test images; default: all")
    add_page_option(parser, "results/repair")
    add_json_option(parser)
    parser.set_defaults(
        run=lambda a: bench_repair(a.sweep, a.overrides, a.images, a.output, a.json)
    )


def _add_strategies(benches: Any) -> None:
    parser = add_command(benches, "strategies", "what strategies need for themselves")
    add_list_option(
        parser, "--strategies", "NAME", "shipped or package.module:callable; default: all shipped"
    )
    parser.add_argument(
        "--genes", type=int, default=120, metavar="N", help="of the toy; default: 120"
    )
    parser.add_argument(
        "--evaluations", type=int, default=1000, metavar="N", help="of each; default: 1000"
    )
    parser.add_argument(
        "--known",
        type=int,
        default=0,
        metavar="N",
        help="evaluations each is told before the clock starts; default: 0",
    )
    add_json_option(parser)
    parser.set_defaults(
        run=lambda a: bench_strategies(a.strategies, a.genes, a.evaluations, a.known, a.json)
    )


def _add_coverage(benches: Any) -> None:
    parser = add_command(benches, "coverage", "what of torchvision's models is compressible")
    add_page_option(parser, "results/coverage")
    add_list_option(parser, "--models", "NAME", "of torchvision; default: all of them")
    parser.add_argument(
        "--time-limit",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="for each model; default: 600",
    )
    parser.set_defaults(run=lambda a: bench_coverage(a.output, a.models, a.time_limit))


def _add_estimate(benches: Any) -> None:
    parser = add_command(benches, "estimate", "estimates a second, against the naive loop")
    _add_sweep(parser)
    parser.add_argument(
        "--policies", type=int, default=30, metavar="N", help="to estimate; default: 30"
    )
    add_page_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=_bench_estimate)


def _add_packed(benches: Any) -> None:
    parser = add_command(benches, "packed", "bytes on disk against bytes promised")
    add_list_option(parser, "--models", "NAME", "default: five shipped networks")
    parser.add_argument(
        "--policies", type=int, default=20, metavar="N", help="of each network; default: 20"
    )
    add_page_option(parser, "results/packed")
    add_json_option(parser)
    parser.set_defaults(run=lambda a: bench_packed(a.models, a.policies, a.output, a.json))


def _add_engine(benches: Any) -> None:
    parser = add_command(benches, "engine", "what the Ray engine's dispatcher and evaluators need")
    _add_sweep(parser)
    parser.add_argument(
        "--contestants", type=int, default=4, metavar="N", help="side by side; default: 4"
    )
    parser.add_argument(
        "--evaluations", type=int, default=50, metavar="N", help="of each; default: 50"
    )
    add_json_option(parser)
    parser.set_defaults(
        run=lambda a: bench_engine(a.sweep, a.overrides, a.contestants, a.evaluations, a.json)
    )


def _bench_estimate(arguments: Any) -> int:
    from automl_compress.cli.bench_estimate import run_bench_estimate

    a = arguments
    return run_bench_estimate(a.sweep, a.overrides, a.policies, a.json, a.output)


def bench_repair(
    sweep: Path, overrides: Sequence[str], images: int | None, folder: Path, output: Path | None
) -> int:
    """Measure every repair on a sweep's network, print the table and write a page."""
    from automl_compress.bench.repair import measure_repairs, repair_page, repair_table
    from automl_compress.engine.config import read_config
    from automl_compress.workload import Workload, load_workload

    if images is not None and images < 1:
        raise InputError(f"--images must be at least 1, but is {images}; correct it")
    config = read_config(sweep, overrides)
    given = config.workload
    workload = given if isinstance(given, Workload) else load_workload(given)
    held = len(workload.splits.test)
    if images is not None and images > held:
        raise InputError(f"--images must be at most {held}, but is {images}; lower it")
    rows = []
    for row in measure_repairs(workload, config.estimate, images):
        rows.append(row)
        print(f"{row.network}, {row.level}, {row.repair}: {row.quality:.2%}", flush=True)
    facts = [
        f"Judged on {images or held:,} test images; {config.estimate.calibration_images} training "
        f"images for calibration, criterion {config.estimate.criterion}.",
        *_training_facts(None if isinstance(given, Workload) else given.weights),
    ]
    page = folder / f"{config.name}.md"
    write_file(page, repair_page(workload.name, rows, facts, workload.task.quality))
    print(f"\n{repair_table(rows)}\n\npage: {page}")
    if output is not None:
        write_file(output, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def _training_facts(weights: Path | None) -> list[str]:
    """What the card of a network's weights says of their training; nothing where there is none."""
    from automl_compress.evaluate import QUALITIES, quality_name
    from automl_compress.workload import read_card

    card = None if weights is None else read_card(weights)
    if card is None:
        return []
    quality = quality_name(card)
    return [
        f"The weights were trained for {card['training']['epochs']} epochs on "
        f"{card['device']}; their held-out {QUALITIES[quality]} is "
        f"{card[quality]['held_out']:.2%}."
    ]


def bench_packed(models: Sequence[str], policies: int, folder: Path, output: Path | None) -> int:
    """Measure packed files of random policies and write a page; 1 where one is not read back."""
    from automl_compress.bench.packed import DEFAULT_MODELS, measure_packed, packed_page

    rows = []
    for row in measure_packed(tuple(models) or DEFAULT_MODELS, policies):
        rows.append(row)
        print(f"{row.model}: {row.promised:,} promised, {row.disk:,} on disk", flush=True)
    page = folder / "packed.md"
    write_file(page, packed_page(rows))
    print(f"\n{packed_page(rows)}\npage: {page}")
    if output is not None:
        write_file(output, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0 if all(row.equal for row in rows) else 1


def bench_strategies(
    names: Sequence[str], genes: int, evaluations: int, known: int, output: Path | None
) -> int:
    """Measure the overhead of strategies and print the table."""
    from automl_compress.bench.strategies import measure_strategies, overhead_table
    from automl_compress.search import strategy_names

    rows = []
    for row in measure_strategies(tuple(names) or strategy_names(), genes, evaluations, known):
        rows.append(row)
        print(f"{row.strategy}: {significant(row.milliseconds, 3)} ms", flush=True)
    print(f"\n{overhead_table(rows)}")
    if output is not None:
        write_file(output, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def bench_engine(
    sweep: Path, overrides: Sequence[str], contestants: int, evaluations: int, output: Path | None
) -> int:
    """Measure what the Ray engine needs on a sweep's network, and print it."""
    from automl_compress.bench.engine import engine_table, measure_engine
    from automl_compress.engine.config import read_config

    cost = measure_engine(read_config(sweep, overrides), contestants, evaluations)
    print(engine_table(cost))
    if output is not None:
        write_file(output, json.dumps(asdict(cost), indent=1) + "\n")
    return 0


def bench_coverage(folder: Path, models: Sequence[str], time_limit: float) -> int:
    """Measure what of torchvision's models can be compressed, and write the table."""
    from automl_compress.bench.coverage import write_coverage

    rows = write_coverage(folder, models, time_limit)
    good = sum("error" not in row and row["ran"] == row["policies"] for row in rows)
    print(f"{folder / 'coverage.md'}: {good} of {len(rows)} models yield a space that runs")
    return 0 if good == len(rows) else 1
