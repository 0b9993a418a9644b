"""One network of a study, trained back to accuracy and put into the study's folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from automl_compress.deploy.state import save_state
from automl_compress.engine import Restored
from automl_compress.errors import OtherTrainingError, StudyError
from automl_compress.evaluate import QUALITIES, error_name, quality_name
from automl_compress.finish.folder import (
    CHECKPOINT,
    NETWORK,
    finish_writing,
    folder_of,
    remove_checkpoints,
)
from automl_compress.ledger import Manifest, write_text
from automl_compress.recover import (
    Listener,
    Recovered,
    RecoverySettings,
    find_device,
    measure,
    recover_policy,
    title_of,
)
from automl_compress.report import Pick
from automl_compress.report.recovered import DOCUMENT, NEW
from automl_compress.workload import Score


@dataclass(frozen=True, eq=False)
class RecoveryTask:
    """Networks of one study, recovered in one way.

    Args:
        study: its network and data.
        folder: its folder.
        fingerprint: names it.
        settings: how.
        force: whether what other settings began is given up.
        say: is told what came of each.
    """

    study: Restored
    folder: Path
    fingerprint: str
    settings: RecoverySettings
    force: bool
    say: Callable[[str], None]

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
        place = folder_of(self.folder, picked.policy)
        before = self._scores(study.build(picked.policy))
        recovered = self._trained(picked, listener, start, trained)
        after = self._scores(recovered.network)
        was = None if trained is None else self._scores(trained)
        if was is not None and _quality(was, name) > _quality(after, name):
            self.say(
                f"  the search-validation examples prefer the network as it was, "
                f"{_quality(was, name):.2%} to {_quality(after, name):.2%}; it is left so"
            )
            after = was
        else:
            original = self._scores(study.workload.model)
            scores = {"original": original, "before": before, "after": after}
            self._write(picked, recovered, earlier_epochs, scores)
        remove_checkpoints(place)
        given = f" (given network: {self._given[name]:.2%})" if self._given else ""
        self.say(
            f"  test {QUALITIES[name]} {before['test'].metrics[name]:.2%} before, "
            f"{after['test'].metrics[name]:.2%} after{given}; "
            f"{place / NETWORK}"
        )
        undecided = self.settings.training.augment.flip is None
        if undecided and not recovered.mirrored and study.workload.splits.train.are_images:
            self.say(
                "  training images were not mirrored, for the original network hardly knows "
                "mirrored ones; augment.flip=true mirrors them"
            )
        self._tell_harm(_quality(before, name), _quality(after, name))
        return {split: score.metrics[name] for split, score in after.items()}

    def _tell_harm(self, before: float, after: float) -> None:
        """Say where search-validation images prefer the network without the training."""
        if before > after:
            self.say(
                f"  the search-validation examples prefer the network before training, "
                f"{before:.2%} to {after:.2%}; give more epochs, or export it without 'recovered'"
            )

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
        place = folder_of(self.folder, picked.policy)
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
                    "'force' to give it up"
                ) from reason
            remove_checkpoints(place)
            return train()

    def _write(
        self,
        picked: Pick,
        recovered: Recovered,
        earlier_epochs: int,
        scores: Mapping[str, Mapping[str, Score]],
    ) -> None:
        """Put a network and what it is worth into the study's folder."""
        workload, place = self.study.workload, folder_of(self.folder, picked.policy)
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
            "mirrored": recovered.mirrored,
            "device": title_of(find_device(self.settings.training.device)),
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
