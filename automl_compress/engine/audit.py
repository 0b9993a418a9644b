"""The proxy audit: do cheap estimates rank policies as training does?

A spread of a study's policies is measured on every cheap rung and then trained briefly. Over a
wide range nearly everything ranks well, the bare size included; so most of the policies stand in
budget bands, where bytes and multiply-accumulates are nearly equal and only the estimate can tell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.compress import Repair
from automl_compress.engine.audit_spread import BANDS, TOLERANCE, Audited, spread
from automl_compress.engine.engine import Engine, EngineSettings, Race, RungListener
from automl_compress.engine.latency import recorded_model
from automl_compress.engine.lock import locked
from automl_compress.engine.restore import Restored, restore_study
from automl_compress.engine.rungs import RungSettings, build_rung
from automl_compress.engine.start import started
from automl_compress.engine.trained import FEWEST_STEPS, TrainedEstimator, TrainSettings
from automl_compress.errors import InterruptedStudy, StudyError
from automl_compress.evaluate import (
    DIVERGENCE,
    Evaluation,
    error_name,
    loss_of,
    minimised_metrics,
    quality_name,
)
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.latency import WithLatency
from automl_compress.evaluate.network import NetworkEstimator
from automl_compress.evaluate.predictor import FEWEST, LearnedEstimator
from automl_compress.evaluate.ranking import correlate, kendall_of_samples, spearman_of_samples
from automl_compress.ledger import AUDIT, LEDGER, Ledger, StudyResult, write_text
from automl_compress.recover import find_device
from automl_compress.search import Problem
from automl_compress.space import Policy, SearchSpace
from automl_compress.workload import Workload

VERSION: Final = 1
SEARCH: Final = "search"
TRAINED: Final = "trained"
AGAIN: Final = "trained again"
FIRST: Final = "trained first"
"""Where every policy is trained twice, the qualities named `TRAINED` are the means of these two."""
NULLS: Final = ("size_bytes", "macs", "bitops")
"""Costs that rank policies without any estimate: what an estimate has to beat."""
_FEWEST: Final = 2 * BANDS


@dataclass(frozen=True)
class AuditSettings:
    """How an audit is made.

    Args:
        policies: how many are trained.
        train: how.
        repairs: of networks whose estimates on the search's images are compared too.
        short: steps of trainings that are compared too, as a rung of a ladder may have; they, and
            the rungs of the study's ladder that train, begin from another seed than the training
            that they foretell.
        twice: whether every policy is trained twice, from two seeds and on two draws of images, to
            be ranked by the mean; how the two trainings rank each other limits what any estimate
            can reach.
        seed: decides which policies stand in bands, and the other draw of images.
    """

    policies: int = 40
    train: TrainSettings = field(default_factory=TrainSettings)
    repairs: tuple[Repair, ...] = ()
    short: tuple[int, ...] = ()
    twice: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.policies < _FEWEST:
            raise StudyError(
                f"an audit must have at least {_FEWEST} policies, but is to have "
                f"{self.policies}; raise --policies"
            )
        for steps in self.short:
            if steps < FEWEST_STEPS or (self.train.steps and steps >= self.train.steps):
                raise StudyError(
                    f"a short training must have at least {FEWEST_STEPS} step and fewer than the "
                    f"training it foretells, but is to have {steps}; correct --short"
                )


def audit_study(
    folder: Path,
    settings: AuditSettings,
    listener: RungListener,
    workload: Workload | None = None,
    **engine: Any,
) -> dict[str, Any]:
    """Measure and train a spread of a study's policies, and write `audit.json`.

    Every evaluation is in the study's ledger once it is made; run again, an audit goes on. No
    other process writes to the folder meanwhile.

    Args:
        folder: the study's.
        settings: how.
        listener: hears how far it has come.
        workload: given again, where the study was given a loaded one.
        **engine: `workers` or `address` of a cluster's evaluators, which then work side by side;
            without, this process does everything.

    Returns:
        What `audit.json` says.

    Raises:
        InputError: the folder holds no study, its network has changed, it found too little,
            another process goes on with it, or a cluster is to train on another device than
            processors.
        EngineError: a cluster cannot be started or reached, or failed.
        InterruptedStudy: the user stopped it; what is measured is kept.
    """
    StudyResult(folder)  # holds a study
    with locked(folder):
        study = restore_study(folder, workload)
        return _audit(study, folder, settings, listener, engine)


def _audit(
    study: Restored,
    folder: Path,
    settings: AuditSettings,
    listener: RungListener,
    engine: Mapping[str, Any],
) -> dict[str, Any]:
    result = StudyResult(folder)
    cost = study.search.compressor.cost
    space = SearchSpace.from_dict(result.manifest.space)
    chosen = spread(result, space, cost, settings.policies, settings.seed)
    rungs = _rungs(study, result, settings)
    manifest = result.manifest
    problem = Problem(space, manifest.objectives, minimised_metrics(manifest.baseline), cost)
    asked = {_asked_as(name): estimator for name, estimator in rungs.items()}
    race = Race(problem, rungs[SEARCH], study.test, 0, folder / LEDGER, asked)
    started_by = _engine_settings(study.config.engine, settings, engine)
    policies = [audited.policy for audited in chosen]
    with started(race, started_by, folder) as running, Ledger(folder / LEDGER) as ledger:
        answers = {
            name: _measured(running, ledger, name, estimator, policies, listener)
            for name, estimator in rungs.items()
        }
    document = _document(result, settings, chosen, rungs, answers)
    write_text(folder / AUDIT, json.dumps(document, indent=1) + "\n")
    return document


def _engine_settings(
    stated: EngineSettings, settings: AuditSettings, changes: Mapping[str, Any]
) -> EngineSettings:
    """A cluster where any of its settings are given."""
    if not changes:
        return replace(stated, kind="serial")
    device = settings.train.recovery.training.device
    if find_device(device).type != "cpu":
        raise StudyError(
            f"a cluster's evaluators train on processors, but device is '{device}'; give "
            "--device cpu, or neither --workers nor --address"
        )
    return replace(stated, kind="cluster", **changes)


# Measuring


def _rungs(study: Restored, result: StudyResult, settings: AuditSettings) -> dict[str, Estimator]:
    """Estimators by name, from cheap to dear; the last one trains."""
    search, workload = study.search, study.workload
    cheap: Estimator = search
    if result.manifest.latency:
        cheap = WithLatency(search, recorded_model(result.manifest.latency, search.compressor))
    other = replace(search.settings, seed=search.settings.seed + 1 + settings.seed)
    whole = RungSettings("full")
    rungs: dict[str, Estimator] = {}
    told = list(result.usable_evaluations().values())
    if len(told) >= FEWEST:
        rungs["learned"] = LearnedEstimator(told, search.compressor.cost)
    rungs[SEARCH] = cheap
    rungs["redrawn"] = NetworkEstimator(workload, other)
    rungs["full"] = build_rung(whole, workload, search)
    for rung in _more_rungs(study, settings):
        rungs[rung.name] = build_rung(rung, workload, search)
    trainings = {TRAINED: settings.train}
    if settings.twice:
        trainings[AGAIN] = _from_another_seed(settings, settings.train.steps, 2)
    for name, train in trainings.items():
        rungs[name] = TrainedEstimator(workload, search.compressor, search.networks, train)
    return rungs


def _unshared(rung: RungSettings, settings: AuditSettings) -> RungSettings:
    """A ladder's rung that shares no seed with the trainings that it is to foretell.

    With the same seed, and so the same images in the same order, it would share their luck, and be
    judged by nearly itself. What the ledger holds of the rung was measured with its own seed; of
    another one, it is another estimator, and measures anew.
    """
    seeds = {settings.train.recovery.training.seed}
    if settings.twice:
        seeds.add(_from_another_seed(settings, None, 2).recovery.training.seed)
    if rung.train is None or rung.train.recovery.training.seed not in seeds:
        return rung
    other = _from_another_seed(settings, None, 1).recovery.training.seed
    recovery = rung.train.recovery
    training = replace(recovery.training, seed=other)
    return replace(rung, train=replace(rung.train, recovery=replace(recovery, training=training)))


def _from_another_seed(settings: AuditSettings, steps: int | None, number: int) -> TrainSettings:
    """A training of so many steps that differs from the audit's by its seed, and so its images."""
    recovery = settings.train.recovery
    training = replace(recovery.training, seed=recovery.training.seed + number + settings.seed)
    return TrainSettings(steps, replace(recovery, training=training))


