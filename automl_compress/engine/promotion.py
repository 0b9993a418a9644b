"""From the race to the finalists: who climbs the fidelity ladder, and who is measured at its end.

With noisy estimates a front is made of the lucky (the winner's curse). Every rung measures its
candidates anew, on other or more images or after training, and passes on the best of what it
measured itself, so luck on one rung is of no use on the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.engine.engine import Engine, Race, RungListener
from automl_compress.engine.rungs import RungSettings, best_fronts, places
from automl_compress.engine.statement import fingerprint_of
from automl_compress.errors import EngineError
from automl_compress.evaluate import (
    COSTS,
    LOSSES,
    Constraint,
    Evaluation,
    beyond,
    loss_of,
    minimised_metrics,
    objective_values,
    references_around,
    useful_baseline,
    violations,
)
from automl_compress.evaluate.estimator import answer
from automl_compress.evaluate.predictor import FEWEST, LearnedEstimator
from automl_compress.evaluate.ranking import kendall, spearman
from automl_compress.ledger import Ledger, Manifest, Place, RungRecord, StudyResult
from automl_compress.pareto import Reference, front_mask, spread_subset
from automl_compress.search import RungOffer
from automl_compress.space import Policy

PICKED_LOSSES: Final = (0.005, 0.01, 0.02)
"""Losses of quality at which the cheapest networks are always among the finalists."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """Policies and what one estimator says of them.

    Args:
        policies: n of them.
        names: of the objectives.
        values: (n, n_objectives) minimised, the losses as the estimator has them.
        errors: (n,) likewise; inf where the values are.
        baseline: minimised metrics of the uncompressed network there.
        constraints: of the study, absolute.
        sparsity_loss: see `Manifest.sparsity_loss`. Losses count against the network that the user
            gave, and what is useful from it.
    """

    policies: tuple[Policy, ...]
    names: tuple[str, ...]
    values: NDArray[np.float64]
    errors: NDArray[np.float64]
    baseline: Mapping[str, float]
    constraints: tuple[Constraint, ...] = ()
    sparsity_loss: float = 0.0

    def finalists(self, count: int) -> list[Policy]:
        """Points of the front worth a final measurement, at most `count`.

        First the cheapest, by every cost, of those that lose at most `PICKED_LOSSES`, which are
        what people come for; then those that together keep most of the front's useful
        hypervolume.
        """
        front = np.flatnonzero(front_mask(self.values))
        spread = front[spread_subset(self.values[front], self._useful, count)]
        chosen = list(dict.fromkeys([*self._picked(front), *spread.tolist()]))[:count]
        return [self.policies[row] for row in sorted(chosen)]

    def climbing(self, count: int) -> list[Policy]:
        """Those that the next rung measures, at most `count`: the same, then further fronts."""
        picked = self._picked(np.flatnonzero(front_mask(self.values)))
        best = best_fronts(self.values, self._useful, count)
        chosen = list(dict.fromkeys([*picked, *best.tolist()]))[:count]
        return [self.policies[row] for row in sorted(chosen)]

    @property
    def _useful(self) -> Reference:
        start = useful_baseline(self.baseline, self.sparsity_loss)
        return references_around(self.names, start, self.constraints, self.values)[1]

    def _picked(self, front: NDArray[np.int64]) -> list[int]:
        """Rows of a front that are the cheapest at each of the losses."""
        values = self.values[front]
        lost = self.errors[front] - (self.baseline["error"] - self.sparsity_loss)
        return [
            int(front[np.argmin(np.where(mild, values[:, place], np.inf))])
            for mild in (beyond("error", lost, loss) <= 0 for loss in PICKED_LOSSES)
            for place, name in enumerate(self.names)
            if name not in LOSSES and mild.any()
        ]


def candidates_of_race(result: StudyResult, by: str | None = None) -> Candidates:
    """What the race measured, smallest loss first; what breaks a constraint is unusable.

    Args:
        result: the study.
        by: the loss that candidates are judged by; None for the study's.
    """
    manifest = result.manifest
    found = list(result.usable_evaluations().values())
    names = _judged_by(manifest.objectives, by)
    values = objective_values(found, names)
    values[(violations(found, manifest.constraints) > 0).any(axis=1)] = np.inf
    errors = _errors(found, values)
    order = sorted(range(len(found)), key=lambda row: values[row].tolist())
    return Candidates(
        tuple(found[row].policy for row in order),
        names,
        values[order],
        errors[order],
        minimised_metrics(manifest.baseline),
        manifest.constraints,
        manifest.sparsity_loss,
    )


def candidates_of_rung(
    result: StudyResult,
    answers: Mapping[str, Evaluation],
    baseline: Mapping[str, float],
    by: str | None = None,
) -> Candidates:
    """What a rung measured: its losses beside the costs of the race, which are exact.

    A rung that knows no divergence, such as one that trains, judges by the error.

    Args:
        result: the study.
        answers: of the rung, by policy key.
        baseline: metrics of the uncompressed network on that rung.
        by: as for `candidates_of_race`.
    """
    before = candidates_of_race(result, by)
    rows = [row for row, policy in enumerate(before.policies) if policy.key in answers]
    found = [answers[before.policies[row].key] for row in rows]
    measured = [n for n in LOSSES if all(n in minimised_metrics(e.metrics) for e in found)]
    limits = [c for c in result.manifest.constraints if c.metric in measured]
    names = before.names if loss_of(before.names) in measured else _judged_by(before.names, "error")
    loss = loss_of(names)
    values = before.values[rows]
    values[:, names.index(loss)] = [evaluation.minimised(loss) for evaluation in found]
    values[(violations(found, limits) > 0).any(axis=1)] = np.inf
    policies = tuple(before.policies[row] for row in rows)
    there = minimised_metrics({**before.baseline, **baseline})
    errors = _errors(found, values)
    return replace(
        before, policies=policies, names=names, values=values, errors=errors, baseline=there
    )


def _judged_by(objectives: Sequence[str], loss: str | None) -> tuple[str, ...]:
    """Objectives with another loss."""
    return tuple(loss if loss is not None and n in LOSSES else n for n in objectives)


def _errors(evaluations: Sequence[Evaluation], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) errors of evaluations; inf where one of their (n, n_objectives) values is."""
    errors = objective_values(evaluations, ["error"])[:, 0]
    errors[~np.isfinite(values).all(axis=1)] = np.inf
    return errors


