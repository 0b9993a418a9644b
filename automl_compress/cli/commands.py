"""What each command does: build the objects, call them, print what they say."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import webbrowser
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from automl_compress.cli.options import check_output
from automl_compress.cli.progress import search_progress
from automl_compress.cli.shape import read_shape
from automl_compress.errors import InputError, InterruptedStudy, StudyError
from automl_compress.ledger import Manifest, StudyResult
from automl_compress.settings_file import read_settings


def version() -> str:
    """Name and version of this package."""
    return f"automl-compress {importlib.metadata.version('automl-compress')}"


def search(
    sweep: Path,
    out: Path | None,
    overrides: Sequence[str],
    workers: int | None,
    address: str | None,
    *,
    open_report: bool,
) -> int:
    """Run the study of a sweep file and write its report."""
    changes = engine_changes(workers, address)
    _check_readable(sweep, overrides)
    from automl_compress.engine import Study

    study = Study.from_file(sweep, overrides).with_engine(**changes)
    config = study.config
    if config.pipeline is not None:
        raise StudyError(
            f"'search' runs sweeps without 'pipeline', but '{sweep}' has it; run 'pipeline {sweep}'"
        )
    folder = out or Path("results") / config.name
    print(f"study {config.name}: loading the network and its data ...", flush=True)
    racing = len(config.strategies) * len(config.seeds)
    with search_progress(config.evaluations, racing) as progress:
        result = study.run(folder, progress)
    return _finish(result, open_report)


def _check_readable(sweep: Path, overrides: Sequence[str]) -> None:
    """Refuse a file that is no YAML at once: those who know its keys load torch, for seconds.

    Raises:
        StudyError: the file cannot be read, or an override is none.
    """
    read_settings(sweep, overrides, StudyError)


def pipeline(
    sweep: Path,
    out: Path | None,
    overrides: Sequence[str],
    workers: int | None,
    address: str | None,
    *,
    open_report: bool,
) -> int:
    """Run what of a sweep's stages is not done, and write the report."""
    _check_readable(sweep, overrides)
    from automl_compress.cli.terminal import TERMINAL
    from automl_compress.finish import run_pipeline

    changes = engine_changes(workers, address)
    folder = run_pipeline(sweep, out, overrides, audience=TERMINAL, **changes)
    return _finish(StudyResult(folder), open_report)


def resume(
    folder: Path,
    workers: int | None,
    address: str | None,
    *,
    retry_failed: bool,
    open_report: bool,
) -> int:
    """Go on with a study and write its report."""
    manifest = Manifest.read(folder)
    if manifest.status == "finished" and not retry_failed:
        print(f"study {manifest.study} is finished; only its report is written again")
        return report(folder, open_report=open_report)
    from automl_compress.engine import Study

    print(f"study {manifest.study}: resuming ...", flush=True)
    racing = sum(contestant.in_race for contestant in manifest.contestants)
    changes = engine_changes(workers, address)
    with search_progress(manifest.budget, racing) as progress:
        result = Study.resume(folder, progress, retry_failed=retry_failed, **changes)
    return _finish(result, open_report)


def extend(
    folder: Path,
    evaluations: int,
    strategies: Sequence[str],
    workers: int | None,
    address: str | None,
    *,
    open_report: bool,
) -> int:
    """Go on with a finished study beyond its end and write its report."""
    from automl_compress.engine import Study

    changes = engine_changes(workers, address)
    manifest = Manifest.read(folder)
    seeds = len({contestant.seed for contestant in manifest.contestants if contestant.in_race})
    racing = sum(contestant.in_race for contestant in manifest.contestants)
    print(f"study {manifest.study}: extending ...", flush=True)
    racing += seeds * len(strategies)
    with search_progress(manifest.budget + evaluations, racing) as progress:
        result = Study.extend(folder, evaluations, strategies, progress, **changes)
    return _finish(result, open_report)


def report(folder: Path, *, open_report: bool) -> int:
    """Write the report of a study again."""
    return _finish(StudyResult(folder), open_report)