def _more_rungs(study: Restored, settings: AuditSettings) -> list[RungSettings]:
    """What the audit was asked for, then the study's own ladder but for what trains as long."""
    images = study.search.settings.images
    asked = [RungSettings(f"repair {r}", images=images, repair=r) for r in settings.repairs]
    asked += [
        RungSettings(
            f"training of {steps} step{'s' * (steps > 1)}",
            train=_from_another_seed(settings, steps, 1),
        )
        for steps in settings.short
    ]
    train = study.workload.splits.train
    longest = settings.train.shown_images(train)
    ladder = [
        replace(_unshared(rung, settings), name=f"ladder's {rung.name}")
        for rung in study.config.ladder
        if not rung.learned and (rung.train is None or rung.train.shown_images(train) < longest)
    ]
    return asked + ladder


def _asked_as(name: str) -> str:
    """What the ledger says of who asked for evaluations of a rung."""
    return f"audit {name}"


def _measured(
    engine: Engine,
    ledger: Ledger,
    name: str,
    estimator: Estimator,
    policies: Sequence[Policy],
    listener: RungListener,
) -> list[Evaluation]:
    """Answers from the ledger, or new ones that are committed one by one."""
    try:
        engine.measure(policies, _asked_as(name), listener)
    except (InterruptedStudy, KeyboardInterrupt) as reason:
        raise InterruptedStudy(
            "stopped; what is measured is saved, run the same command to go on"
        ) from reason
    found = ledger.find([policy.key for policy in policies], estimator.identity)
    return [found[policy.key] for policy in policies]


