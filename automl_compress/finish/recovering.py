"""Networks of a study, trained back to accuracy and put into the study's folder and report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from automl_compress.cli.training_progress import TrainingProgress, tell_untrained
from automl_compress.deploy.state import load_state, save_state
from automl_compress.engine import Restored, restore_study
from automl_compress.engine.lock import locked
from automl_compress.errors import InputError, OtherTrainingError, StudyError
from automl_compress.evaluate import QUALITIES, error_name, quality_name
from automl_compress.ledger import RECOVERED, Manifest, StudyResult, write_text
from automl_compress.recover import (
    DETECTOR_RECOVERY,
    Listener,
    Recovered,
    RecoverySettings,
    find_device,
    measure,
    recover_policy,
    section_of,
)
from automl_compress.report import Pick, pick_network, write_report
from automl_compress.report.recovered import DOCUMENT, NEW
from automl_compress.space import Policy
from automl_compress.workload import CLASSIFICATION, Score

NETWORK: Final = "network.safetensors"
CHECKPOINT: Final = "training.checkpoint"


def recover_networks(
    folder: Path,
    rules: Sequence[str],
    overrides: Sequence[str],
    *,
    force: bool,
    asha: bool = False,
    further: bool = False,
) -> Path:
    """Recover what rules pick, one network after the other, and write the report again.

    Args:
        folder: a study's folder.
        rules: see `report.pick_network`.
        overrides: `key=value` texts, settings of `RecoverySettings`.
        force: whether networks that were recovered with other settings are replaced.
        asha: whether they are trained side by side and those that lag behind are stopped early,
            see `recover_promoted`.
        further: whether training goes on from what an earlier recovery left.

    Returns:
        The path of the report.

    Raises:
        InputError: a rule, a setting or the folder is wrong, or another process goes on with it;
            nothing is written.
        EngineError: a loss is not finite.
        InterruptedStudy: the user stopped it; the same command goes on.
    """
    StudyResult(folder)  # holds a study
    with locked(folder):
        return _recover(folder, rules, overrides, force=force, asha=asha, further=further)


def _recover(
    folder: Path,
    rules: Sequence[str],
    overrides: Sequence[str],
    *,
    force: bool,
    asha: bool,
    further: bool,
) -> Path:
    result = StudyResult(folder)
    boxed = quality_name(result.manifest.baseline) != CLASSIFICATION.quality
    settings = RecoverySettings.from_section(
        section_of(overrides), DETECTOR_RECOVERY if boxed else None
    )
    find_device(settings.training.device)
    picked = {found.policy.key: found for found in (pick_network(result, rule) for rule in rules)}
    stated = json.loads(json.dumps(settings.to_dict()))
    if further and asha:
        raise InputError("--further trains one network after the other; leave --asha out")
    if asha:
        from automl_compress.cli.promoting import recover_promoted

        recover_promoted(result, tuple(picked.values()), settings, force=force)
        return write_report(folder)
    waiting, earlier = [*picked.values()], dict.fromkeys(picked, 0)
    if further:
        waiting = [found for found in waiting if not _finishes(folder, found, stated)]
        earlier = {found.policy.key: _earlier_epochs(folder, found) for found in waiting}
    else:
        waiting = [found for found in waiting if not is_recovered(folder, found, stated, force)]
    if waiting:
        study = restore_study(folder)
        tell_untrained(study.workload)
        for place, found in enumerate(waiting, 1):
            print(f"[{place}/{len(waiting)}] {found.describe()}", flush=True)
            task = RecoveryTask(study, folder, result.manifest.fingerprint, settings, force)
            trained = load_trained(recovered_file(folder, found.policy), study) if further else None
            epochs = earlier[found.policy.key]
            task.recover(found, TrainingProgress(), earlier_epochs=epochs, trained=trained)
    return write_report(folder)


def recovered_file(folder: Path, policy: Policy, option: str = "--recovered") -> Path:
    """Where the trained network of a policy lies.

    Args:
        folder: a study's folder.
        policy: of one of its networks.
        option: who asks.

    Raises:
        StudyError: it was not recovered.
    """
    path = folder / RECOVERED / policy.key / NETWORK
    finish_writing(path.parent)
    if not path.is_file():
        raise StudyError(
            f"{option} needs a network that was trained, but '{folder}' has none of the key "
            f"{policy.key}; run 'recover {folder} --pick point:{policy.key}' first"
        )
    return path


def load_trained(path: Path, study: Restored) -> nn.Module:
    """The network of a file that `recover_networks` wrote."""
    return load_state(path, study.workload.model)


def is_recovered(folder: Path, picked: Pick, stated: Mapping[str, Any], force: bool) -> bool:
    """Whether a network needs no training any more.

    Raises:
        StudyError: it was trained with other settings, and is not to be replaced.
    """
    path = folder / RECOVERED / picked.policy.key / DOCUMENT
    if _finishes(folder, picked, stated):
        return True
    if not path.exists() or force:
        return False
    settings, epochs = _how(path)
    if settings != stated:
        raise StudyError(
            f"a network is recovered once, but '{path.parent}' holds it with other settings; "
            f"give --further to go on from it (epochs so far: {epochs}), or --force to replace it"
        )
    print(f"{picked.describe()} is recovered already")
    return True


def _finishes(folder: Path, picked: Pick, stated: Mapping[str, Any]) -> bool:
    """Whether the training that is asked for had ended, and lacked only `finish_writing`."""
    place = folder / RECOVERED / picked.policy.key
    if not finish_writing(place) or _how(place / DOCUMENT)[0] != stated:
        return False
    print(f"{picked.describe()} is recovered already")
    return True


def _earlier_epochs(folder: Path, picked: Pick) -> int:
    """Epochs of all trainings of a network that was recovered.

    Raises:
        StudyError: it was not.
    """
    place = recovered_file(folder, picked.policy, "--further").parent
    return _how(place / DOCUMENT)[1]


def _how(document: Path) -> tuple[Mapping[str, Any], int]:
    """The settings of a network's last training, and the epochs of all.

    Raises:
        StudyError: the document is missing or broken.
    """
    try:
        data = json.loads(document.read_text(encoding="utf-8"))
        epochs = int(data["settings"]["training"]["epochs"]) + int(data["earlier_epochs"])
        return data["settings"], epochs
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise StudyError(
            f"'{document}' must say how a network was recovered, but is broken; remove it"
        ) from reason


@dataclass(frozen=True, eq=False)
class RecoveryTask:
    """Networks of one study, recovered in one way.

    Args:
        study: its network and data.
        folder: its folder.
        fingerprint: names it.
        settings: how.
        force: whether what other settings began is given up.
    """

    study: Restored
    folder: Path
    fingerprint: str
    settings: RecoverySettings
    force: bool = False

    def recover(
        self,
        picked: Pick,
        listener: Listener,
        start: nn.Module | None = None,
        earlier_epochs: int = 0,
        trained: nn.Module | None = None,
    ) -> dict[str, float]:
        """Train one network, and write it and what it is worth into the study's folder.

        Args:
            picked: the network.
            listener: hears how far it has come.
            start: its trained form without grids, where it begins; the original when not given.
            earlier_epochs: of the trainings that made `start` or `trained`.
            trained: what they made with its grids, when that is trained further.

        Returns:
            Its quality by split.

        Raises:
            StudyError: other settings began a training of it, which is not to be given up.
        """
        study, name = self.study, self.study.workload.task.quality
        place = self.folder / RECOVERED / picked.policy.key
        before = self._scores(study.build(picked.policy))
        recovered = self._trained(picked, listener, start, trained)
        after = self._scores(recovered.network)
        was = None if trained is None else self._scores(trained)
        if was is not None and _quality(was, name) > _quality(after, name):
            print(
                f"  the search-validation images prefer the network as it was, "
                f"{_quality(was, name):.2%} to {_quality(after, name):.2%}; it is left so",
                flush=True,
            )
            after = was
        else:
            original = self._scores(study.workload.model)
            scores = {"original": original, "before": before, "after": after}
            self._write(picked, recovered, earlier_epochs, scores)
        _remove_checkpoints(place)
        given = f" (given network: {self._given[name]:.2%})" if self._given else ""
        print(
            f"  test {QUALITIES[name]} {before['test'].metrics[name]:.2%} before, "
            f"{after['test'].metrics[name]:.2%} after{given}; "
            f"{place / NETWORK}",
            flush=True,
        )
        return {split: score.metrics[name] for split, score in after.items()}

    @cached_property
    def _given(self) -> Mapping[str, float]:
        """Metrics on the test images of what the user gave, where that was trained to sparsity."""
        return Manifest.read(self.folder).test_given

    def _trained(
        self,
        picked: Pick,
        listener: Listener,
        start: nn.Module | None,
        trained: nn.Module | None,
    ) -> Recovered:
        """Train it; what other settings began is given up only by force."""
        study, workload = self.study, self.study.workload
        place = self.folder / RECOVERED / picked.policy.key
        train = partial(
            recover_policy,
            study.compressor if start is None else study.compressor.of_network(start),
            picked.policy,
            workload.splits.train,
            workload.normalization,
            self.settings,
            place / CHECKPOINT,
            listener,
            study.compressor.model,
            trained,
            study.fixed,
        )
        try:
            return train()
        except OtherTrainingError as reason:
            if not self.force:
                raise StudyError(
                    "a checkpoint must be of the same network, data and settings, but "
                    f"'{place / CHECKPOINT}' is another training's; give its settings to go on, or "
                    "--force to give it up"
                ) from reason
            _remove_checkpoints(place)
            return train()

    def _write(
        self,
        picked: Pick,
        recovered: Recovered,
        earlier_epochs: int,
        scores: Mapping[str, Mapping[str, Score]],
    ) -> None:
        """Put a network and what it is worth into the study's folder."""
        workload, place = self.study.workload, self.folder / RECOVERED / picked.policy.key
        save_state(
            recovered.network,
            place / (NETWORK + NEW),
            picked.policy,
            architecture=workload.name,
            arguments=workload.arguments,
        )
        document = self._document(picked, recovered) | {
            "earlier_epochs": earlier_epochs,
            **scores_document(scores),
        }
        if self._given:
            document["given"] = {"test": dict(self._given)}
        write_text(place / (DOCUMENT + NEW), json.dumps(document, indent=1) + "\n")
        finish_writing(place)

    def _scores(self, network: nn.Module) -> dict[str, Score]:
        """Scores by split; no decision depends on the test images."""
        workload = self.study.workload
        images = {"validation": workload.splits.validation, "test": workload.splits.test}
        device = torch.device("cpu")
        return {
            name: measure(network, part, workload.normalization, device, workload.task).score
            for name, part in images.items()
        }

    def _document(self, picked: Pick, recovered: Recovered) -> dict[str, Any]:
        splits = self.study.workload.splits
        return {
            "version": 1,
            "study": self.fingerprint,
            "policy": picked.policy.to_dict(),
            "finalist": picked.number,
            "costs": self.study.compressor.cost(picked.policy),
            "images": {n: len(getattr(splits, n)) for n in ("train", "validation", "test")},
            "settings": self.settings.to_dict(),
            "steps": recovered.steps,
            "seconds": round(recovered.seconds, 1),
            "chosen": recovered.chosen,
            "device": str(find_device(self.settings.training.device)),
            "torch": torch.__version__,
        }


