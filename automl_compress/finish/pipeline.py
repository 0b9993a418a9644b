"""`automl-compress pipeline`: sparsity training, search, distillation, quantization, export.

Each stage leaves a note of what it was given in the study's folder. Run again, a stage whose
result is there and whose inputs are the same is skipped, and one that was interrupted goes on.
Losses count against the network that was given, not against what sparsity training made of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

from automl_compress.cli.commands import engine_changes
from automl_compress.cli.export import export_network
from automl_compress.cli.progress import Progress
from automl_compress.cli.recovering import (
    CHECKPOINT,
    NETWORK,
    RecoveryTask,
    finish_writing,
    load_trained,
)
from automl_compress.cli.training_progress import TrainingProgress
from automl_compress.deploy.state import save_state
from automl_compress.engine import Restored, Study, restore_study
from automl_compress.engine.lock import locked
from automl_compress.engine.pipeline import PipelineSettings, SparsifyStage
from automl_compress.errors import InterruptedStudy, StudyError
from automl_compress.ledger import MANIFEST, RECOVERED, Manifest, StudyResult, write_text
from automl_compress.recover import recover_policy, train_network
from automl_compress.recover.gradual import without_bits
from automl_compress.report import Pick, pick_network
from automl_compress.report.pick import read_limits
from automl_compress.report.recovered import DOCUMENT
from automl_compress.workload import Workload, card_data, load_workload

NOTES: Final = "pipeline.json"
_MADE: Final = " made"
"""Behind a stage's name, where the notes hold the SHA-256 of its file."""
SPARSE: Final = Path("sparse") / "weights.safetensors"
DISTILLED: Final = "distilled.safetensors"
EXPORTED: Final = "exported"
_ENDINGS: Final = {"packed": ".packed", "onnx": ".onnx", "torch": ".safetensors"}


def run_pipeline(
    sweep: Path,
    out: Path | None,
    overrides: Sequence[str],
    workers: int | None,
    address: str | None,
) -> Path:
    """Run what of a sweep's stages is not done yet.

    Args:
        sweep: a sweep file with `pipeline`.
        out: the study's folder; None is `results/<study>`.
        overrides: `key=value` texts.
        workers: evaluators of the search.
        address: a running Ray cluster.

    Returns:
        The study's folder.

    Raises:
        InputError: a setting, the data or the folder is wrong, the folder holds the results of
            another search, or another process is in it; nothing is changed.
        EngineError: a stage failed.
        InterruptedStudy: the user stopped it; the same command goes on.
    """
    study = Study.from_file(sweep, overrides).with_engine(**engine_changes(workers, address))
    settings = study.config.pipeline
    if settings is None:
        raise StudyError(
            f"a pipeline's sweep must have the key 'pipeline', but '{sweep}' has none; add it, or "
            f"run 'search {sweep}'"
        )
    for rule in settings.picks:
        read_limits(rule)
    folder = out or Path("results") / study.config.name
    stages = _Stages(folder, settings)
    given = _given(study) if settings.sparsify else None
    with _made_and_locked(folder):
        weights = None
        if given is not None and settings.sparsify is not None:
            workload, data = given
            weights = _sparsify(stages, workload, settings.sparsify, data)
            sparse = [*overrides, f"workload.weights={json.dumps(str(weights))}"]
            study = Study.from_file(sweep, sparse).with_engine(**engine_changes(workers, address))
            study = study.with_given(workload.model)
        _search(stages, study, weights)
        _finish(stages)
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
            f"--out must be a folder that can be written, but '{folder}' is not "
            f"({reason.strerror}); choose another"
        ) from reason
    with locked(folder):
        try:
            yield
        except KeyboardInterrupt as reason:
            raise InterruptedStudy(
                "stopped; finished stages are kept, run the same command to go on"
            ) from reason