# What came of it


def _document(
    result: StudyResult,
    settings: AuditSettings,
    chosen: Sequence[Audited],
    rungs: Mapping[str, Estimator],
    answers: Mapping[str, Sequence[Evaluation]],
) -> dict[str, Any]:
    """What `audit.json` says; policies that a rung could not measure count as failed."""
    good = [row for row in range(len(chosen)) if all(found[row].ok for found in answers.values())]
    kept = [chosen[row] for row in good]
    found = {name: [answers[name][row] for row in good] for name in answers}
    qualities, divergences = _qualities(found), _divergences(found)
    return {
        "version": VERSION,
        "study": result.manifest.fingerprint,
        "quality": quality_name(result.manifest.baseline),
        "loss": loss_of(result.manifest.objectives),
        "settings": {
            "policies": settings.policies,
            "seed": settings.seed,
            "train": settings.train.to_dict(),
            "bands": BANDS,
            "tolerance": TOLERANCE,
        },
        "failed": len(chosen) - len(good),
        "rungs": {
            name: {
                "estimator": rungs[name].identity,
                "images": max((e.images for e in evaluations), default=0),
                "seconds": float(np.mean([e.seconds for e in evaluations])),
            }
            for name, evaluations in answers.items()
        },
        "correlations": _all_correlations(kept, found, qualities, divergences),
        "noise": _noise(found[SEARCH], found["redrawn"]),
        "policies": [
            _policy_row(audited, {name: e[row] for name, e in found.items()})
            | {
                quality_name(result.manifest.baseline): _at(qualities, row),
                DIVERGENCE: _at(divergences, row),
            }
            for row, audited in enumerate(kept)
        ],
    }