def _quality(scores: Mapping[str, Score], name: str) -> float:
    """What networks are compared by after training: images of neither training nor test.

    Held-out images of a recovery would not do where the original learned them: every epoch without
    them forgets some of that.
    """
    return scores["validation"].metrics[name]


def scores_document(scores: Mapping[str, Mapping[str, Score]]) -> dict[str, Any]:
    """What `recovered.json` says of scores.

    Args:
        scores: by state (`original`, `before`, `after`) and split.

    Returns:
        Quality and further metrics by name, each by state and split; and the standard error of the
        quality of the trained network on the test images, where it was not counted.
    """
    last = scores["after"]["test"]
    quality = quality_name(last.metrics)
    known = {
        state: {split: {**s.metrics, **s.further} for split, s in parts.items()}
        for state, parts in scores.items()
    }
    return {
        **{
            name: {
                state: {split: values[name] for split, values in parts.items()}
                for state, parts in known.items()
            }
            for name in (quality, *last.further)
        },
        "standard_error": {n: v for n, v in last.metrics.items() if n == error_name(quality)},
    }


def finish_writing(place: Path) -> bool:
    """Put a network that was written, and what it is worth, in their places.

    The new document stands beside the old one from when both are written until the network is in
    its place and the training's state is removed. What was stopped in between is made up for here,
    so that network and document do not contradict each other.

    Args:
        place: a network's folder.

    Returns:
        Whether there was something to do.
    """
    network, document = (place / (name + NEW) for name in (NETWORK, DOCUMENT))
    if not document.exists():
        return False
    if network.exists():
        network.replace(place / NETWORK)
    _remove_checkpoints(place)
    document.replace(place / DOCUMENT)
    return True


def _remove_checkpoints(place: Path) -> None:
    for path in place.glob(f"{CHECKPOINT}*"):
        path.unlink()