def _finish(stages: _Stages) -> None:
    """Bring the networks that the settings pick to their files."""
    result = StudyResult(stages.folder)
    picked = {
        found.policy.key: found
        for found in (pick_network(result, r) for r in stages.settings.picks)
    }
    networks = _Networks(stages, result)
    for found in picked.values():
        networks.finish(found)


@dataclass(frozen=True)
class _Stages:
    """The stages of one folder, and what each was given.

    Args:
        folder: the study's.
        settings: of the stages.
    """

    folder: Path
    settings: PipelineSettings

    def run(
        self,
        name: str,
        title: str,
        inputs: Mapping[str, Any],
        output: Path,
        work: Callable[[], None],
    ) -> None:
        """Do a stage's work unless it is done.

        Args:
            name: of the stage, in the notes.
            title: what is printed.
            inputs: everything that decides its result, plain JSON.
            output: file it leaves at its end.
            work: does it, and goes on from the checkpoints of `checkpoint_of(output)`.
        """
        given = _digest(inputs)
        if self.given(name) == given and output.exists():
            self._check_own(name, title, output)
            print(f"{title}: done before, from the same inputs", flush=True)
            return
        print(f"{title} ...", flush=True)
        output.unlink(missing_ok=True)
        if self.given(name) != given:
            _forget(output)
        self.note(name, given)
        work()
        self.note(f"{name}{_MADE}", _content(output))
        _forget(output)

    def _check_own(self, name: str, title: str, output: Path) -> None:
        """Check that a stage's file is what the stage made.

        Raises:
            StudyError: another command replaced it.
        """
        made = self.given(f"{name}{_MADE}")
        if made is not None and made != _content(output):
            raise StudyError(
                f"a finished stage's file must be what it made, but '{output}' of '{title}' was "
                "replaced; remove it to make it again, or keep it and use 'export --recovered'"
            )

    def given(self, name: str) -> str | None:
        """Digest of what a stage was given when it ran; None when it did not."""
        return self._notes().get(name)

    def note(self, name: str, given: str) -> None:
        """Keep what a stage is given."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / NOTES, json.dumps({**self._notes(), name: given}, indent=1) + "\n")

    def _notes(self) -> dict[str, str]:
        path = self.folder / NOTES
        if not path.exists():
            return {}
        try:
            notes = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): str(given) for name, given in notes.items()}
        except (OSError, ValueError, AttributeError) as reason:
            raise StudyError(
                f"'{path}' must hold what the stages were given, but is broken; remove it to run "
                "them again"
            ) from reason


def checkpoint_of(output: Path) -> Path:
    """Where the state of a training lies that makes a file."""
    return output.with_name(CHECKPOINT)


def _forget(output: Path) -> None:
    """Remove the states of the training that makes a file."""
    for path in output.parent.glob(f"{CHECKPOINT}*"):
        path.unlink()


def _digest(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def _content(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _given(study: Study) -> tuple[Workload, dict[str, Any]]:
    """What is trained towards sparsity, and what the card of its weights says of their data."""
    given = study.config.workload
    assert not isinstance(given, Workload)  # a sweep file states it
    return load_workload(given), card_data(given.weights)


def _sparsify(
    stages: _Stages, workload: Workload, stage: SparsifyStage, data: Mapping[str, Any]
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
    if (stages.folder / MANIFEST).exists() and stages.given("sparsify") != _digest(inputs):
        raise _other_search(stages.folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    work = partial(_train_sparse, workload, stage, data, path)
    stages.run("sparsify", "sparsify", inputs, path, work)
    return path


def _train_sparse(
    workload: Workload, stage: SparsifyStage, data: Mapping[str, Any], path: Path
) -> None:
    trained = train_network(
        workload, stage.training, stage.sparsity, checkpoint_of(path), TrainingProgress()
    )
    if data:
        card = {**trained.card, "workload": {"model": workload.name, "data": data}}
        trained = replace(trained, card=card)
    trained.write(path)
    name = workload.task.quality
    before, after = trained.card["given"][name], trained.card[name]
    print(
        f"  {after['held_out']:.2%} held out (given network: {before['held_out']:.2%}), "
        f"{after['test']:.2%} on the test images ({before['test']:.2%}); {path}"
    )


def _search(stages: _Stages, study: Study, weights: Path | None) -> None:
    """Search, or go on with a search."""
    config, folder = study.config, stages.folder
    stated = {k: v for k, v in config.plain.items() if k not in ("pipeline", "engine")}
    inputs = {"sweep": stated, "weights": None if weights is None else _content(weights)}
    exists = (folder / MANIFEST).exists()
    if exists and stages.given("search") != _digest(inputs):
        raise _other_search(folder)
    if exists and Manifest.read(folder).status == "finished":
        print("search: done before, from the same inputs", flush=True)
        return
    print("search ...", flush=True)
    stages.note("search", _digest(inputs))
    progress = Progress(config.evaluations, len(config.strategies) * len(config.seeds))
    try:
        if exists:
            engine = config.engine
            changes: dict[str, Any] = {
                "kind": engine.kind,
                "workers": engine.workers,
                "address": engine.address,
            }
            Study.resume(folder, progress, **changes)
        else:
            study.run(folder, progress)
    except InterruptedStudy as reason:
        raise InterruptedStudy(
            "stopped; all finished evaluations are saved, run the same command to go on"
        ) from reason
    finally:
        progress.close()


def _other_search(folder: Path) -> StudyError:
    return StudyError(
        f"a pipeline must go on with the search it began with, but '{folder}' holds one of other "
        "settings, weights or data; restore them or choose another --out"
    )


@dataclass(frozen=True, eq=False)
class _Networks:
    """Networks of a search on their way to their files.

    Args:
        stages: of the folder.
        result: the study.
    """

    stages: _Stages
    result: StudyResult

    @cached_property
    def study(self) -> Restored:
        """The study's network and data, loaded when a stage needs them."""
        return restore_study(self.stages.folder)

    def finish(self, picked: Pick) -> None:
        """Distill one, train it with its grids, and export it."""
        settings, place = self.stages.settings, self.place(picked)
        distilled = None
        if settings.distill is not None:
            distilled = place / DISTILLED
            given: dict[str, Any] = {"settings": settings.distill.to_dict()}
            self._stage("distill", picked, given, distilled, self._distill)
        given = {
            "settings": settings.quantize.to_dict(),
            "distilled": None if distilled is None else _content(distilled),
        }
        finish_writing(place)
        self._stage("quantize", picked, given, place / DOCUMENT, self._quantize)
        for name in settings.formats:
            path = self.stages.folder / EXPORTED / f"{picked.policy.key}{_ENDINGS[name]}"
            given = {"network": _content(place / NETWORK)}
            work = partial(self._export, name=name, path=path)
            self._stage(f"export {name}", picked, given, path, work)

    def place(self, picked: Pick) -> Path:
        """A network's folder."""
        return self.stages.folder / RECOVERED / picked.policy.key

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
        settings, workload = self.stages.settings.distill, self.study.workload
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
            TrainingProgress(),
            fixed=self.study.fixed,
        )
        name, arguments = workload.name, workload.arguments
        save_state(recovered.network, path, policy, architecture=name, arguments=arguments)

    def _quantize(self, picked: Pick) -> None:
        """Train it with its grids, from where distillation left it."""
        settings = self.stages.settings
        start, epochs = None, 0
        if settings.distill is not None:
            start = load_trained(self.place(picked) / DISTILLED, self.study)
            epochs = settings.distill.training.epochs
        task = RecoveryTask(
            self.study, self.stages.folder, self.result.manifest.fingerprint, settings.quantize
        )
        task.recover(picked, TrainingProgress(), start, epochs)

    def _export(self, picked: Pick, *, name: str, path: Path) -> None:
        rule = f"point:{picked.policy.key}"
        export_network(self.stages.folder, rule, name, path, recovered=True, raw=False, force=True)