_Answers = Mapping[str, Sequence[Evaluation]]
"""By rung, (n,) evaluations of the audited policies that all rungs could measure."""
_Columns = dict[str, NDArray[np.float64]]
"""By rung, (n,) numbers."""


def _qualities(found: _Answers) -> _Columns:
    """Qualities by rung; where policies were trained twice, `TRAINED` is the mean of both."""
    qualities = {name: np.array([e.quality for e in part]) for name, part in found.items()}
    if AGAIN in qualities:
        qualities[FIRST] = qualities[TRAINED]
        qualities[TRAINED] = (qualities[FIRST] + qualities[AGAIN]) / 2
    return qualities


def _divergences(found: _Answers) -> _Columns:
    """Divergences of the rungs that measure them."""
    return {
        name: np.array([e.metrics[DIVERGENCE] for e in part])
        for name, part in found.items()
        if all(DIVERGENCE in e.metrics for e in part)
    }


def _all_correlations(
    kept: Sequence[Audited], found: _Answers, qualities: _Columns, divergences: _Columns
) -> dict[str, Any]:
    """How well every estimate, and every cost alone, ranks policies as their training does."""
    bands = np.array([audited.band for audited in kept], dtype=np.int64)
    estimates: _Columns = {}
    for name in found:
        if name not in (TRAINED, AGAIN):
            estimates[name] = qualities[name]
        if name in divergences:
            estimates[f"{name} {DIVERGENCE}"] = -divergences[name]  # the higher, the better
    for name in NULLS:
        estimates[name] = np.array([e.metrics[name] for e in found[SEARCH]])
    ranked = {
        name: _correlations(values, qualities[TRAINED], bands) for name, values in estimates.items()
    }
    if AGAIN in qualities:
        ranked[AGAIN] = _correlations(qualities[AGAIN], qualities[FIRST], bands)
    return ranked


def _policy_row(audited: Audited, found: Mapping[str, Evaluation]) -> dict[str, Any]:
    """A policy, its costs, and what each rung states of its own error."""
    search = found[SEARCH]
    return {
        "policy": audited.policy.to_dict(),
        "group": audited.group,
        "band": audited.band,
        "costs": {name: search.metrics[name] for name in NULLS},
        error_name(quality_name(search.metrics)): {
            name: evaluation.quality_se for name, evaluation in found.items()
        },
    }


def _at(columns: _Columns, row: int) -> dict[str, float]:
    return {name: float(values[row]) for name, values in columns.items()}


def _correlations(
    estimate: NDArray[np.float64], trained: NDArray[np.float64], bands: NDArray[np.int64]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Both rank correlations with the trained quality, overall and within bands."""
    inside = bands > 0
    scopes = {"overall": (estimate, trained, None),
              "within_bands": (estimate[inside], trained[inside], bands[inside])}  # fmt: skip
    return {
        scope: {
            name: _finite(asdict(correlate(measure, *values)))
            for name, measure in (
                ("kendall", kendall_of_samples),
                ("spearman", spearman_of_samples),
            )
        }
        for scope, values in scopes.items()
    }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _noise(one: Sequence[Evaluation], other: Sequence[Evaluation]) -> dict[str, float]:
    """What another draw of search and calibration images changes, beside what was stated.

    Returns:
        Standard deviation of one estimate by the differences of two, and the root mean square of
        the standard errors they state; as shares.
    """
    pairs = list(zip(one, other, strict=True))
    differences = np.array([a.quality - b.quality for a, b in pairs])
    stated = np.array([[a.quality_se, b.quality_se] for a, b in pairs])
    return {
        "measured": float(np.sqrt((differences**2).mean() / 2)),
        "stated": float(np.sqrt((stated**2).mean())),
    }
