"""Networks of a study, trained back to accuracy and put into the study's folder and report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automl_compress.cli.training_progress import TrainingProgress
from automl_compress.deploy.state import load_state, save_state
from automl_compress.engine import Restored, restore_study
from automl_compress.errors import StudyError
from automl_compress.ledger import RECOVERED, StudyResult, write_text
from automl_compress.recover import (
    Recovered,
    RecoverySettings,
    find_device,
    measure,
    recover_policy,
    section_of,
)
from automl_compress.report import Pick, pick_network, write_report
from automl_compress.space import Policy

NETWORK = "network.safetensors"
CHECKPOINT = "training.checkpoint"


def recover_networks(
    folder: Path, rules: Sequence[str], overrides: Sequence[str], *, force: bool
) -> Path:
    """Recover what rules pick, one network after the other, and write the report again.

    Args:
        folder: a study's folder.
        rules: see `report.pick_network`.
        overrides: `key=value` texts, settings of `RecoverySettings`.
        force: whether networks that were recovered with other settings are replaced.

    Returns:
        The path of the report.

    Raises:
        InputError: a rule, a setting or the folder is wrong; nothing is written.
        InterruptedStudy: the user stopped it; the same command goes on.
    """
    settings = RecoverySettings.from_section(section_of(overrides))
    find_device(settings.training.device)
    result = StudyResult(folder)
    picked = {found.policy.key: found for found in (pick_network(result, rule) for rule in rules)}
    stated = json.loads(json.dumps(settings.to_dict()))
    waiting = [found for found in picked.values() if not _is_done(folder, found, stated, force)]
    if waiting:
        study = restore_study(folder)
        for place, found in enumerate(waiting, 1):
            print(f"[{place}/{len(waiting)}] {found.describe()}", flush=True)
            _recover_one(study, result, found, settings, stated)
    return write_report(folder)


def recovered_file(folder: Path, policy: Policy) -> Path:
    """Where the trained network of a policy lies.

    Raises:
        StudyError: it was not recovered.
    """
    path = folder / RECOVERED / policy.key / NETWORK
    if not path.is_file():
        raise StudyError(
            f"--recovered needs a network that was trained, but '{folder}' has none of the key "
            f"{policy.key}; run 'recover {folder} --pick point:{policy.key}' first"
        )
    return path


def load_trained(path: Path, study: Restored) -> nn.Module:
    """The network of a file that `recover_networks` wrote."""
    return load_state(path, study.workload.model)


def _is_done(folder: Path, picked: Pick, stated: dict[str, Any], force: bool) -> bool:
    path = folder / RECOVERED / picked.policy.key / "recovered.json"
    if not path.exists() or force:
        return False
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError) as reason:
        raise StudyError(
            f"'{path}' must say how a network was recovered, but is broken; remove it"
        ) from reason
    if before != stated:
        raise StudyError(
            f"a network is recovered once, but '{path.parent}' holds it with other settings; "
            "give --force to replace it"
        )
    print(f"{picked.describe()} is recovered already")
    return True


def _recover_one(
    study: Restored,
    result: StudyResult,
    picked: Pick,
    settings: RecoverySettings,
    stated: dict[str, Any],
) -> None:
    workload, compressor = study.workload, study.compressor
    place = result.folder / RECOVERED / picked.policy.key
    place.mkdir(parents=True, exist_ok=True)
    checkpoint = place / CHECKPOINT
    before = _accuracies(study, study.build(picked.policy))
    recovered = recover_policy(
        compressor,
        picked.policy,
        workload.splits.train,
        workload.normalization,
        settings,
        checkpoint,
        TrainingProgress(),
    )
    after = _accuracies(study, recovered.network)
    save_state(
        recovered.network,
        place / NETWORK,
        picked.policy,
        architecture=workload.name,
        arguments=workload.arguments,
    )
    document = _document(study, result, picked, recovered, stated) | {
        "accuracy": {
            "original": _accuracies(study, workload.model),
            "before": before,
            "after": after,
        }
    }
    write_text(place / "recovered.json", json.dumps(document, indent=1) + "\n")
    for path in place.glob(f"{CHECKPOINT}*"):
        path.unlink()
    print(
        f"  test accuracy {before['test']:.2%} before, {after['test']:.2%} after; "
        f"{place / NETWORK}",
        flush=True,
    )


def _accuracies(study: Restored, network: nn.Module) -> dict[str, float]:
    """Accuracy by split; no decision depends on the test images."""
    workload = study.workload
    images = {"validation": workload.splits.validation, "test": workload.splits.test}
    device = torch.device("cpu")
    return {
        name: measure(network, part, workload.normalization, device).accuracy
        for name, part in images.items()
    }


def _document(
    study: Restored,
    result: StudyResult,
    picked: Pick,
    recovered: Recovered,
    stated: dict[str, Any],
) -> dict[str, Any]:
    splits = study.workload.splits
    return {
        "version": 1,
        "study": result.manifest.fingerprint,
        "policy": picked.policy.to_dict(),
        "finalist": picked.number,
        "costs": study.compressor.cost(picked.policy),
        "images": {n: len(getattr(splits, n)) for n in ("train", "validation", "test")},
        "settings": stated,
        "steps": recovered.steps,
        "seconds": round(recovered.seconds, 1),
        "chosen": recovered.chosen,
        "torch": torch.__version__,
    }
