"""Hypervolume of every contestant, evaluation by evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import (
    Evaluation,
    leave_out,
    minimised_metrics,
    objective_values,
    references_around,
    useful_baseline,
    violations,
)
from automl_compress.ledger import ContestantRecord, Manifest, StudyResult
from automl_compress.pareto import Reference, Values


@dataclass(frozen=True, eq=False)
class ContestantScores:
    """What one contestant had reached after each of its evaluations.

    Args:
        record: the contestant.
        values: (n_evaluations, n_objectives) minimised; rows of failed evaluations, of those that
            break a constraint and of those charged for other rungs are inf.
        useful: (n_evaluations,) useful hypervolume in [0, 1], never falling.
        plain: (n_evaluations,) plain hypervolume in [0, 1], never falling.
        qualities: (n_evaluations,) shares; NaN where the values are inf.
        standard_errors: (n_evaluations,) of the qualities, as shares; NaN where not known.
    """

    record: ContestantRecord
    values: Values
    useful: NDArray[np.float64]
    plain: NDArray[np.float64]
    qualities: NDArray[np.float64]
    standard_errors: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(n_evaluations,) whether each succeeded and meets every constraint."""
        return np.asarray(np.isfinite(self.values).all(axis=1))


def minimised_baseline(manifest: Manifest) -> dict[str, float]:
    """The uncompressed network on the search's images, every objective minimised."""
    return minimised_metrics(manifest.baseline)


def useful_start(manifest: Manifest) -> dict[str, float]:
    """What useful networks are reckoned from, see `evaluate.useful_baseline`."""
    return useful_baseline(minimised_baseline(manifest), manifest.sparsity_loss)


def usable_values(
    evaluations: Iterable[Evaluation], manifest: Manifest, objectives: Sequence[str]
) -> Values:
    """(n, n_objectives) minimised values; inf for failures and for broken constraints."""
    chosen = tuple(evaluations)
    values = objective_values(chosen, objectives)
    values[(violations(chosen, manifest.constraints) > 0).any(axis=1)] = np.inf
    return values


def is_left_out(manifest: Manifest) -> bool:
    """Whether constraints on costs leave the uncompressed network out."""
    return leave_out(manifest.constraints, minimised_baseline(manifest))


def reference_points(*results: StudyResult) -> tuple[Reference, Reference]:
    """References of the plain and the useful hypervolume, common to studies of one problem.

    They depend on the network that the user gave and, where constraints on costs leave the
    uncompressed one out, on what any contestant found (`evaluate.references_around`).

    Args:
        results: one or more. Their objectives are in the first one's order.
    """
    manifest = results[0].manifest
    found = [
        usable_values(r.usable_evaluations().values(), r.manifest, manifest.objectives)
        for r in results
    ]
    return references_around(
        manifest.objectives,
        useful_start(manifest),
        manifest.constraints,
        np.concatenate(found),
    )


def contestant_scores(
    result: StudyResult,
    points: tuple[Reference, Reference] | None = None,
    objectives: Sequence[str] = (),
) -> tuple[ContestantScores, ...]:
    """Scores of every contestant of a study, in the manifest's order.

    Args:
        result: the study.
        points: references of both hypervolumes; the study's own when not given.
        objectives: the study's, in the order of `points`; in its own when not given.
    """
    chosen = points or reference_points(result)
    names = objectives or result.manifest.objectives
    return tuple(_scores(result, record, chosen, names) for record in result.manifest.contestants)


def _scores(
    result: StudyResult,
    record: ContestantRecord,
    points: tuple[Reference, Reference],
    objectives: Sequence[str],
) -> ContestantScores:
    plain, useful = points
    charges = result.charges(record.name)
    told = [charge.evaluation for charge in charges]
    places = [charge.place.position for charge in charges]
    values = np.full((result.spent(record.name), len(objectives)), np.inf)
    values[places] = usable_values(told, result.manifest, objectives)
    qualities, errors = np.full((2, len(values)), np.nan)
    qualities[places] = [evaluation.quality if evaluation.ok else np.nan for evaluation in told]
    qualities[~np.isfinite(values).all(axis=1)] = np.nan
    errors[places] = [evaluation.quality_se for evaluation in told]
    curves = useful.progress(values), plain.progress(values)
    return ContestantScores(record, values, *curves, qualities, errors)
