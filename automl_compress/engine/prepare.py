"""A study made ready: its parts loaded, checked and measured for a baseline, nothing written."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
from automl_compress.engine.config import StudyConfig
from automl_compress.engine.contestant import Contestant
from automl_compress.engine.idle import without_idle_choices
from automl_compress.engine.latency import (
    check_machine,
    latency_record,
    predicting,
    recorded_model,
)
from automl_compress.engine.promotion import with_ladder
from automl_compress.engine.restore import load_estimators, torch_threads
from automl_compress.engine.rungs import build_rung, rung_cost
from automl_compress.engine.start import check_engine
from automl_compress.engine.statement import state_manifest
from automl_compress.errors import WorkloadError
from automl_compress.evaluate import (
    LOSSES,
    Constraint,
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
from automl_compress.ledger import Manifest
from automl_compress.recover import training_heads
from automl_compress.search import Problem, RungOffer, find_strategy
from automl_compress.space import Policy, SearchSpace
from automl_compress.workload import BoxTask, Workload

_logger = logging.getLogger(__name__)

SENSITIVE: Final = "sensitive"
"""Strategy that is told how many feature maps of each layer have a low rank."""

Costs = Callable[[Policy], Mapping[str, float]]


@dataclass(frozen=True)
class Prepared:
    """A study whose parts are loaded, checked and measured for a baseline.

    Args:
        manifest: what the study says of itself, before its race.
        problem: what strategies are given.
        search: the estimator of the race.
        test: that of the finalists.
        compressor: builds its networks.
        example_input: (1, ...) what they take.
        rungs: estimators of the ladder by name, but for learned ones.
    """

    manifest: Manifest
    problem: Problem
    search: Estimator
    test: Estimator
    compressor: Compressor
    example_input: Tensor
    rungs: Mapping[str, Estimator]


@dataclass(frozen=True)
class _Measured:
    """Estimators of a study, and what they say of the uncompressed network.

    Args:
        workload: what is compressed.
        networks: the estimators of search and test that build networks.
        estimators: the same, with latencies where the study has them.
        cost: exact costs of a policy by name; with the predicted latency likewise.
        derived: the search space, all choices in it.
        latency: what the manifest says of latencies; empty where there are none.
        baselines: the uncompressed network in the search and in the test.
        given: quality of what the user gave by metric, in both; empty where it is the baseline.
    """

    workload: Workload
    networks: tuple[NetworkEstimator, NetworkEstimator]
    estimators: tuple[Estimator, Estimator]
    cost: Costs
    derived: DerivedSpace
    latency: dict[str, Any]
    baselines: tuple[Evaluation, Evaluation]
    given: tuple[dict[str, float], dict[str, float]]

    @property
    def compressor(self) -> Compressor:
        """Of the network."""
        return self.networks[0].compressor


def prepare_study(
    config: StudyConfig, given: nn.Module | None = None, before: Manifest | None = None
) -> Prepared:
    """Load, trace and measure everything before anything is written.

    Args:
        config: the study's settings.
        given: what the user gave, where the workload's network was trained from it.
        before: of the study that goes on. What it says of latencies and of the network the user
            gave still holds.

    Raises:
        InputError: a setting, the workload or a strategy is wrong.
    """
    check_engine(config.engine)
    for name in config.strategies:
        find_strategy(name)
    with torch_threads(config.engine.threads):
        found = _measured(config, given, before)
    workload, compressor = found.workload, found.compressor
    _warn_of_chance(found.baselines[0], workload)
    _warn_of_heads(workload)
    derived = _without_idle_choices(found.derived, found.cost, config)
    minimised = minimised_metrics(found.baselines[0].metrics)
    constraints = _checked_constraints(config, minimised, found.cost(derived.space.smallest))
    built = [rung for rung in config.ladder if not rung.learned]
    rungs = {rung.name: build_rung(rung, workload, found.networks[0]) for rung in built}
    offers = {
        rung.name: RungOffer(
            rungs[rung.name].identity, rung_cost(rung, workload, found.networks[0])
        )
        for rung in built
    }
    manifest = with_ladder(_manifest(config, found, derived, constraints), config.ladder, offers)
    problem = Problem(
        space=derived.space,
        objectives=config.objectives,
        baseline=minimised,
        cost=found.cost,
        constraints=constraints,
        features=gene_features(derived.space, compressor.structure, compressor.cost),
        sensitivity=_sensitivity(config, workload, derived.space, compressor),
        rungs=offers,
        useful_loss=useful_loss(loss_of(config.objectives)),
        sparsity_loss=manifest.sparsity_loss,
    )
    manifest = replace(manifest, plans=_plans(manifest, problem))
    return Prepared(
        manifest, problem, *found.estimators, compressor, workload.example_input(), rungs
    )


def _plans(manifest: Manifest, problem: Problem) -> dict[str, list[str]]:
    """What each strategy sets out to do; mistakes in it are told before anything is written."""
    plans: dict[str, list[str]] = {}
    for record in manifest.contestants:
        if record.strategy not in plans:
            plans[record.strategy] = Contestant(record, problem, manifest.budget).plan()
    return {name: plan for name, plan in plans.items() if plan}


def _measured(config: StudyConfig, given: nn.Module | None, before: Manifest | None) -> _Measured:
    """Load the estimators, derive the space and measure the uncompressed network."""
    workload, network, test_network = load_estimators(config)
    check_quality(config.constraints, workload.task.quality)
    compressor = network.compressor
    derived = space_of_structure(compressor.model, compressor.structure, config.space)
    search: Estimator = network
    test: Estimator = test_network
    cost: Costs = compressor.cost
    latency: dict[str, Any] = {}
    if config.latency is not None:
        recorded = None if before is None else before.latency
        model = _latency_model(config, compressor, derived, workload, recorded)
        search, test = WithLatency(search, model), WithLatency(test, model)
        cost = CostsWithLatency(cost, model)
        latency = latency_record(config.latency, model, search.identity)
    return _Measured(
        workload,
        (network, test_network),
        (search, test),
        cost,
        derived,
        latency,
        (_baseline(search), _baseline(test)),
        (_given(given, network), _given(given, test_network))
        if before is None
        else (dict(before.given), dict(before.test_given)),
    )


def _latency_model(
    config: StudyConfig,
    compressor: Compressor,
    derived: DerivedSpace,
    workload: Workload,
    recorded: Mapping[str, Any] | None,
) -> LatencyModel:
    """What predicts latencies: the one a study began with, or one made now."""
    settings = config.latency
    assert settings is not None
    if recorded:
        model = recorded_model(recorded, compressor)
        check_machine(model, settings)
        return model
    return predicting(settings, compressor, derived.space, workload.example_input())


def _checked_constraints(
    config: StudyConfig, baseline: Mapping[str, float], least: Mapping[str, float]
) -> tuple[Constraint, ...]:
    """A study's constraints in their metrics' units, once it is seen that they can be met.

    Args:
        config: the study's.
        baseline: minimised metrics of the uncompressed network.
        least: costs of the most compressed one.
    """
    named = {
        "objectives": config.objectives,
        "constraints": [constraint.metric for constraint in config.constraints],
        "ladder": [rung.by for rung in config.ladder if rung.by is not None],
    }
    check_measured(named, baseline)
    constraints = tuple(c.absolute(baseline) for c in config.constraints)
    check_met_by_least(constraints, least)
    return constraints


def _manifest(
    config: StudyConfig,
    found: _Measured,
    derived: DerivedSpace,
    constraints: tuple[Constraint, ...],
) -> Manifest:
    """What the study says of itself, but for its ladder."""
    stated = state_manifest(
        config, found.workload, derived, constraints, found.estimators, found.baselines
    )
    search, test = found.networks
    return replace(
        stated,
        latency=found.latency,
        networks=(search.networks, test.networks),
        given=found.given[0],
        test_given=found.given[1],
    )


def _without_idle_choices(derived: DerivedSpace, cost: Costs, config: StudyConfig) -> DerivedSpace:
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
    """Say so where the uncompressed network knows nothing but the commonest class, or no object."""
    if isinstance(workload.task, BoxTask):
        if not baseline.quality:
            _logger.warning(
                "the uncompressed network finds no object of the search images; check weights, "
                "data.mean, data.std and the order of data.classes"
            )
        return
    counts = np.bincount(workload.splits.validation.labels)
    commonest = float(counts.max() / counts.sum())
    noise = math.sqrt(commonest * (1.0 - commonest) / max(1, baseline.images))
    if baseline.quality <= commonest + 2.0 * noise:
        _logger.warning(
            "the uncompressed network is right on %.1f %% of the search examples, and to name the "
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