def _finish(result: StudyResult, open_report: bool) -> int:
    from automl_compress.report import front_table, write_report

    try:
        path = write_report(result.folder)
    except KeyboardInterrupt as reason:
        raise InterruptedStudy(
            f"stopped; only its report is missing, which 'report {result.folder}' writes"
        ) from reason
    print(front_table(StudyResult(result.folder)))
    print(f"\nreport: {path}")
    if open_report and not webbrowser.open(path.resolve().as_uri()):
        print("no browser could be opened; open the report by hand")
    return 0


def engine_changes(workers: int | None, address: str | None) -> dict[str, Any]:
    """Engine settings that the words of a command replace.

    Raises:
        InputError: there is no such number of workers.
    """
    if workers is not None and workers < 1:
        raise InputError(f"--workers must be at least 1, but is {workers}; correct it")
    changes = {"workers": workers, "address": address}
    return {key: value for key, value in changes.items() if value is not None}


def space(model: str, output: Path, input_shape: str | None, *, force: bool) -> int:
    """Derive a search space from a network and write it for editing."""
    from automl_compress.cli.space_file import write_space_file

    check_output(output, force=force)
    coverage = write_space_file(model, output, read_shape(input_shape))
    print(
        f"{output}: {coverage.groups} channel groups, {coverage.layers} layers, "
        f"{coverage.parameters_share:.0%} of the weights, {coverage.macs_share:.0%} of the MACs"
    )
    for name, reason in coverage.skipped:
        print(f"  skipped {name}: {reason}")
    return 0


def export(
    folder: Path,
    rule: str,
    format_name: str,
    output: Path,
    *,
    recovered: bool,
    raw: bool,
    force: bool,
) -> int:
    """Write a network of a study into a file."""
    from automl_compress.cli.terminal import TERMINAL
    from automl_compress.finish import export_network

    check_output(output, force=force)
    export_network(
        folder, rule, format_name, output, recovered=recovered, raw=raw, audience=TERMINAL
    )
    return 0


def doctor() -> int:
    """Say what is installed and whether it works."""
    import torch

    from automl_compress.evaluate.fast_form import fast_precision
    from automl_compress.workload import cache_folder

    print(version())
    print(f"python {platform.python_version()} on {platform.machine()}")
    problems = 0
    for name in (
        *("torch", "torchvision", "ray", "pymoo", "optuna", "moocore", "numpy", "pandas"),
        *("pyarrow", "matplotlib", "safetensors", "scikit-learn", "scipy", "pillow", "pyyaml"),
    ):
        try:
            print(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name} is missing; run: pip install {name}")
            problems += 1
    print(f"processors: {len(os.sched_getaffinity(0))}")
    print(f"torch capability: {torch.backends.cpu.get_cpu_capability()}")
    print(f"estimates compute in {fast_precision()}")
    print(f"INT8 files: {_integer_products()}")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    print(f"CUDA devices: {gpus}")
    problems += _check_writable("image cache", cache_folder())
    problems += _check_ray()
    print("all is well" if not problems else f"{problems} problem(s)")
    return 0 if not problems else 1


def _integer_products() -> str:
    from automl_compress.deploy.runtime import EXACT, saturates

    try:
        if saturates():
            return f"products of 8 bits saturate here; sessions need {'='.join(EXACT)}"
    except InputError as reason:
        return str(reason)
    return "products of 8 bits are exact here"


def _check_writable(what: str, folder: Path) -> int:
    existing = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    writable = os.access(existing, os.W_OK)
    print(f"{what}: {folder} ({'writable' if writable else 'not writable'})")
    return 0 if writable else 1


def _check_ray() -> int:
    if find_spec("ray") is None:
        return 0  # it counts among the packages
    from automl_compress.engine.cluster import ray_works

    reason = ray_works()
    print(f"Ray: {reason or 'starts'}", file=sys.stdout)
    return 1 if reason else 0
