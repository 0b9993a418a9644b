"""Studies: prepare, race, measure the finalists, leave a folder."""

from __future__ import annotations

import errno
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress import (
    Compressor,
    DerivedSpace,
    gene_features,
    layer_ranks,
    low_rank_shares,
    space_of_structure,
)
from automl_compress.compress.feature_ranks import IMAGES as RANKED_IMAGES
from automl_compress.deploy.latency_model import LatencyModel
from automl_compress.engine.config import StudyConfig, config_of_mapping, read_config
from automl_compress.engine.engine import Listener, Race, ignore
from automl_compress.engine.extension import extended_config, reopen
from automl_compress.engine.idle import without_idle_choices
from automl_compress.engine.latency import (
    check_machine,
    latency_record,
    measure_latencies,
    predicting,
    recorded_model,
)
from automl_compress.engine.lock import locked
from automl_compress.engine.promotion import climb, cross_validated, with_ladder
from automl_compress.engine.restore import load_estimators, stated_config, torch_threads
from automl_compress.engine.rungs import build_rung, rung_cost
from automl_compress.engine.start import check_engine, connected, started
from automl_compress.engine.statement import fingerprint_of, state_manifest
from automl_compress.engine.tuning import tuned
from automl_compress.errors import InterruptedStudy, StudyError, WorkloadError
from automl_compress.evaluate import (
    LOSSES,
    Evaluation,
    check_measured,
    check_met_by_least,
    check_quality,
    loss_of,
    minimised_metrics,
    useful_loss,
)
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.latency import CostsWithLatency, WithLatency
from automl_compress.evaluate.network import NetworkEstimator
from automl_compress.ledger import (
    LEDGER,
    MANIFEST,
    ContestantRecord,
    Ledger,
    Manifest,
    StudyResult,
)
from automl_compress.recover import training_heads
from automl_compress.search import (
    Problem,
    RungOffer,
    build_strategy,
    find_strategy,
)
from automl_compress.space import Policy, SearchSpace, SpaceRules, load_rules
from automl_compress.workload import BoxTask, Workload

_logger = logging.getLogger(__name__)

SENSITIVE: Final = "sensitive"
"""Strategy that is told how many feature maps of each layer have a low rank."""


@dataclass(frozen=True)
class _Prepared:
    """A study whose parts are loaded, checked and measured for a baseline."""

    manifest: Manifest
    problem: Problem
    search: Estimator
    test: Estimator
    compressor: Compressor
    example_input: Tensor
    rungs: Mapping[str, Estimator]


