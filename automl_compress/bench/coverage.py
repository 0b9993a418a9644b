"""The coverage table: what can be compressed of every model torchvision lists.

Each model is measured in a process of its own, with a time limit: `python -m
automl_compress.bench.coverage NAME SECONDS` prints one row as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from automl_compress.compress import Compressor, space_of_structure
from automl_compress.compress.batchnorm import recalibrate
from automl_compress.deploy import load_packed, save_packed
from automl_compress.deploy.onnx import export_onnx
from automl_compress.errors import CompressError, WorkloadError
from automl_compress.space import Policy, SearchSpace, SpaceRules
from automl_compress.workload import torchvision_example, torchvision_tasks
from automl_compress.workload.torchvision_detectors import SingleStage, looking_once

POLICIES: Final = 2
"""Random policies that are built and run for each model."""
RESPONSE: Final = 0.05
"""Share of the largest output by which outputs must differ between two inputs, so that comparing
them says something."""
_IMAGES: Final = 16
"""Random images that renew BatchNorm statistics."""
_COLUMNS: Final = (
    *("model", "task", "input", "cut", "groups", "parameters", "MACs", "trace s"),
    *("policies run", "reload equal", "ONNX difference"),
)

Row = dict[str, Any]


def write_coverage(folder: Path, models: Sequence[str], time_limit: float) -> list[Row]:
    """Measure models and write `coverage.json` and `coverage.md`; other rows there are kept.

    Args:
        folder: where to write.
        models: names of `torchvision_tasks`; all of them when empty.
        time_limit: seconds for each model.

    Raises:
        WorkloadError: torchvision lists no such model.
    """
    tasks = torchvision_tasks()
    for name in models:
        if name not in tasks:
            raise WorkloadError(
                f"--models must name models torchvision lists, but '{name}' is none; correct it"
            )
    path = folder / "coverage.json"
    rows = {row["model"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in models or tuple(tasks):
        rows[name] = _in_own_process(name, time_limit)
        print(_line(_cells(rows[name])), flush=True)
        ordered = [rows[n] for n in tasks if n in rows]
        path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
        (folder / "coverage.md").write_text(_markdown(ordered), encoding="utf-8")
    return [rows[n] for n in tasks if n in rows]


def _in_own_process(name: str, time_limit: float) -> Row:
    command = [sys.executable, "-m", "automl_compress.bench.coverage", name, str(time_limit)]
    try:
        done = subprocess.run(  # noqa: S603 - this very module
            command, capture_output=True, text=True, timeout=time_limit, check=True
        )
        row: Row = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return _failed(name, f"took longer than {time_limit:g} s")
    except subprocess.CalledProcessError as error:
        return _failed(
            name, (error.stderr.strip().splitlines() or [f"exit {error.returncode}"])[-1]
        )
    return row


def _failed(name: str, reason: str) -> Row:
    return {"model": name, "task": torchvision_tasks()[name], "error": reason}


def measure(name: str, time_limit: float) -> Row:
    """What can be compressed of one model, and whether what is built runs."""
    model, inputs = torchvision_example(name)
    enliven(model, inputs)
    start = time.perf_counter()
    compressor = Compressor(model, inputs, repair="none", time_limit=time_limit)
    seconds = time.perf_counter() - start
    derived = space_of_structure(compressor.model, compressor.structure, SpaceRules())
    with torch.no_grad():
        whole = compressor.model(inputs)
    rng = np.random.default_rng(0)
    policies = [_random_policy(derived.space, rng) for _ in range(POLICIES)]
    built = compressor.model
    ran = 0
    for policy in policies:
        built = compressor.build(policy)
        ran += _runs(built, inputs, whole, compressor.cost(policy)["params"])
    groups = len(compressor.structure.groups)
    del compressor  # the largest models have 2.5 GB of weights
    equal = _reload_equal(model, built, inputs)
    del model
    skipped = [
        [skip, reason] for skip, reason in derived.coverage.skipped if skip.startswith("channels:")
    ]
    return {
        "model": name,
        "task": torchvision_tasks()[name],
        "input": inputs.shape[-1],
        "cut": derived.coverage.groups,
        "groups": groups,
        "parameters": round(derived.coverage.parameters_share, 4),
        "macs": round(derived.coverage.macs_share, 4),
        "trace_seconds": round(seconds, 2),
        "policies": POLICIES,
        "ran": ran,
        "reload_equal": equal,
        "onnx_difference": _onnx_difference(built, inputs),
        "skipped": skipped,
    }


def enliven(model: nn.Module, inputs: Tensor) -> None:
    """Make outputs depend on the input where they hardly do as torchvision initialises a model.

    Layers that start at zero, such as the head of a ViT, get random weights; where signals still
    die on the way, BatchNorm gets the statistics of random images.

    Args:
        model: changed in place, in evaluation mode.
        inputs: (1, ...) an input.
    """
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.weight.any():
            nn.init.normal_(
                module.weight, std=module.weight[0].numel() ** -0.5, generator=generator
            )
    if _response(model, inputs, generator) < RESPONSE:
        images = torch.rand(_IMAGES, *inputs.shape[1:], generator=generator)
        with torch.no_grad():
            recalibrate(model, images)


def _response(model: nn.Module, inputs: Tensor, generator: torch.Generator) -> float:
    """Largest change of an output for another input over the largest output.

    Infinite where detections differ in number.
    """
    with torch.no_grad():
        first = _leaves(model(inputs))
        second = _leaves(model(torch.rand(inputs.shape, generator=generator)))
    if [tensor.shape for tensor in first] != [tensor.shape for tensor in second]:
        return float("inf")
    return max(
        (
            float((one - other).abs().max() / one.abs().max().clamp_min(1e-12))
            for one, other in zip(first, second, strict=True)
            if one.numel()
        ),
        default=0.0,
    )


def _random_policy(space: SearchSpace, rng: np.random.Generator) -> Policy:
    return Policy({gene.name: gene.values[rng.integers(len(gene.values))] for gene in space})


def _runs(built: nn.Module, inputs: Tensor, whole: Any, parameters: float) -> bool:
    """Whether a built network gives finite outputs of the original's form at the said size."""
    with torch.no_grad():
        output = built(inputs)
    found, wanted = _leaves(output), _leaves(whole)
    detections = isinstance(whole, list)  # as many as there are
    return (
        len(found) == len(wanted)
        and all(bool(torch.isfinite(tensor).all()) for tensor in found)
        and (detections or [t.shape for t in found] == [t.shape for t in wanted])
        and sum(parameter.numel() for parameter in built.parameters()) == parameters
    )