def climb(
    ladder: Sequence[RungSettings],
    race: Race,
    engine: Engine,
    manifest: Manifest,
    folder: Path,
    finalists: int,
    listener: RungListener,
) -> tuple[Candidates, Manifest]:
    """Let candidates climb; what rungs measured is in the ledger.

    Args:
        ladder: the rungs, from cheap to dear.
        race: the study's.
        engine: measures.
        manifest: the study's.
        folder: the study's.
        finalists: how many the last rung passes on.
        listener: hears how far each rung has come.

    Returns:
        The candidates of the last rung and the manifest with what is known of the rungs by now.

    Raises:
        EngineError: a rung measured nothing.
        InterruptedStudy: the user stopped it; finished evaluations are in the ledger.
    """
    result = StudyResult(folder)
    standing = partial(candidates_of_race, result)
    counts = places([rung.keep for rung in ladder], finalists)
    records = []
    for rung, count in zip(ladder, counts, strict=True):
        chosen = standing(by=rung.by).climbing(count)
        if rung.learned:
            record = _predicted(rung, race, result, chosen)
        else:
            record = _measured(rung, race, engine, chosen, listener)
        records.append(replace(record, climbers=tuple(policy.key for policy in chosen)))
        with Ledger(race.ledger) as ledger:
            found = ledger.find([policy.key for policy in chosen], record.estimator)
        answers = {key: evaluation for key, evaluation in found.items() if evaluation.ok}
        if chosen and not answers:
            reason = next(iter(found.values())).reason if found else "nothing was measured"
            raise EngineError(f"rung '{rung.name}' measured none of its candidates: {reason}")
        standing = partial(candidates_of_rung, result, answers, record.baseline)
    return standing(), replace(manifest, rungs=tuple(records))


