"""Several studies of one problem beside each other: fronts, hypervolumes, who found what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np

from automl_compress.errors import StudyError
from automl_compress.evaluate import quality_name
from automl_compress.ledger import FrontPoint, Manifest, StudyResult
from automl_compress.pareto import Values, front_mask
from automl_compress.report import formats
from automl_compress.report.formats import MISSING
from automl_compress.report.scores import contestant_scores, minimised_baseline, reference_points
from automl_compress.report.statistics import Spread
from automl_compress.report.strategy_scores import StrategyScores, strategy_scores
from automl_compress.report.table import Column, Table

VERSION: Final = 1


@dataclass(frozen=True, eq=False)
class ComparedStudy:
    """One of the studies.

    Args:
        result: its folder, read back.
        front: its own front.
        strategies: their scores.
    """

    result: StudyResult
    front: tuple[FrontPoint, ...]
    strategies: tuple[StrategyScores, ...]

    @property
    def label(self) -> str:
        """Its folder, as given."""
        return str(self.result.folder)

    @property
    def evaluations(self) -> int:
        """What all contestants were told."""
        return sum(sum(strategy.evaluations) for strategy in self.strategies)


@dataclass(frozen=True)
class CommonPoint:
    """A point of the front of all studies.

    Args:
        point: as the first study that holds it has it, with a test quality if any study has one
            and all tested alike.
        found_by: label of each study on whose front the policy is, and how it was found there.
    """

    point: FrontPoint
    found_by: tuple[tuple[str, FrontPoint], ...]


class Comparison:
    """Studies that pose the same problem and estimate alike.

    Hypervolumes of all have the same reference points, the plain and the useful one of
    `scores.reference_points`. Final tests may differ, such as in the repair; their qualities then
    are not put in one place.

    Args:
        folders: at least two.

    Raises:
        StudyError: a folder holds no study, is given twice, or its study has another workload,
            other objectives, constraints or estimates, or alone a sparsity training before it.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        if len({folder.resolve() for folder in folders}) != len(folders) or len(folders) < 2:
            raise StudyError(
                f"at least two folders must be compared, each once, but they are "
                f"{', '.join(map(str, folders))}; give others"
            )
        results = [StudyResult(folder) for folder in folders]
        for other in results[1:]:
            _check_comparable(results[0], other)
        self.references = reference_points(*results)
        names = results[0].manifest.objectives
        self.studies = tuple(
            ComparedStudy(
                r, tuple(r.front()), strategy_scores(contestant_scores(r, self.references, names))
            )
            for r in results
        )

    @property
    def _manifest(self) -> Manifest:
        return self.studies[0].result.manifest

    @property
    def evaluations(self) -> int:
        """Evaluations that every contestant's budget allowed."""
        return min(study.result.manifest.budget for study in self.studies)

    @cached_property
    def tests(self) -> tuple[tuple[str, ...], ...]:
        """Labels of the studies whose final tests are alike, in the order of the studies."""
        groups: dict[str, list[str]] = {}
        for study in self.studies:
            groups.setdefault(study.result.manifest.test_estimator, []).append(study.label)
        return tuple(map(tuple, groups.values()))

    @cached_property
    def front(self) -> tuple[CommonPoint, ...]:
        """The front of all studies, smallest loss first."""
        held: dict[str, list[tuple[str, FrontPoint]]] = {}
        for study in self.studies:
            for point in study.front:
                held.setdefault(point.policy.key, []).append((study.label, point))
        first = [found[0][1] for found in held.values()]
        kept = [
            _common(found, len(self.tests) == 1)
            for found, on_front in zip(held.values(), front_mask(self.values(first)), strict=True)
            if on_front
        ]
        names = self._manifest.objectives
        return tuple(sorted(kept, key=lambda c: [c.point.objectives[n] for n in names]))

    def values(self, points: Sequence[FrontPoint]) -> Values:
        """(n, n_objectives) minimised values of points."""
        names = self._manifest.objectives
        rows = [[point.objectives[name] for name in names] for point in points]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))

    def held(self, study: ComparedStudy, strategy: str | None = None) -> int:
        """Points of the common front that a study, or one of its strategies, found."""
        return sum(
            any(
                label == study.label and strategy in (None, found.strategy)
                for label, found in common.found_by
            )
            for common in self.front
        )

    def document(self) -> dict[str, Any]:
        """Plain JSON of everything."""
        plain, useful = self.references
        names = self._manifest.objectives
        return {
            "version": VERSION,
            "objectives": list(names),
            "references": {
                "plain": dict(zip(names, plain.point.tolist(), strict=True)),
                "useful": dict(zip(names, useful.point.tolist(), strict=True)),
            },
            "common_evaluations": self.evaluations,
            "studies": [self._study_row(study) for study in self.studies],
            "strategies": [
                self._strategy_row(study, strategy)
                for study in self.studies
                for strategy in study.strategies
            ],
            "front": [
                {
                    **common.point.to_dict(),
                    "found_by": [
                        {
                            "folder": label,
                            "strategy": found.strategy,
                            "seed": found.seed,
                            f"test_{found.quality}": found.test_quality,
                            f"test_{found.quality}_lost": found.test_lost,
                        }
                        for label, found in common.found_by
                    ],
                }
                for common in self.front
            ],
        }

    def _study_row(self, study: ComparedStudy) -> dict[str, Any]:
        plain, useful = self.references
        values = self.values(study.front)
        return {
            "folder": study.label,
            "study": study.result.manifest.study,
            "status": study.result.manifest.status,
            "test_estimator": study.result.manifest.test_estimator,
            "evaluations": study.evaluations,
            "front": len(study.front),
            "useful": useful.share(values),
            "plain": plain.share(values),
            "on_common_front": self.held(study),
        }

    def _strategy_row(self, study: ComparedStudy, strategy: StrategyScores) -> dict[str, Any]:
        return {
            "folder": study.label,
            "strategy": strategy.label,
            "evaluations": strategy.evaluations,
            "useful_at_common": _numbers(strategy.at("useful", self.evaluations)),
            "useful": _numbers(strategy.last("useful")),
            "plain": _numbers(strategy.last("plain")),
            "on_common_front": self.held(study, strategy.strategy),
        }