class Study:
    """A search over one network, stated as a sweep file states it.

    Args:
        **settings: the keys of a sweep file; `study`, `workload` and `budget` must be given.
            `workload` may be a loaded `Workload` in place of its settings, and a class or function
            of a module stand for its `package.module:name`.

    Raises:
        InputError: a key or value is wrong.
    """

    given: nn.Module | None = None
    """What the user gave, where the workload's network was trained from it before the search."""

    def __init__(self, **settings: Any) -> None:
        self.config = config_of_mapping(settings)

    @classmethod
    def from_file(cls, path: str | Path, overrides: Iterable[str] = ()) -> Study:
        """The study a sweep file states.

        Args:
            path: the YAML file.
            overrides: `key.subkey=value` texts.

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
        """
        if any(changes.get(name) is not None for name in ("workers", "address")):
            changes = {"kind": "cluster", **changes}
        engine = replace(self.config.engine, **changes)
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
        folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="automl_compress_"))
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
    def resume(cls, folder: str | Path, listener: Listener = ignore, **engine: Any) -> StudyResult:
        """Go on with a study that was interrupted or killed.

        Contestants walk through their rounds again; what the ledger holds answers at once, so no
        finished evaluation is run twice and the front is that of an undisturbed run.

        Args:
            folder: the study's folder.
            listener: hears as in `run`.
            **engine: engine settings to change.

        Raises:
            StudyError: the folder holds no study, its network, data or settings have changed, or
                another process goes on with it; nothing is changed.
        """
        place = Path(folder)
        manifest = Manifest.read(place)
        study = cls._of(stated_config(manifest))
        study = study.with_engine(**engine) if engine else study
        prepared = study._prepare(manifest)
        _check_unchanged(folder, manifest, prepared.manifest)
        kept = replace(
            prepared.manifest, environment=manifest.environment, extended=manifest.extended
        )
        with locked(place):
            _check_still(place, manifest)
            return study._run(replace(prepared, manifest=kept), place, listener)

    @classmethod
    def extend(
        cls,
        folder: str | Path,
        evaluations: int = 0,
        strategies: Sequence[str] = (),
        listener: Listener = ignore,
        **engine: Any,
    ) -> StudyResult:
        """Go on with a finished study beyond its end.

        Its evaluations are those of a study that was stated so from its start; what the ledger
        holds is not run again. Finalists are chosen and measured anew; latencies of all of them
        where one is not known, for only those of one session can be compared.

        Args:
            folder: the study's folder.
            evaluations: how many more each contestant is charged.
            strategies: who competes besides those that did, with the study's seeds.
            listener: hears as in `run`.
            **engine: engine settings to change.

        Raises:
            StudyError: the folder holds no finished study, its network, data or settings have
                changed, another process goes on with it, or it cannot be extended so; nothing is
                changed.
            InterruptedStudy: the user stopped it; `resume` goes on to the new end.
        """
        place = Path(folder)
        manifest = StudyResult(place).manifest
        study = cls._of(extended_config(place, manifest, evaluations, strategies))
        study = study.with_engine(**engine) if engine else study
        prepared = study._prepare(manifest)
        shorter = replace(
            prepared.manifest, contestants=manifest.contestants, budget=manifest.budget
        )
        _check_unchanged(folder, manifest, replace(shorter, fingerprint=fingerprint_of(shorter)))
        kept = replace(
            prepared.manifest,
            environment=manifest.environment,
            extended=(*manifest.extended, manifest.fingerprint),
        )
        with locked(place):
            _check_still(place, manifest)
            reopen(place, manifest)
            return study._run(replace(prepared, manifest=kept), place, listener)

    def _run(
        self,
        prepared: _Prepared,
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
        except (InterruptedStudy, KeyboardInterrupt) as reason:
            replace(manifest, status="interrupted").write(folder)
            raise InterruptedStudy(
                f"stopped; all finished evaluations are saved, go on with 'resume {folder}'"
            ) from reason
        keys = tuple(policy.key for policy in finalists)
        manifest = replace(manifest, predictor=cross_validated(StudyResult(folder)))
        replace(manifest, status="finished", finalists=keys).write(folder)
        result = StudyResult(folder)
        result.save(folder)
        return result

    def _measure_latencies(
        self, prepared: _Prepared, finalists: Sequence[Policy], folder: Path
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

    def _prepare(self, before: Manifest | None = None) -> _Prepared:
        """Load, trace and measure everything before anything is written.

        Args:
            before: of the study that goes on. What it says of latencies and of the network the
                user gave still holds.
        """
        config = self.config
        check_engine(config.engine)
        for name in config.strategies:
            find_strategy(name)
        rules = SpaceRules() if config.space is None else load_rules(config.space)
        with torch_threads(config.engine.threads):
            workload, network, test_network = load_estimators(config)
            check_quality(config.constraints, workload.task.quality)
            compressor = network.compressor
            derived = space_of_structure(compressor.model, compressor.structure, rules)
            search: Estimator = network
            test: Estimator = test_network
            cost: Callable[[Policy], Mapping[str, float]] = compressor.cost
            latency: dict[str, Any] = {}
            if config.latency is not None:
                recorded = None if before is None else before.latency
                model = self._latency_model(compressor, derived, workload, recorded)
                search, test = WithLatency(search, model), WithLatency(test, model)
                cost = CostsWithLatency(cost, model)
                latency = latency_record(config.latency, model, search.identity)
            baseline, test_baseline = (_baseline(e) for e in (search, test))
            given, test_given = (_given(self.given, e) for e in (network, test_network))
            if before is not None:
                given, test_given = dict(before.given), dict(before.test_given)
        _warn_of_chance(baseline, workload)
        _warn_of_heads(workload)
        derived = _without_idle_choices(derived, cost, config)
        minimised = minimised_metrics(baseline.metrics)
        named = {
            "objectives": config.objectives,
            "constraints": [constraint.metric for constraint in config.constraints],
            "ladder": [rung.by for rung in config.ladder if rung.by is not None],
        }
        check_measured(named, minimised)
        constraints = tuple(c.absolute(minimised) for c in config.constraints)
        check_met_by_least(constraints, cost(derived.space.smallest))
        rungs = {
            rung.name: build_rung(rung, workload, network)
            for rung in config.ladder
            if not rung.learned
        }
        offers = {
            rung.name: RungOffer(rungs[rung.name].identity, rung_cost(rung, workload, network))
            for rung in config.ladder
            if not rung.learned
        }
        manifest = state_manifest(
            config, workload, derived, constraints, (search, test), (baseline, test_baseline)
        )
        networks = (network.networks, test_network.networks)
        manifest = replace(
            manifest, latency=latency, networks=networks, given=given, test_given=test_given
        )
        manifest = with_ladder(manifest, config.ladder, offers)
        problem = Problem(
            space=derived.space,
            objectives=config.objectives,
            baseline=minimised,
            cost=cost,
            constraints=constraints,
            features=gene_features(derived.space, compressor.structure, compressor.cost),
            sensitivity=_sensitivity(config, workload, derived.space, compressor),
            rungs=offers,
            useful_loss=useful_loss(loss_of(config.objectives)),
            sparsity_loss=manifest.sparsity_loss,
        )
        for name in config.strategies:  # whose mistakes are told before anything is written
            build_strategy(name, problem, config.seeds[0])
        return _Prepared(
            manifest, problem, search, test, compressor, workload.example_input(), rungs
        )

    def _latency_model(
        self,
        compressor: Compressor,
        derived: DerivedSpace,
        workload: Workload,
        recorded: Mapping[str, Any] | None,
    ) -> LatencyModel:
        """What predicts latencies: the one a study began with, or one made now."""
        settings = self.config.latency
        assert settings is not None
        if recorded:
            model = recorded_model(recorded, compressor)
            check_machine(model, settings)
            return model
        return predicting(settings, compressor, derived.space, workload.example_input())


def _without_idle_choices(
    derived: DerivedSpace, cost: Callable[[Policy], Mapping[str, float]], config: StudyConfig
) -> DerivedSpace:
    stated = dict.fromkeys((*config.objectives, *(c.metric for c in config.constraints)))
    costs = [name for name in stated if name not in LOSSES]
    space, idle = without_idle_choices(derived.space, cost, costs)
    return replace(derived, space=space, coverage=replace(derived.coverage, idle=idle))


def _sensitivity(
    config: StudyConfig, workload: Workload, space: SearchSpace, compressor: Compressor
) -> NDArray[np.float64]:
    """(n_genes,) shares of low-rank feature maps, for the strategy that asks; else empty."""
    if SENSITIVE not in config.strategies:
        return np.zeros(0)
    train = workload.splits.train
    images = train.draw(min(RANKED_IMAGES, len(train)), config.estimate.seed)
    ranks = layer_ranks(
        compressor.model, compressor.structure, images.tensor(workload.normalization)
    )
    return low_rank_shares(space, ranks)


def _baseline(estimator: Estimator) -> Evaluation:
    """The uncompressed network, as its estimator sees it.

    Raises:
        WorkloadError: it cannot be measured.
    """
    evaluation = estimator.estimate(Policy({}))
    if not evaluation.ok:
        raise WorkloadError(
            f"the uncompressed network must be measurable, but is not: {evaluation.reason}; "
            "check model and data"
        )
    return evaluation


def _given(network: nn.Module | None, estimator: NetworkEstimator) -> dict[str, float]:
    """Quality of what the user gave on an estimator's images; empty where it is the baseline."""
    return {} if network is None else estimator.qualities(network)


def _warn_of_chance(baseline: Evaluation, workload: Workload) -> None:
    """Say so where the uncompressed network knows no more than which class is the commonest."""
    if isinstance(workload.task, BoxTask):
        return
    counts = np.bincount(workload.splits.validation.labels)
    commonest = float(counts.max() / counts.sum())
    noise = math.sqrt(commonest * (1.0 - commonest) / max(1, baseline.images))
    if baseline.quality <= commonest + 2.0 * noise:
        _logger.warning(
            "the uncompressed network is right on %.1f %% of the search images, and to name the "
            "commonest class always would be on %.1f %%; check weights, data.mean, data.std and "
            "the order of the classes",
            100 * baseline.quality,
            100 * commonest,
        )


def _warn_of_heads(workload: Workload) -> None:
    """Say so where parts of the network run in training mode alone, which no policy compresses."""
    if heads := training_heads(workload.model, workload.example_input()):
        _logger.warning(
            "parts that run in training mode alone are neither searched nor trained: %s; they are "
            "in every size and file, %s bytes of parameters that a factory without them saves",
            ", ".join(heads),
            f"{4 * sum(heads.values()):,}",
        )


def _check_unchanged(folder: str | Path, before: Manifest, now: Manifest) -> None:
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
            f"--out must be a folder that can be written, but '{folder}' is not "
            f"({reason.strerror}); choose another"
        ) from reason


def _check_unused(folder: Path, name: str) -> None:
    """Refuse a folder that holds a study already."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise StudyError(f"--out must be a folder, but '{nearest}' is a file; choose another")
    if not os.access(nearest, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    if (folder / MANIFEST).exists():
        held = Manifest.read(folder)
        remedy = "choose another --out"
        if held.study == name:
            remedy = (
                f"read it with 'report {folder}' or {remedy}"
                if held.status == "finished"
                else f"go on with 'resume {folder}' or {remedy}"
            )
        raise StudyError(
            f"--out must hold no study, but '{folder}' holds '{held.study}' ({held.status}); "
            f"{remedy}"
        )
    if (folder / LEDGER).exists():
        raise StudyError(f"--out must hold no ledger, but '{folder}' does; choose another --out")


def _unfinished(folder: Path, budget: int) -> list[ContestantRecord]:
    """Contestants that have budget left."""
    with Ledger(folder / LEDGER):
        result = StudyResult(folder)
    return [c for c in result.manifest.contestants if result.spent(c.name) < budget]
