"""Simulations of a study's ledger or of a recorded table, whatever they lack predicted."""

from __future__ import annotations

import numpy as np

from automl_compress.engine.surrogate import LEAST, Recordings, Surrogate
from automl_compress.errors import StudyError
from automl_compress.evaluate import COSTS, Evaluation, quality_name, quality_of
from automl_compress.evaluate.recorded import Simulation
from automl_compress.evaluate.table import RecordedTable
from automl_compress.ledger import StudyResult
from automl_compress.space import Indices, SearchSpace, counted


def of_table(table: RecordedTable) -> Simulation:
    """A table's own answers where it is complete, and else a surrogate's.

    Raises:
        StudyError: it is not complete, and fewer than `LEAST` of its policies worked.
    """
    if table.complete:
        return table.estimator()
    worked = ~np.isnan(table.metrics["accuracy"])
    whole = counted(table.space.cardinality)
    if (count := int(worked.sum())) < LEAST:
        raise StudyError(
            f"a table must hold each of its space's {whole} policies, or at least {LEAST} that "
            f"worked to predict the others, but '{table.path}' has {count}; complete it"
        )
    names = tuple(name for name in COSTS if name in table.metrics)
    columns = np.stack([table.metrics[name] for name in names], axis=1)
    baseline = None
    if len(largest := np.flatnonzero((table.indices == table.space.sizes - 1).all(axis=1))):
        costs = dict(zip(names, columns[largest[0]].tolist(), strict=True))
        baseline = {"error": 1.0 - float(table.metrics["accuracy"][largest[0]]), **costs}
    recordings = Recordings(
        source="table",
        space=table.space,
        judged_by="accuracy",
        indices=table.indices[worked],
        errors=1.0 - table.metrics["accuracy"][worked],
        costs=columns[worked],
        names=names,
        failed=table.indices[~worked],
        baseline=baseline,
        worst_counts=True,
    )
    notes = [f"{len(worked)} of {whole} policies are recorded", table.note]
    return Surrogate(recordings, ". ".join(filter(None, notes)))


def of_ledger(result: StudyResult) -> Surrogate:
    """A surrogate of the evaluations of a study.

    Raises:
        StudyError: fewer than `LEAST` different policies worked.
    """
    manifest = result.manifest
    space = SearchSpace.from_dict(manifest.space)
    told = _evaluations(result)
    worked = [evaluation for evaluation in told if evaluation.ok]
    if len(worked) < LEAST:
        raise StudyError(
            f"a ledger to replay must hold at least {LEAST} evaluations that worked, but that "
            f"of '{result.folder}' holds {len(worked)}; extend the study"
        )
    names = tuple(name for name in COSTS if all(name in e.metrics for e in worked))
    recordings = Recordings(
        source="ledger",
        space=space,
        judged_by=quality_name(manifest.baseline),
        indices=_encoded(space, worked),
        errors=np.array([evaluation.minimised("error") for evaluation in worked]),
        costs=np.array([[e.metrics[name] for name in names] for e in worked]),
        names=names,
        failed=_encoded(space, [evaluation for evaluation in told if not evaluation.ok]),
        baseline={
            "error": 1.0 - quality_of(manifest.baseline),
            **{name: manifest.baseline[name] for name in names},
        },
        worst_counts=False,
        sparsity_loss=manifest.sparsity_loss,
    )
    return Surrogate(recordings)


def _encoded(space: SearchSpace, evaluations: list[Evaluation]) -> Indices:
    """(n, n_genes), n may be 0."""
    rows = [space.encode(evaluation.policy) for evaluation in evaluations]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(space))


def _evaluations(result: StudyResult) -> list[Evaluation]:
    """Each policy once, contestants in order: the first that worked, where one did."""
    found: dict[str, Evaluation] = {}
    for contestant in result.manifest.contestants:
        for charge in result.charges(contestant.name):
            key, told = charge.evaluation.policy.key, charge.evaluation
            if key not in found or (told.ok and not found[key].ok):
                found[key] = told
    return list(found.values())