def _check_comparable(one: StudyResult, other: StudyResult) -> None:
    """Refuse studies whose numbers do not mean the same."""
    alike: dict[str, list[Any]] = {
        "workload": [r.manifest.workload.get("identity") for r in (one, other)],
        "objectives": [sorted(r.manifest.objectives) for r in (one, other)],
        "constraints": [
            sorted((c.metric, f"{c.limit:.12g}") for c in r.manifest.constraints)  # 0.57x, or 57
            for r in (one, other)
        ],
        "estimates": [r.manifest.estimator for r in (one, other)],
        # What is useful counts from them, where sparsity training came before the search.
        "given networks": [bool(r.manifest.given) for r in (one, other)],
    }
    for what, (first, second) in alike.items():
        if first != second:
            raise StudyError(
                f"studies must have the same {what} to be compared, but those of '{one.folder}' "
                f"and '{other.folder}' differ; leave one out, or search again with the same"
            )


def _common(found: list[tuple[str, FrontPoint]], tested_alike: bool) -> CommonPoint:
    first = found[0][1]
    if not tested_alike:
        return CommonPoint(replace(first, test_quality=None, test_lost=None), tuple(found))
    tested = [point for _, point in found if point.test_quality is not None]
    return CommonPoint((tested or [first])[0], tuple(found))


def _numbers(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else vars(spread)


def comparison_tables(comparison: Comparison) -> tuple[Table, ...]:
    """The studies, their strategies, and the front of all."""
    return (
        _studies_table(comparison),
        _strategies_table(comparison),
        _front_table(comparison),
    )


def _studies_table(comparison: Comparison) -> Table:
    titles = ("status", "evaluations", "front", "useful", "plain", "on the common front")
    document, whole = comparison.document(), len(comparison.front)
    rows = tuple(
        (
            row["folder"],
            row["status"],
            f"{row['evaluations']:,}",
            str(row["front"]),
            f"{row['useful']:.4f}",
            f"{row['plain']:.4f}",
            f"{row['on_common_front']} of {whole}",
        )
        for row in document["studies"]
    )
    columns = (Column("study", "label"), *(Column(title) for title in titles))
    return Table("Hypervolume of the studies, with common reference points", columns, rows)


def _strategies_table(comparison: Comparison) -> Table:
    count = comparison.evaluations
    titles = ("seeds", f"useful at {count}", "useful", "plain", "on the common front")
    rows = tuple(
        (
            study.label,
            strategy.label,
            str(len(strategy.members)),
            *(
                MISSING if spread is None else str(spread)
                for spread in (
                    strategy.at("useful", count),
                    strategy.last("useful"),
                    strategy.last("plain"),
                )
            ),
            str(comparison.held(study, strategy.strategy)),
        )
        for study in comparison.studies
        for strategy in study.strategies
    )
    columns = (
        Column("study", "label"),
        Column("strategy", "label"),
        *(Column(title) for title in titles),
    )
    return Table("Strategies, mean and range over seeds", columns, rows)


def _front_table(comparison: Comparison) -> Table:
    manifest = comparison.studies[0].result.manifest
    baseline, names = minimised_baseline(manifest), manifest.objectives
    rows = tuple(
        (
            common.point.policy.key[:12],
            *(
                formats.cost_and_ratio(name, common.point.objectives[name], baseline[name])
                for name in names
            ),
            *(formats.percent(_tested(common, labels)) for labels in comparison.tests),
            "; ".join(
                f"{label}: {found.strategy}, seed {found.seed}" for label, found in common.found_by
            ),
        )
        for common in comparison.front
    )
    columns = (
        Column("policy", "label"),
        *(Column(formats.TITLES[name]) for name in names),
        *map(Column, _test_titles(comparison, f"test {quality_name(manifest.baseline)}")),
        Column("found by", "text"),
    )
    differ = "" if len(comparison.tests) == 1 else "; their final tests differ, and stand apart"
    return Table(f"The front of all studies{differ}", columns, rows)


def _test_titles(comparison: Comparison, title: str) -> list[str]:
    """A title for each kind of final test; it names the studies where there are several."""
    if len(comparison.tests) == 1:
        return [title]
    return [f"{title}, {', '.join(labels)}" for labels in comparison.tests]


def _tested(common: CommonPoint, labels: Sequence[str]) -> float | None:
    """The test quality of a point by the first of some studies that tested it."""
    tested = (found.test_quality for label, found in common.found_by if label in labels)
    return next((quality for quality in tested if quality is not None), None)
