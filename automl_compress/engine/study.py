"""Studies: prepare, race, measure the finalists, leave a folder."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from automl_compress.engine.config import (
    StudyConfig,
    config_of_mapping,
    engine_with,
    read_config,
)
from automl_compress.engine.engine import Listener, Race, ignore
from automl_compress.engine.extension import extended_config, reopen
from automl_compress.engine.latency import measure_latencies
from automl_compress.engine.lock import locked
from automl_compress.engine.prepare import Prepared, prepare_study
from automl_compress.engine.promotion import climb, cross_validated
from automl_compress.engine.restore import stated_config, torch_threads
from automl_compress.engine.start import connected, started
from automl_compress.engine.statement import fingerprint_of
from automl_compress.engine.tuning import tuned
from automl_compress.errors import InterruptedStudy, StudyError
from automl_compress.ledger import (
    LEDGER,
    MANIFEST,
    ContestantRecord,
    Ledger,
    Manifest,
    StudyResult,
    study_folder,
)
from automl_compress.settings import shown
from automl_compress.space import Policy
from automl_compress.workload import Workload
from automl_compress.workload.torch_modes import usual_modes


class Study:
    """A search over one network, stated as a sweep file states it.

    Args:
        **settings: the keys of a sweep file; `study`, `workload` and `budget` must be given.
            `workload` may be a loaded `Workload` in place of its settings, `space` a `SpaceRules`
            in place of a file, and a class or function of a module stand for its
            `package.module:name`.

    Raises:
        InputError: a key or value is wrong.
    """

    given: nn.Module | None = None
    """What the user gave, where the workload's network was trained from it before the search."""

    def __init__(self, **settings: Any) -> None:
        self.config = config_of_mapping(settings)

    @classmethod
    def from_file(cls, path: str | Path, overrides: str | Iterable[str] = ()) -> Study:
        """The study a sweep file states.

        Args:
            path: the YAML file.
            overrides: one `key.subkey=value` text, or several.

        Raises:
            InputError: the file is wrong; the message names file, key and line.
        """
        return cls._of(read_config(path, overrides))

    @classmethod
    def _of(cls, config: StudyConfig) -> Study:
        study = object.__new__(cls)
        study.config = config
        return study

    def with_engine(self, **changes: Any) -> Study:
        """The same study with other engine settings: `kind`, `workers`, `threads`, `address`.

        Workers or an address make it a cluster's, unless a kind is given too.

        Raises:
            StudyError: there is no such setting, or a value is wrong.
        """
        if any(changes.get(name) is not None for name in ("workers", "address")):
            changes = {"kind": "cluster", **changes}
        engine = engine_with(self.config.engine, changes)
        automatic = self.config.automatic - {f"engine.{name}" for name in changes}
        return self._with(replace(self.config, engine=engine, automatic=automatic))

    def with_given(self, network: nn.Module) -> Study:
        """The same study, whose report counts losses against another network than it compresses.

        Args:
            network: what the workload's network was trained from, of the same architecture; in
                evaluation mode.
        """
        study = self._of(self.config)
        study.given = network
        return study

    def _with(self, config: StudyConfig) -> Study:
        study = self._of(config)
        study.given = self.given
        return study

    @usual_modes()
    def run(self, out: str | Path | None = None, listener: Listener = ignore) -> StudyResult:
        """Search, and measure the finalists on the final test images.

        Args:
            out: folder of the study, made when missing; a new temporary one when not given.
            listener: hears every contestant after each of its rounds, and how far rungs have come.

        Returns:
            The study's folder, read back.

        Raises:
            InputError: a setting, the workload or the folder is wrong; nothing is written.
            EngineError: the run failed; `resume` goes on from what is saved.
            InterruptedStudy: the user stopped it; `resume` goes on.
        """
        if not callable(listener):
            raise StudyError(f"a listener must be a function, but is {shown(listener)}; give one")
        temporary = Path(tempfile.mkdtemp(prefix="automl_compress_")) if out is None else out
        folder = study_folder(temporary)
        with _writable(folder):
            _check_unused(folder, self.config.name)
        study = self._with(tuned(self.config))
        prepared = study._prepare()
        with ExitStack() as ray:
            ray.enter_context(connected(study.config.engine))
            with _writable(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with locked(folder):
                with _writable(folder):
                    _check_unused(folder, self.config.name)  # another may have come first
                return study._run(prepared, folder, listener, ray)

    @classmethod
    @usual_modes()
    def resume(
        cls,
        folder: str | Path | StudyResult,
        listener: Listener = ignore,
        *,
        retry_failed: bool = False,
        workload: Workload | None = None,
        **engine: Any,
    ) -> StudyResult:
        """Go on with a study that was interrupted or killed.

        Contestants walk through their rounds again; what the ledger holds answers at once, so no
        finished evaluation is run twice and the front is that of an undisturbed run.

        Args:
            folder: the study's folder, or what the study returned.
            listener: hears as in `run`.
            retry_failed: whether evaluations that failed are tried again, of a finished study too:
                contestants go on as if these had never failed, and are charged anew.
            workload: given again, where the study was given a loaded one.
            **engine: engine settings to change, such as `workers=2`; see `with_engine`.

        Raises:
            StudyError: the folder holds no study, its network, data or settings have changed, or
                another process goes on with it; nothing is changed.
        """
        place = study_folder(folder)
        manifest = Manifest.read(place)
        study = cls._of(stated_config(manifest, workload))
        study = study.with_engine(**engine) if engine else study
        prepared = study._prepare(manifest)
        _check_unchanged(place, manifest, prepared.manifest)
        kept = replace(
            prepared.manifest, environment=manifest.environment, extended=manifest.extended
        )
        with locked(place):
            _check_still(place, manifest)
            if retry_failed:
                reopen(place, manifest, failures=True)
            return study._run(replace(prepared, manifest=kept), place, listener)

    @classmethod
    @usual_modes()
    def extend(
        cls,
        folder: str | Path | StudyResult,
        evaluations: int = 0,
        strategies: str | Sequence[str] = (),
        listener: Listener = ignore,
        *,
        workload: Workload | None = None,
        **engine: Any,
    ) -> StudyResult:
        """Go on with a finished study beyond its end.

        Its evaluations are those of a study that was stated so from its start; what the ledger
        holds is not run again. Finalists are chosen and measured anew; latencies of all of them
        where one is not known, for only those of one session can be compared.

        Args:
            folder: the study's folder, or what the study returned.
            evaluations: how many more each contestant is charged.
            strategies: one, or several, who compete besides those that did, with the study's
                seeds.
            listener: hears as in `run`.
            workload: given again, where the study was given a loaded one.
            **engine: engine settings to change, such as `workers=2`; see `with_engine`.

        Raises:
            StudyError: the folder holds no finished study, its network, data or settings have
                changed, another process goes on with it, or it cannot be extended so; nothing is
                changed.
            InterruptedStudy: the user stopped it; `resume` goes on to the new end.
        """
        place = study_folder(folder)
        manifest = StudyResult(place).manifest
        study = cls._of(extended_config(place, manifest, evaluations, strategies, workload))
        study = study.with_engine(**engine) if engine else study
        prepared = study._prepare(manifest)
        shorter = replace(
            prepared.manifest, contestants=manifest.contestants, budget=manifest.budget
        )
        _check_unchanged(place, manifest, replace(shorter, fingerprint=fingerprint_of(shorter)))
        kept = replace(
            prepared.manifest,
            environment=manifest.environment,
            extended=(*manifest.extended, manifest.fingerprint),
        )
        with locked(place):
            _check_still(place, manifest)
            reopen(place, manifest)
            return study._run(replace(prepared, manifest=kept), place, listener)

    def _prepare(self, before: Manifest | None = None) -> Prepared:
        return prepare_study(self.config, self.given, before)

    def _run(
        self,
        prepared: Prepared,
        folder: Path,
        listener: Listener,
        ray: ExitStack | None = None,
    ) -> StudyResult:
        """Race, climb and measure.

        Args:
            prepared: what is searched.
            folder: the study's, locked.
            listener: hears how far it has come.
            ray: closed once nothing is left for engines to do.
        """
        manifest = replace(prepared.manifest, status="running")
        manifest.write(folder)
        race = Race(
            prepared.problem,
            prepared.search,
            prepared.test,
            self.config.evaluations,
            folder / LEDGER,
            prepared.rungs,
        )
        unfinished = _unfinished(folder, race.budget)
        try:
            with started(race, self.config.engine, folder) as engine:
                engine.run(unfinished, listener)
                standing, manifest = climb(
                    self.config.ladder,
                    race,
                    engine,
                    manifest,
                    folder,
                    self.config.finalists,
                    listener,
                )
                finalists = standing.finalists(self.config.finalists)
                engine.measure(finalists, listener=listener)
            if ray is not None:
                ray.close()
            self._measure_latencies(prepared, finalists, folder)
            keys = tuple(policy.key for policy in finalists)
            manifest = replace(manifest, predictor=cross_validated(StudyResult(folder)))
            replace(manifest, status="finished", finalists=keys).write(folder)
            result = StudyResult(folder)
            result.save(folder)
        except (InterruptedStudy, KeyboardInterrupt) as reason:
            replace(manifest, status="interrupted").write(folder)
            raise InterruptedStudy(
                f"stopped; all finished evaluations are saved, go on with 'resume {folder}'"
            ) from reason
        return result

    def _measure_latencies(
        self, prepared: Prepared, finalists: Sequence[Policy], folder: Path
    ) -> None:
        """Measure the finalists' latencies, now that nothing else of the study runs."""
        if self.config.latency is None:
            return
        with torch_threads(self.config.engine.threads):
            measure_latencies(
                self.config.latency,
                prepared.manifest.latency,
                prepared.compressor,
                finalists,
                prepared.example_input,
                folder / LEDGER,
            )


def _check_unchanged(folder: Path, before: Manifest, now: Manifest) -> None:
    """Refuse to go on with a study whose evaluations would be others."""
    if now.fingerprint != before.fingerprint:
        raise StudyError(
            f"a study must go on with the network, data and settings it began with, but "
            f"those of '{folder}' have changed; restore them or start another study"
        )


def _check_still(folder: Path, read: Manifest) -> None:
    """Refuse to go on with a study that another process has changed since it was read."""
    if Manifest.read(folder).to_json() != read.to_json():
        raise StudyError(
            f"a study must be changed by one process at a time, but another has changed '{folder}' "
            "since this one read it; run the command again"
        )


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """What cannot be made or read inside is the folder's fault.

    Raises:
        StudyError: the folder cannot be used.
    """
    try:
        yield
    except OSError as reason:
        raise StudyError(
            f"a study's folder must be one that can be written, but '{folder}' is not "
            f"({reason.strerror}); choose another"
        ) from reason


def _check_unused(folder: Path, name: str) -> None:
    """Refuse a folder that holds a study already."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise StudyError(f"a study needs a folder, but '{nearest}' is a file; choose another")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if (folder / MANIFEST).exists():
        held = Manifest.read(folder)
        remedy = "choose another folder"
        if held.study == name:
            remedy = (
                f"read it with 'report {folder}' or {remedy}"
                if held.status == "finished"
                else f"go on with 'resume {folder}' or {remedy}"
            )
        raise StudyError(
            f"a new study's folder must hold no study, but '{folder}' holds "
            f"'{held.study}' ({held.status}); {remedy}"
        )
    if (folder / LEDGER).exists():
        raise StudyError(
            f"a new study's folder must hold no ledger, but '{folder}' does; choose another folder"
        )


def _unfinished(folder: Path, budget: int) -> list[ContestantRecord]:
    """Contestants that have budget left."""
    with Ledger(folder / LEDGER):
        result = StudyResult(folder)
    return [c for c in result.manifest.contestants if result.spent(c.name) < budget]
