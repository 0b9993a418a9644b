"""Several networks of a study, trained side by side; those that lag behind are stopped early.

Ray Tune's ASHA decides by the quality on held-out training images. What it heard is kept beside
each checkpoint, so that a training that was interrupted is told again where it had come, and one
that was stopped stays so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from automl_compress.engine.start import require_ray
from automl_compress.errors import InputError
from automl_compress.evaluate import QUALITIES
from automl_compress.finish.folder import folder_of
from automl_compress.finish.recovering import RecoveryOrder
from automl_compress.finish.task import RecoveryTask
from automl_compress.ledger import write_text
from automl_compress.recover import RecoverySettings, Standing, find_device
from automl_compress.report import Pick

HISTORY: Final = "epochs.json"


def recover_promoted(order: RecoveryOrder) -> None:
    """Recover networks side by side on Ray, promoted by ASHA.

    The best are promoted, so the networks should cost alike. One that is stopped keeps its
    checkpoint; recovered alone, it goes on.

    Raises:
        InputError: Ray is not installed, or no example is held out to compare by.
        EngineError: a loss is not finite; the others have come to their ends.
        InterruptedStudy: the user stopped it; the same call goes on.
    """
    require_ray("'asha'", "leave it out to train one network after the other")
    device = find_device(order.settings.training.device)
    if device.type == "cuda":
        _check_all_devices(order.settings.training.device)
        # Ray shows every training the one that it may use.
        training = replace(order.settings.training, device="auto")
        order = replace(order, settings=replace(order.settings, training=training))
    from automl_compress.engine.asha import promote_trainings  # needs ray

    finished = frozenset(p.policy.key for p in order.picked if order.is_done(p))
    if len(finished) == len(order.picked):
        return
    task = order.task()
    _check_judges(order.settings, len(task.study.workload.splits.train))
    field = _Field(task, {p.policy.key: p for p in order.picked}, finished)
    promote_trainings(
        tuple(field.picked),
        field.train,
        order.settings.training.epochs,
        partial(field.hear, {key: len(field.history(key).qualities) for key in field.picked}),
        gpus=_gpus() if device.type == "cuda" else 0,
    )


def _check_judges(settings: RecoverySettings, examples: int) -> None:
    """Check that of so many training examples at least one is held out."""
    if not settings.judges_of(examples):
        raise InputError(
            f"'asha' compares trainings by held-out examples, but 'held_out' is "
            f"{settings.held_out:g} of {examples} examples, which is none; raise it"
        )


def _check_all_devices(name: str) -> None:
    _, _, index = name.partition(":")
    if index:
        raise InputError(
            f"'asha' trains on all CUDA devices that are there, but device is '{name}'; give "
            f"'cuda', with CUDA_VISIBLE_DEVICES={index} in the environment for that one alone"
        )


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


@dataclass(frozen=True)
class History:
    """What a training told the scheduler.

    Args:
        settings: of the training.
        qualities: on the held-out images, of every epoch but the last.
        stopped: whether it was stopped after them.
    """

    settings: Mapping[str, Any]
    qualities: tuple[float, ...] = ()
    stopped: bool = False

    @classmethod
    def read(cls, place: Path, settings: Mapping[str, Any]) -> History:
        """What stands in a network's folder; nothing where it is another training's."""
        try:
            data = json.loads((place / HISTORY).read_text(encoding="utf-8"))
            found = cls(data["settings"], tuple(data["qualities"]), bool(data["stopped"]))
        except (OSError, ValueError, KeyError, TypeError):
            return cls(settings)
        return found if found.settings == settings else cls(settings)

    def write(self, place: Path) -> None:
        """Put it into a network's folder."""
        place.mkdir(parents=True, exist_ok=True)
        write_text(place / HISTORY, json.dumps(vars(self), indent=1) + "\n")


@dataclass(frozen=True, eq=False)
class _Field:
    """All networks that are compared.

    Args:
        task: recovers one of them.
        picked: by key.
        finished: keys of those that were recovered before.
    """

    task: RecoveryTask
    picked: Mapping[str, Pick]
    finished: frozenset[str]

    @property
    def title(self) -> str:
        """What networks are judged by, as readers call it."""
        return QUALITIES[self.task.study.workload.task.quality]

    def place(self, key: str) -> Path:
        """A network's folder."""
        return folder_of(self.task.folder, self.picked[key].policy)

    def history(self, key: str) -> History:
        """What its training has told so far."""
        return History.read(self.place(key), self.task.settings.to_dict())

    def train(self, key: str, report: Callable[[int, float], None]) -> None:
        """In a process of Ray: tell what is known, then train on from there."""
        history = self.history(key)
        for epoch, quality in enumerate(history.qualities, 1):
            report(epoch, quality)
        if history.stopped or key in self.finished:
            return
        told = list(history.qualities)

        def listen(standing: Standing) -> None:
            epoch, last = round(standing.epoch), standing.step == standing.steps
            if standing.quality is None or epoch <= len(told) or last:
                return
            told.append(standing.quality)
            History(self.task.settings.to_dict(), tuple(told)).write(self.place(key))
            report(epoch, standing.quality)

        found = self.task.recover(self.picked[key], listen)
        report(self.task.settings.training.epochs, found["validation"])

    def hear(
        self, known: Mapping[str, int], key: str, epoch: int, quality: float, stopped: bool
    ) -> None:
        """In the first process: say what is new, and keep that a training was stopped."""
        name, epochs = self.picked[key].describe(), self.task.settings.training.epochs
        if stopped and key not in self.finished:
            replace(self.history(key), stopped=True).write(self.place(key))
        if epoch <= known[key]:
            return
        said = f"epoch {epoch} of {epochs}, held-out {self.title} {quality:.2%}"
        if epoch == epochs:
            said = f"finished; {quality:.2%} on the search's examples"
        if stopped:
            said += "; stopped, for others do better"
        self.task.say(f"  {name}: {said}")