def _measured(
    rung: RungSettings,
    race: Race,
    engine: Engine,
    policies: Sequence[Policy],
    listener: RungListener,
) -> RungRecord:
    """Measure policies and the uncompressed network on a rung."""
    whole = Policy({})
    engine.measure([whole, *policies], rung.name, listener)
    offer = race.problem.rungs[rung.name]
    with Ledger(race.ledger) as ledger:
        baseline = ledger.find([whole.key], offer.estimator)[whole.key]
    if not baseline.ok:
        raise EngineError(
            f"rung '{rung.name}' must measure the uncompressed network, but: {baseline.reason}"
        )
    return rung_record(rung, offer, baseline.metrics)


def _predicted(
    rung: RungSettings, race: Race, result: StudyResult, policies: Sequence[Policy]
) -> RungRecord:
    """Predict policies by what the race measured of others."""
    learned = LearnedEstimator(list(result.usable_evaluations().values()), race.problem.cost)
    with Ledger(race.ledger) as ledger:
        known = ledger.find([policy.key for policy in policies], learned.identity)
        for position, policy in enumerate(policies):
            if policy.key not in known:
                ledger.add(answer(learned, policy), Place(rung.name, position, 0))
    return rung_record(rung, RungOffer(learned.identity, 0), result.manifest.baseline)


def rung_record(
    rung: RungSettings, offer: RungOffer, baseline: Mapping[str, float] | None = None
) -> RungRecord:
    """What a manifest says of a rung."""
    return RungRecord(
        name=rung.name,
        estimator=offer.estimator,
        keep=rung.keep,
        settings=rung.to_dict(),
        cost=offer.cost,
        baseline=dict(baseline or {}),
    )


def with_ladder(
    manifest: Manifest, ladder: Sequence[RungSettings], offers: Mapping[str, RungOffer]
) -> Manifest:
    """A manifest that states a ladder, which then is part of the study's fingerprint.

    Args:
        manifest: of a study that begins.
        ladder: its rungs; a study without any stays what it was.
        offers: what strategies may ask for, by name: all rungs but learned ones.
    """
    if not ladder:
        return manifest
    none = RungOffer("", 0)
    records = tuple(rung_record(rung, offers.get(rung.name, none)) for rung in ladder)
    climbing = replace(manifest, rungs=records)
    return replace(climbing, fingerprint=fingerprint_of(climbing))


def cross_validated(result: StudyResult) -> dict[str, Any]:
    """How well evaluations are ranked by what was learned from others.

    Returns:
        Kendall's tau and Spearman's rho between measured and predicted qualities, the tau of the
        size alone, the share of measured ones within two standard errors, and the number of
        evaluations; empty where too few worked.
    """
    known = list(result.usable_evaluations().values())
    if len(known) < FEWEST:
        return {}
    costs = {e.policy.key: e for e in known}
    learned = LearnedEstimator(known, lambda policy: _costs(costs[policy.key]))
    predicted, errors = learned.predict([e.policy for e in known])
    measured = np.array([e.quality for e in known])
    sizes = np.array([e.metrics["size_bytes"] for e in known])
    noise = np.hypot(errors, [e.quality_se for e in known])
    return {
        "evaluations": len(known),
        "kendall": kendall(predicted, measured),
        "spearman": spearman(predicted, measured),
        "kendall_size": kendall(sizes, measured),
        "within_two_errors": float((np.abs(predicted - measured) <= 2 * noise).mean()),
    }


def _costs(evaluation: Evaluation) -> dict[str, float]:
    return {n: evaluation.metrics[n] for n in COSTS if n in evaluation.metrics}
