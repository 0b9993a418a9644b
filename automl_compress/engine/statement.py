"""What a study says of itself: settings, contestants, data, versions and machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from automl_compress.compress import DerivedSpace
from automl_compress.engine.config import StudyConfig
from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.evaluate.estimator import Estimator
from automl_compress.ledger import ContestantRecord, Manifest
from automl_compress.workload import Workload, WorkloadConfig, card_data

_DATA_KEYS: Final = ("torchvision", "voc", "coco", "factory", "root")
REFERENCE: Final = "uniform"
"""Strategy that every study runs, if only to draw its line."""


def state_manifest(
    config: StudyConfig,
    workload: Workload,
    derived: DerivedSpace,
    constraints: tuple[Constraint, ...],
    estimators: tuple[Estimator, Estimator],
    baselines: tuple[Evaluation, Evaluation],
) -> Manifest:
    """The manifest of a study that begins.

    Args:
        config: its settings.
        workload: its network and data.
        derived: its space.
        constraints: absolute.
        estimators: of the search and of the final test.
        baselines: what each of them says of the uncompressed network.
    """
    search, test = estimators
    splits = workload.splits
    manifest = Manifest(
        study=config.name,
        status="running",
        config=config.plain,
        fingerprint="",
        objectives=config.objectives,
        constraints=constraints,
        budget=config.evaluations,
        estimator=search.identity,
        test_estimator=test.identity,
        baseline=dict(baselines[0].metrics),
        test_baseline=dict(baselines[1].metrics),
        contestants=_contestants(config.strategies, config.seeds),
        space=derived.space.to_dict(),
        coverage=derived.coverage.to_dict(),
        workload={
            "name": workload.name,
            "data": _data_name(config),
            "task": workload.task.name,
            "identity": workload.identity,
            "classes": len(workload.classes),
            "splits": {
                name: {"images": len(part), "content_hash": part.content_hash}
                for name, part in (
                    ("train", splits.train),
                    ("validation", splits.validation),
                    ("test", splits.test),
                )
            },
        },
        environment=_environment(config),
    )
    return replace(manifest, fingerprint=fingerprint_of(manifest))


def fingerprint_of(manifest: Manifest) -> str:
    """Hash of everything that decides a study's evaluations, of a manifest as it begins."""
    decisive = (
        manifest.estimator,
        manifest.test_estimator,
        manifest.space,
        manifest.objectives,
        [asdict(c) for c in manifest.constraints],
        [asdict(c) for c in manifest.contestants],
        manifest.budget,
    )
    fingerprint = _digest(decisive)
    if not manifest.rungs:
        return fingerprint
    rungs = [asdict(record) for record in manifest.rungs]
    # Who climbed came of the evaluations; studies of before it was stated keep their fingerprints.
    return _digest((fingerprint, [{n: rung[n] for n in rung if n != "climbers"} for rung in rungs]))


def _digest(decisive: tuple[Any, ...]) -> str:
    return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()[:32]


def _data_name(config: StudyConfig) -> str:
    """The data as the user, or the card of the weights, named them."""
    stated = config.plain.get("workload")
    data = stated.get("data") if isinstance(stated, Mapping) else None
    if data is None and isinstance(config.workload, WorkloadConfig):
        data = card_data(config.workload.weights)
    if isinstance(data, Mapping):
        data = next((data[key] for key in _DATA_KEYS if data.get(key)), None)
    if data is None:
        return "given in memory" if stated is None else "the network's own"
    return str(data)


def _contestants(strategies: Sequence[str], seeds: Sequence[int]) -> tuple[ContestantRecord, ...]:
    """Strategies by seeds; a strategy without chance runs once, and the uniform line always."""
    racing = [
        ContestantRecord(f"{strategy}-{seed}", strategy, seed)
        for strategy in strategies
        for seed in (seeds[:1] if strategy == REFERENCE else seeds)
    ]
    if REFERENCE not in strategies:
        racing.append(ContestantRecord(f"{REFERENCE}-line", REFERENCE, 0, in_race=False))
    return tuple(racing)


def _environment(config: StudyConfig) -> dict[str, Any]:
    packages = ("automl-compress", "torch", "torchvision", "ray", "pymoo", "optuna", "numpy")
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": platform.python_version(), **_versions(packages)},
        "hardware": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "machine": platform.machine(),
        },
        "engine": {"kind": config.engine.kind, "threads": config.engine.threads},
        "git_commit": _git_commit(),
        "base": os.path.relpath(config.base),
    }


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def _git_commit() -> str | None:
    """Commit of the source tree this package runs from; None when it is installed without one."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
