"""Networks that rules pick from a study, trained until they are accurate again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from automl_compress.deploy.state import load_state
from automl_compress.engine import restore_study
from automl_compress.engine.lock import locked
from automl_compress.errors import EngineError, InputError, InterruptedStudy, StudyError
from automl_compress.evaluate import quality_name
from automl_compress.finish.audience import NOBODY, Audience, check_audience
from automl_compress.finish.folder import finish_writing, folder_of, how_recovered, recovered_file
from automl_compress.finish.task import RecoveryTask
from automl_compress.ledger import StudyResult
from automl_compress.recover import (
    DETECTOR_RECOVERY,
    RecoverySettings,
    find_device,
    section_of,
)
from automl_compress.recover.fixed import untrained_parts
from automl_compress.report import Pick, pick_network, write_report
from automl_compress.report.recovered import DOCUMENT
from automl_compress.settings import shown
from automl_compress.space import Policy
from automl_compress.workload import CLASSIFICATION, Workload
from automl_compress.workload.torch_modes import usual_modes


@usual_modes()
def recover_networks(
    folder: str | Path | StudyResult,
    rules: str | Policy | Sequence[str | Policy],
    overrides: str | Sequence[str] = (),
    *,
    force: bool = False,
    asha: bool = False,
    further: bool = False,
    audience: Audience = NOBODY,
    workload: Workload | None = None,
    **settings: Any,
) -> Path:
    """Recover what rules pick, one network after the other, and write the report again.

    Args:
        folder: a study's folder, or what the study returned.
        rules: one, or several; see `report.pick_network`.
        overrides: `key=value` texts, settings of `RecoverySettings`.
        force: whether networks that were recovered with other settings are replaced.
        asha: whether they are trained side by side and those that lag behind are stopped early,
            see `recover_promoted`.
        further: whether training goes on from what an earlier recovery left.
        audience: who hears how far it has come.
        workload: given again, where the study was given a loaded one.
        **settings: more settings, such as `epochs=10`.

    Returns:
        The path of the report.

    Raises:
        InputError: a rule, a setting or the folder is wrong, or another process goes on with it;
            nothing is written.
        EngineError: a loss is not finite.
        InterruptedStudy: the user stopped it; the same call goes on.
    """
    check_audience(audience)
    if further and asha:
        raise InputError("'further' trains one network after the other; leave 'asha' out")
    stated = [rules] if isinstance(rules, str | Policy) else rules
    if not isinstance(stated, Sequence) or not stated:
        raise InputError(
            f"networks to recover must be picked by a rule, but are by {shown(rules)}; give one"
        )
    place = StudyResult(folder).folder  # holds a study
    with locked(place):
        result = StudyResult(place)
        chosen = _settings(result, overrides, settings)
        picked = {p.policy.key: p for p in (pick_network(result, rule) for rule in stated)}
        order = RecoveryOrder(result, tuple(picked.values()), chosen, force, audience, workload)
        if asha:
            from automl_compress.finish.promoting import recover_promoted

            recover_promoted(order)
        elif further:
            _recover_further(order)
        else:
            _recover(order)
        return write_report(place)


def _settings(
    result: StudyResult, overrides: str | Sequence[str], settings: Mapping[str, Any]
) -> RecoverySettings:
    """How a study's networks are trained, once it is seen that they can be."""
    boxed = quality_name(result.manifest.baseline) != CLASSIFICATION.quality
    section = section_of(overrides, **settings)
    chosen = RecoverySettings.from_section(section, DETECTOR_RECOVERY if boxed else None)
    find_device(chosen.training.device)
    return chosen


@dataclass(frozen=True, eq=False)
class RecoveryOrder:
    """Networks of one study that are to be recovered, and how.

    Args:
        result: the study.
        picked: its networks, each different.
        settings: of every training.
        force: whether networks that were recovered with other settings are replaced.
        audience: who hears how far it has come.
        workload: given again, where the study was given a loaded one.
    """

    result: StudyResult
    picked: Sequence[Pick]
    settings: RecoverySettings
    force: bool
    audience: Audience
    workload: Workload | None

    def task(self) -> RecoveryTask:
        """What trains them one by one, its network and data loaded."""
        folder = self.result.folder.absolute()  # processes of Ray have other current folders
        study = restore_study(folder, self.workload)
        for line in untrained_parts(study.workload):
            self.audience.say(line)
        fingerprint = self.result.manifest.fingerprint
        return RecoveryTask(
            study, folder, fingerprint, self.settings, self.force, self.audience.say
        )

    def is_done(self, picked: Pick) -> bool:
        """Whether a network needs no training any more.

        Raises:
            StudyError: it was trained with other settings, and is not to be replaced.
        """
        place = folder_of(self.result.folder, picked.policy)
        if self.finishes(picked):
            return True
        if not (place / DOCUMENT).exists() or self.force:
            return False
        earlier, epochs = how_recovered(place)
        if earlier != self.settings.to_dict():
            raise StudyError(
                f"a network is recovered once, but '{place}' holds it with other settings; give "
                f"'further' to go on from it (epochs so far: {epochs}), or 'force' to replace it"
            )
        self.audience.say(f"{picked.describe()} is recovered already")
        return True

    def finishes(self, picked: Pick) -> bool:
        """Whether the training that is asked for had ended, and lacked only `finish_writing`."""
        place = folder_of(self.result.folder, picked.policy)
        if not finish_writing(place) or how_recovered(place)[0] != self.settings.to_dict():
            return False
        self.audience.say(f"{picked.describe()} is recovered already")
        return True


def _recover(order: RecoveryOrder) -> None:
    """Train those that were not recovered before."""
    waiting = [picked for picked in order.picked if not order.is_done(picked)]
    _recover_each(
        order, waiting, lambda task, picked: task.recover(picked, order.audience.training())
    )


def _recover_further(order: RecoveryOrder) -> None:
    """Train on what earlier recoveries left, where this training has not ended."""
    folder = order.result.folder
    waiting = [picked for picked in order.picked if not order.finishes(picked)]
    files = {p.policy.key: recovered_file(folder, p.policy, "'further'") for p in waiting}
    epochs = {key: how_recovered(path.parent)[1] for key, path in files.items()}

    def recover(task: RecoveryTask, picked: Pick) -> None:
        key, listener = picked.policy.key, order.audience.training()
        trained = load_state(files[key], task.study.workload.model)
        task.recover(picked, listener, earlier_epochs=epochs[key], trained=trained)

    _recover_each(order, waiting, recover)


def _recover_each(
    order: RecoveryOrder, waiting: Sequence[Pick], recover: Callable[[RecoveryTask, Pick], object]
) -> None:
    """Train one after the other; where that is stopped or fails, the report has those before."""
    if not waiting:
        return
    task = order.task()
    for place, picked in enumerate(waiting, 1):
        order.audience.say(f"[{place}/{len(waiting)}] {picked.describe()}")
        try:
            recover(task, picked)
        except (EngineError, InterruptedStudy):
            if place > 1:
                write_report(order.result.folder)
            raise
