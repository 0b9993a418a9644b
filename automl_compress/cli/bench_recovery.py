"""`automl-compress bench recovery`: images trained on in a second, against a plain loop."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from automl_compress.cli.options import (
    add_command,
    add_device_option,
    add_json_option,
    add_model,
    add_page_option,
    add_shape_option,
    write_file,
)
from automl_compress.cli.shape import read_shape
from automl_compress.errors import InputError


@dataclass(frozen=True)
class RecoveryBenchRequest:
    """The words of the command.

    Args:
        model: a shipped network's name or `package.module:factory`.
        batch: images a step.
        steps: of each loop in each round.
        rounds: of all loops.
        threads: of torch.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        input_shape: of an example, of a network that is not shipped.
        output: folder of the page.
        json: file for the rows.
    """

    model: str
    batch: int
    steps: int
    rounds: int
    threads: int
    device: str
    input_shape: tuple[int, ...] | None
    output: Path
    json: Path | None


def add_recovery(benches: Any) -> None:
    """Add the benchmark to a parser."""
    parser = add_command(benches, "recovery", "images trained on in a second, against a plain loop")
    add_model(parser)
    parser.add_argument(
        "--batch", type=int, default=128, metavar="N", help="images a step; default: 128"
    )
    parser.add_argument(
        "--steps", type=int, default=10, metavar="N", help="of a loop in a round; default: 10"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="of both loops; default: 5"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch; default: 1")
    add_device_option(parser)
    parser.set_defaults(device="auto")
    add_shape_option(parser)
    add_page_option(parser, "results/recovery_throughput")
    add_json_option(parser)
    parser.set_defaults(
        run=lambda a: run_bench_recovery(
            RecoveryBenchRequest(
                *(a.model, a.batch, a.steps, a.rounds, a.threads, a.device),
                *(read_shape(a.input_shape), a.output, a.json),
            )
        )
    )


def run_bench_recovery(request: RecoveryBenchRequest) -> int:
    """Measure, print the page and write it."""
    import torch

    from automl_compress.bench.recovery import SpeedTask, measure_training, speed_page
    from automl_compress.cli.space_file import network_and_example
    from automl_compress.engine.restore import torch_threads
    from automl_compress.recover import find_device

    for name, least in (("batch", 2), ("steps", 1), ("rounds", 1), ("threads", 1)):
        value = getattr(request, name)
        if value < least:
            raise InputError(f"--{name} must be at least {least}, but is {value}; raise it")
    device = find_device(request.device)
    model, example = network_and_example(request.model, request.input_shape)
    with torch.no_grad():
        output = model(example)
    if not isinstance(output, torch.Tensor) or output.dim() != 2:
        raise InputError(
            f"bench recovery trains classifiers, whose outputs are (n, classes), but those of "
            f"'{request.model}' are not; give another network"
        )
    task = SpeedTask(
        *(
            model,
            example,
            output.shape[1],
            request.batch,
            request.steps,
            request.rounds,
            request.device,
        )
    )
    with torch_threads(request.threads):
        rows = measure_training(task, lambda line: print(line, flush=True))
    machine = f"{platform.machine()}, {request.threads} threads of torch {torch.__version__}"
    if device.type == "cuda":
        machine = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    page = speed_page(request.model, task, rows, machine)
    path = request.output / f"{request.model.rpartition(':')[2]}.md"
    write_file(path, page)
    if request.json is not None:
        write_file(request.json, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(f"\n{page}\npage: {path}")
    return 0