def _leaves(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    items = list(output.values()) if isinstance(output, Mapping) else list(output)
    return [tensor for item in items for tensor in _leaves(item)]


def _reload_equal(model: nn.Module, built: nn.Module, inputs: Tensor) -> bool | str:
    """Whether a packed file gives the same outputs, or why there is none."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.packed"
        try:
            save_packed(built, path)
            again = load_packed(path, model=model)
        except CompressError as error:
            return str(error)
    with torch.no_grad():
        pairs = zip(_leaves(built(inputs)), _leaves(again.eval()(inputs)), strict=True)
        return all(torch.equal(one, other) for one, other in pairs)


def _onnx_difference(built: nn.Module, inputs: Tensor) -> float | str:
    """The worst output's largest difference over its largest value, or why there is no file.

    Of a detector that looks once, the network inside is exported, on images of its own size.
    """
    inside = looking_once(built)
    if isinstance(inside, SingleStage):
        built, inputs = inside, inside.transform(list(inputs))[0].tensors
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = export_onnx(built, Path(folder) / "network.onnx", inputs, int8=False)
        except CompressError as error:
            return str(error)
    return max(report.differences.values())


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return [row["model"], row["task"], row["error"], *[""] * (len(_COLUMNS) - 3)]
    return [
        row["model"],
        row["task"],
        str(row["input"]),
        str(row["cut"]),
        str(row["groups"]),
        f"{row['parameters']:.1%}",
        f"{row['macs']:.1%}",
        f"{row['trace_seconds']:.1f}",
        f"{row['ran']} of {row['policies']}",
        _told(row["reload_equal"]),
        _told(row["onnx_difference"]),
    ]


def _told(value: bool | float | str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else f"{value:.1e}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _markdown(rows: list[Row]) -> str:
    """The table, and why groups are protected, most frequent reason first."""
    good = sum("error" not in row and row["ran"] == row["policies"] for row in rows)
    lines = [
        "# Coverage of torchvision's models",
        "",
        f"{good} of {len(rows)} models yield a space whose random policies run.",
        "",
        "Weights are random; inputs are squares of the given side, as small as a model sensibly",
        "takes. Where outputs hardly depend on the input, layers that start at zero get random",
        "weights and BatchNorm the statistics of random images first. *cut* counts the channel",
        "groups that can be cut, among all *groups*; *parameters* and *MACs* are the shares that",
        "lie where a gene changes something. A policy runs when the network it describes gives",
        "finite outputs of the original's form and has the parameters the cost model says.",
        "*Reload equal*: a packed file gives the same outputs, bit for bit. *ONNX difference*: the",
        "largest between ONNX Runtime and PyTorch, over the largest value, of the worst output;",
        "detectors that look once are compared by their raw outputs, which files of studies turn",
        "into boxes; those that look twice give lists of boxes, which are no tensors to export.",
        "Seconds are those of a shared machine.",
        "",
        _line(_COLUMNS),
        _line(["---"] * len(_COLUMNS)),
        *(_line(_cells(row)) for row in rows),
        "",
        "## Why groups are protected",
        "",
    ]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for _, reason in row.get("skipped", ()):
            reasons.setdefault(reason, []).append(row["model"])
    for reason, models in sorted(reasons.items(), key=lambda item: -len(item[1])):
        names = sorted(set(models))
        told = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"- {reason}: {len(models)} groups in {len(names)} models ({told})")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], float(sys.argv[2]))))
