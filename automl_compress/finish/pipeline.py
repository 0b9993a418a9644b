"""Sparsity training, search, distillation, quantization and export of one sweep, one by one.

Each stage leaves a note of what it was given in the study's folder. Run again, a stage whose
result is there and whose inputs are the same is skipped, and one that was interrupted goes on.
Losses count against the network that was given, not against what sparsity training made of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

from automl_compress.deploy.state import load_state, save_state
from automl_compress.engine import Restored, Study, restore_study
from automl_compress.engine.lock import locked
from automl_compress.engine.pipeline import PipelineSettings, SparsifyStage
from automl_compress.errors import InterruptedStudy, StudyError
from automl_compress.finish.audience import NOBODY, Audience, check_audience
from automl_compress.finish.export import export_network
from automl_compress.finish.folder import NETWORK, finish_writing, folder_of
from automl_compress.finish.stages import Stages, checkpoint_of, content
from automl_compress.finish.task import RecoveryTask
from automl_compress.ledger import MANIFEST, Manifest, StudyResult
from automl_compress.recover import recover_policy, train_network
from automl_compress.recover.gradual import without_bits
from automl_compress.report import Pick, pick_network
from automl_compress.report.pick import read_limits
from automl_compress.report.recovered import DOCUMENT
from automl_compress.settings import each
from automl_compress.workload import Workload, card_data, load_workload
from automl_compress.workload.torch_modes import usual_modes

SPARSE: Final = Path("sparse") / "weights.safetensors"
DISTILLED: Final = "distilled.safetensors"
EXPORTED: Final = "exported"
_ENDINGS: Final = {"packed": ".packed", "onnx": ".onnx", "torch": ".safetensors"}


@usual_modes()
def run_pipeline(
    sweep: str | Path,
    out: str | Path | None = None,
    overrides: str | Sequence[str] = (),
    *,
    audience: Audience = NOBODY,
    **engine: Any,
) -> Path:
    """Run what of a sweep's stages is not done yet.

    Args:
        sweep: a sweep file with `pipeline`.
        out: the study's folder; None is `results/<study>`.
        overrides: `key=value` texts.
        audience: who hears how far it has come.
        **engine: settings of the engine that replace the sweep's, such as `workers=2`.

    Returns:
        The study's folder.

    Raises:
        InputError: a setting, the data or the folder is wrong, the folder holds the results of
            another search, or another process is in it; nothing is changed.
        EngineError: a stage failed.
        InterruptedStudy: the user stopped it; the same command goes on.
    """
    check_audience(audience)
    study = Study.from_file(sweep, overrides).with_engine(**engine)
    settings = study.config.pipeline
    if settings is None:
        raise StudyError(
            f"a pipeline's sweep must have the key 'pipeline', but '{sweep}' has none; add it, or "
            f"run 'search {sweep}'"
        )
    for rule in settings.picks:
        read_limits(rule)
    folder = Path("results") / study.config.name if out is None else Path(out)
    stages = Stages(folder, audience)
    given = _given(study) if settings.sparsify else None
    with _made_and_locked(folder):
        weights = None
        if given is not None and settings.sparsify is not None:
            workload, data = given
            weights = _sparsify(stages, workload, settings.sparsify, data)
            sparse = [*each(overrides), f"workload.weights={json.dumps(str(weights))}"]
            study = Study.from_file(sweep, sparse).with_engine(**engine)
            study = study.with_given(workload.model)
        _search(stages, study, weights)
        _finish(stages, settings)
    return folder


@contextmanager
def _made_and_locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a folder from before the first note to the last file.

    Raises:
        StudyError: it cannot be made, or another process is in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise StudyError(
            f"a pipeline's folder must be one that can be written, but '{folder}' is not "
            f"({reason.strerror}); choose another"
        ) from reason
    with locked(folder):
        try:
            yield
        except KeyboardInterrupt as reason:
            raise InterruptedStudy(
                "stopped; finished stages are kept, run the same pipeline to go on"
            ) from reason


def _finish(stages: Stages, settings: PipelineSettings) -> None:
    """Bring the networks that the settings pick to their files."""
    result = StudyResult(stages.folder)
    picked = {p.policy.key: p for p in (pick_network(result, r) for r in settings.picks)}
    networks = _Networks(stages, settings, result)
    for found in picked.values():
        networks.finish(found)


def _given(study: Study) -> tuple[Workload, dict[str, Any]]:
    """What is trained towards sparsity, and what the card of its weights says of their data."""
    given = study.config.workload
    assert not isinstance(given, Workload)  # a sweep file states it
    return load_workload(given), card_data(given.weights)


def _sparsify(
    stages: Stages, workload: Workload, stage: SparsifyStage, data: Mapping[str, Any]
) -> Path:
    """Train the workload's network towards sparsity; the path of its weights.

    Args:
        stages: of the folder.
        workload: what is trained.
        stage: how.
        data: what the card of its weights says of them, for the card of the new ones: the sweep may
            leave it to the card which images were not trained on, and how they are normalised.
    """
    path = stages.folder / SPARSE
    inputs = {
        "workload": workload.identity,
        "sparsity": vars(stage.sparsity),
        "training": stage.training.to_dict(),
        **({"data": data} if data else {}),
    }
    if (stages.folder / MANIFEST).exists() and not stages.was_given("sparsify", inputs):
        raise _other_search(stages.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = partial(_train_sparse, workload, stage, data, path, stages.audience)
    stages.run("sparsify", "sparsify", inputs, path, work)
    return path


def _train_sparse(
    workload: Workload,
    stage: SparsifyStage,
    data: Mapping[str, Any],
    path: Path,
    audience: Audience,
) -> None:
    trained = train_network(
        workload, stage.training, stage.sparsity, checkpoint_of(path), audience.training()
    )
    if data:
        card = {**trained.card, "workload": {"model": workload.name, "data": data}}
        trained = replace(trained, card=card)
    trained.write(path)
    name = workload.task.quality
    before, after = trained.card["given"][name], trained.card[name]
    audience.say(
        f"  {after['held_out']:.2%} held out (given network: {before['held_out']:.2%}), "
        f"{after['test']:.2%} on the test examples ({before['test']:.2%}); {path}"
    )


def _search(stages: Stages, study: Study, weights: Path | None) -> None:
    """Search, or go on with a search."""
    config, folder = study.config, stages.folder
    stated = {k: v for k, v in config.plain.items() if k not in ("pipeline", "engine")}
    inputs = {"sweep": stated, "weights": None if weights is None else content(weights)}
    exists = (folder / MANIFEST).exists()
    if exists and not stages.was_given("search", inputs):
        raise _other_search(folder)
    if exists and Manifest.read(folder).status == "finished":
        stages.audience.say("search: done before, from the same inputs")
        return
    stages.audience.say("search ...")
    stages.give("search", inputs)
    racing = len(config.strategies) * len(config.seeds)
    try:
        with stages.audience.search(config.evaluations, racing) as listener:
            if exists:
                engine = config.engine
                changes: dict[str, Any] = {
                    "kind": engine.kind,
                    "workers": engine.workers,
                    "address": engine.address,
                }
                Study.resume(folder, listener, **changes)
            else:
                study.run(folder, listener)
    except InterruptedStudy as reason:
        raise InterruptedStudy(
            "stopped; all finished evaluations are saved, run the same pipeline to go on"
        ) from reason


def _other_search(folder: Path) -> StudyError:
    return StudyError(
        f"a pipeline must go on with the search it began with, but '{folder}' holds one of other "
        "settings, weights or data; restore them or choose another folder"
    )


@dataclass(frozen=True, eq=False)
class _Networks:
    """Networks of a search on their way to their files.

    Args:
        stages: of the folder.
        settings: of the stages.
        result: the study.
    """

    stages: Stages
    settings: PipelineSettings
    result: StudyResult

    @cached_property
    def study(self) -> Restored:
        """The study's network and data, loaded when a stage needs them."""
        return restore_study(self.stages.folder)

    def finish(self, picked: Pick) -> None:
        """Distill one, train it with its grids, and export it."""
        settings, place = self.settings, self.place(picked)
        distilled = None
        if settings.distill is not None:
            distilled = place / DISTILLED
            given: dict[str, Any] = {"settings": settings.distill.to_dict()}
            self._stage("distill", picked, given, distilled, self._distill)
        given = {
            "settings": settings.quantize.to_dict(),
            "distilled": None if distilled is None else content(distilled),
        }
        finish_writing(place)
        self._stage("quantize", picked, given, place / DOCUMENT, self._quantize)
        for name in settings.formats:
            path = self.stages.folder / EXPORTED / f"{picked.policy.key}{_ENDINGS[name]}"
            given = {"network": content(place / NETWORK)}
            work = partial(self._export, name=name, path=path)
            self._stage(f"export {name}", picked, given, path, work)

    def place(self, picked: Pick) -> Path:
        """A network's folder."""
        return folder_of(self.stages.folder, picked.policy)

    def _stage(
        self,
        name: str,
        picked: Pick,
        inputs: Mapping[str, Any],
        output: Path,
        work: Callable[[Pick], None],
    ) -> None:
        key = picked.policy.key
        whole = {**inputs, "study": self.result.manifest.fingerprint, "policy": key}
        title = f"{name}: {picked.describe()}"
        output.parent.mkdir(parents=True, exist_ok=True)
        self.stages.run(f"{name} {key}", title, whole, output, partial(work, picked))

    def _distill(self, picked: Pick) -> None:
        """Train a network without its grids."""
        settings, workload = self.settings.distill, self.study.workload
        assert settings is not None
        path = self.place(picked) / DISTILLED
        policy = without_bits(picked.policy)
        recovered = recover_policy(
            self.study.compressor,
            policy,
            workload.splits.train,
            workload.normalization,
            settings,
            checkpoint_of(path),
            self.stages.audience.training(),
            fixed=self.study.fixed,
        )
        name, arguments = workload.name, workload.arguments
        save_state(recovered.network, path, policy, architecture=name, arguments=arguments)

    def _quantize(self, picked: Pick) -> None:
        """Train it with its grids, from where distillation left it."""
        settings = self.settings
        start, epochs = None, 0
        if settings.distill is not None:
            start = load_state(self.place(picked) / DISTILLED, self.study.workload.model)
            epochs = settings.distill.training.epochs
        task = RecoveryTask(
            self.study,
            self.stages.folder,
            self.result.manifest.fingerprint,
            settings.quantize,
            force=False,
            say=self.stages.audience.say,
        )
        task.recover(picked, self.stages.audience.training(), start, epochs)

    def _export(self, picked: Pick, *, name: str, path: Path) -> None:
        rule = f"point:{picked.policy.key}"
        audience = self.stages.audience
        export_network(self.stages.folder, rule, name, path, recovered=True, audience=audience)
