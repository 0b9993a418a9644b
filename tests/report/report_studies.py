"""Made-up studies: real folders with evaluations that a small generator drew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from automl_compress.evaluate import Evaluation
from automl_compress.ledger import LEDGER, ContestantRecord, Ledger, Manifest, Place, StudyResult
from automl_compress.space import Policy

BASELINE = {
    "accuracy": 0.934,
    "size_bytes": 3_430_000.0,
    "macs": 125_500_000.0,
    "params": 855_770.0,
    "bitops": 128_512_000_000.0,
}
TEST_IMAGES = 9488
CONTESTANTS = (
    *(ContestantRecord(f"{s}-{i}", s, i) for s in ("nsga2", "ddpg", "scaled-random")
      for i in (0, 1)),
    ContestantRecord("uniform-0", "uniform", 0, in_race=False),
)  # fmt: skip
LAYERS = [f"layer{s}.{b}.conv{c}" for s in (1, 2, 3) for b in range(9) for c in (1, 2)]
_SKILL = {"nsga2": 1.0, "ddpg": 0.8, "scaled-random": 0.35, "uniform": 0.0}


def manifest(**changes: Any) -> Manifest:
    """The manifest of a study of ResNet-56, with some fields replaced."""
    settings: dict[str, Any] = {
        "study": "resnet56_cifar10",
        "status": "finished",
        "config": {
            "study": "resnet56_cifar10",
            "budget": {"evaluations": 150},
            "estimate": {"images": 512, "calibration_images": 256, "repair": "auto"},
            "strategies": ["nsga2", "ddpg", "scaled-random"],
        },
        "fingerprint": "f" * 64,
        "objectives": ("error", "size_bytes", "macs"),
        "constraints": (),
        "budget": 150,
        "estimator": "network-1a2b3c4d",
        "test_estimator": "network-test-5e6f",
        "baseline": BASELINE,
        "test_baseline": {**BASELINE, "accuracy": 0.9337},
        "contestants": CONTESTANTS,
        "space": {"genes": {
            **{f"channels:{name}": [8, 16, 24, 32] for name in LAYERS[::2]},
            **{f"weight_bits:{name}": [2, 3, 4, 5, 6, 7, 8] for name in LAYERS},
        }},
        "coverage": {
            "groups": 27, "parameters_share": 0.998, "macs_share": 0.9964,
            "skipped": [{"name": "linear", "reason": "last layer"}],
        },
        "workload": {
            "name": "resnet56", "data": "CIFAR10",
            "splits": {"calibration": 256, "search": 512, "test": TEST_IMAGES},
            "hashes": {"weights": "ab" * 8, "data": "cd" * 8},
        },
        "environment": {
            "versions": {"automl-compress": "0.1.0", "torch": "2.11.0"},
            "hardware": {"cpu": "8 cores"}, "git_commit": "0123abc",
            "started": "2025-01-02T03:04:05Z",
        },
    }  # fmt: skip
    return Manifest(**{**settings, **changes})


def draw_policy(rng: np.random.Generator, keep: float, bits: float) -> Policy:
    """A policy whose channels and bits scatter around two shares in [0, 1]."""
    genes: dict[str, int] = {}
    for name in LAYERS[::2]:
        genes[f"channels:{name}"] = 8 * int(np.clip(round(4 * keep + rng.normal(0, 0.7)), 1, 4))
    for name in LAYERS:
        genes[f"weight_bits:{name}"] = int(np.clip(round(8 * bits + rng.normal(0, 1.2)), 2, 8))
    return Policy(genes)


def judge(policy: Policy, skill: float, images: int, rng: np.random.Generator) -> dict[str, float]:
    """Plausible metrics of a policy; `skill` in [0, 1] lifts its accuracy."""
    channels = np.mean([v / 32 for v in policy.of_kind("channels").values()])
    bits = np.mean([v / 32 for v in policy.of_kind("weight_bits").values()])
    harm = 0.9 * np.exp(-5.0 * channels) + 0.8 * np.exp(-28 * bits) + 0.25 * (1 - skill)
    accuracy = max(0.1, BASELINE["accuracy"] - harm * rng.uniform(0.3, 1.0) ** 1.5)
    return {
        "accuracy": round(accuracy * images) / images,
        "size_bytes": float(round(BASELINE["size_bytes"] * (0.03 + channels * bits))),
        "macs": float(round(BASELINE["macs"] * (0.05 + 0.95 * channels))),
        "params": float(round(BASELINE["params"] * (0.03 + 0.97 * channels))),
        "bitops": float(round(BASELINE["bitops"] * (0.05 + channels * bits))),
    }


def told(
    record: ContestantRecord, count: int, estimator: str, failing: float = 0.03
) -> list[Evaluation]:
    """What one contestant was told, better with time for those that learn."""
    rng = np.random.default_rng([record.seed, len(record.strategy), ord(record.strategy[0])])
    evaluations = [start(estimator)][:count]
    for position in range(1, count):
        if record.in_race:
            keep, bits = rng.uniform(0.1, 1.0), rng.uniform(0.2, 1.0)
        else:
            keep = bits = (position + 1) / count
        policy = draw_policy(rng, keep, bits)
        if rng.random() < failing:
            reason = "out of memory" if rng.random() < 0.6 else "accuracy is NaN"
            evaluations.append(Evaluation.failed(policy, estimator, reason, 0.2))
            continue
        skill = _SKILL.get(record.strategy, 0.5) * min(1.0, 0.4 + position / count)
        metrics = judge(policy, skill, 512, rng)
        evaluations.append(Evaluation(policy, estimator, metrics, images=512, seconds=1.5))
    return evaluations


def start(estimator: str) -> Evaluation:
    """The evaluation that every contestant asks for first."""
    rng = np.random.default_rng(0)
    chosen = draw_policy(rng, 1.0, 1.0)
    return Evaluation(chosen, estimator, judge(chosen, 1.0, 512, rng), images=512, seconds=1.5)


def write_study(
    folder: Path,
    made: Sequence[Sequence[Evaluation]] | int = 30,
    finalists: int = 5,
    *,
    finalists_keys: Sequence[str] = (),
    tests: Sequence[float | str | None] = (),
    **changes: Any,
) -> Path:
    """Write a study's folder.

    Args:
        folder: made when missing.
        made: what each contestant was told, or how many evaluations to draw for each.
        finalists: how many points of the front are measured on made-up test images.
        finalists_keys: finalists chosen by hand, from the first contestant.
        tests: for each of these its test accuracy, a reason of failure, or None.
        changes: fields of the manifest.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(made, int):
        changes = {"budget": max(1, made), **changes}
    study = manifest(finalists=tuple(finalists_keys), **changes)
    if isinstance(made, int):
        made = [
            told(r, made if r.in_race else min(made, 40), study.estimator)
            for r in study.contestants
        ]
    with Ledger(folder / LEDGER) as ledger:
        for record, evaluations in zip(study.contestants, made, strict=True):
            places = [Place(record.name, p, p // 10) for p in range(len(evaluations))]
            for place, evaluation in zip(places, evaluations, strict=True):
                ledger.add(evaluation, place)
            ledger.charge(places, evaluations)
        for position, test in enumerate(tests):
            if test is not None:
                answer = _tested(made[0][position], test, study.test_estimator)
                ledger.add(answer, Place("finalists", position, 0))
    study.write(folder)
    if finalists:
        measure(folder, study, finalists)
    return folder


def _tested(estimate: Evaluation, test: float | str, estimator: str) -> Evaluation:
    if isinstance(test, str):
        return Evaluation.failed(estimate.policy, estimator, test)
    metrics = {**estimate.metrics, "accuracy": test}
    return Evaluation(estimate.policy, estimator, metrics, images=TEST_IMAGES)


def measure(folder: Path, study: Manifest, finalists: int) -> None:
    """Measure evenly chosen points of the front on made-up test images."""
    front = [p for p in StudyResult(folder).front() if p.objectives["error"] < 0.166]
    if not front:
        return
    spots = np.unique(np.linspace(0, len(front) - 1, finalists).round().astype(int))
    chosen = [front[i] for i in spots]
    rng = np.random.default_rng(7)
    with Ledger(folder / LEDGER) as ledger:
        for position, point in enumerate(chosen):
            accuracy = 1 - point.objectives["error"] - abs(rng.normal(0, 0.006))
            metrics = {
                **{k: v for k, v in point.objectives.items() if k != "error"},
                "accuracy": round(accuracy * TEST_IMAGES) / TEST_IMAGES,
            }
            ledger.add(
                Evaluation(point.policy, study.test_estimator, metrics, images=TEST_IMAGES),
                Place("finalists", position, 0),
            )
    Manifest(**{**vars(study), "finalists": tuple(p.policy.key for p in chosen)}).write(folder)


def policy(*bits: int) -> Policy:
    """A small policy with a weight bit-width for each layer."""
    return Policy({f"weight_bits:layer{i}": b for i, b in enumerate(bits)})


def evaluation(chosen: Policy, accuracy: float, size: float, macs: float = 1e6) -> Evaluation:
    """A successful evaluation by the search's estimator."""
    metrics = {"accuracy": accuracy, "size_bytes": size, "macs": macs, "params": 10.0}
    return Evaluation(chosen, manifest().estimator, metrics, images=512, seconds=1.0)


def only(*names: str) -> tuple[ContestantRecord, ...]:
    """Contestants `strategy-seed` in the race."""
    return tuple(
        ContestantRecord(name, name.rpartition("-")[0], int(name.rpartition("-")[2]))
        for name in names
    )
