"""A study's folder, read back: its evaluations, its front, what was measured of it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from automl_compress.errors import StudyError
from automl_compress.evaluate import (
    COSTS,
    DIVERGENCE,
    LATENCY,
    QUALITIES,
    UNITS,
    Evaluation,
    error_name,
    minimised_metrics,
    objective_values,
    quality_name,
    quality_of,
    violations,
)
from automl_compress.ledger.manifest import (
    LEDGER,
    MANIFEST,
    ContestantRecord,
    Manifest,
)
from automl_compress.ledger.store import Charge, Ledger
from automl_compress.ledger.whole_file import naming, write_text
from automl_compress.pareto import front_mask
from automl_compress.settings import shown
from automl_compress.space import Policy

if TYPE_CHECKING:
    import pandas as pd

TIMING_COLUMNS: Final = ("seconds", "finished")
"""Columns of the table of evaluations that may differ between two runs of one study."""


@dataclass(frozen=True)
class FrontPoint:
    """One point of a study's merged front.

    Args:
        policy: the candidate.
        objectives: minimised value by name, on the search's images.
        quality: what networks are judged by, a metric's name.
        search_quality: share in [0, 1] on the search's images.
        quality_se: standard error of it on the search's images, as a share; NaN where it is not
            known.
        test_quality: share in [0, 1] on the final test images; None unless a finalist.
        test_lost: share of quality on them that is lost against the network the user gave, negative
            where gained; None unless a finalist of a study whose network was trained towards
            sparsity.
        strategy: who found it first: its round decides, then the order of contestants.
        seed: that contestant's seed.
    """

    policy: Policy
    objectives: Mapping[str, float]
    quality: str
    search_quality: float
    quality_se: float
    test_quality: float | None
    strategy: str
    seed: int
    test_lost: float | None = None

    @property
    def test_accuracy(self) -> float | None:
        """Test quality of a classifier; None for networks that are judged otherwise."""
        return self.test_quality if self.quality == "accuracy" else None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as in `front.json`."""
        known = math.isfinite(self.quality_se)
        lost = {} if self.test_lost is None else {f"test_{self.quality}_lost": self.test_lost}
        return {
            "policy": self.policy.to_dict(),
            "objectives": dict(self.objectives),
            error_name(self.quality): self.quality_se if known else None,
            f"test_{self.quality}": self.test_quality,
            **lost,
            "strategy": self.strategy,
            "seed": self.seed,
        }


def study_folder(given: str | Path | StudyResult) -> Path:
    """A study's folder, by its path or by what the study returned.

    Raises:
        StudyError: it is given by something else.
    """
    if isinstance(given, StudyResult):
        return given.folder
    if not isinstance(given, str | Path):
        raise StudyError(
            f"a study's folder must be given by its path or a StudyResult, but is {shown(given)}; "
            "give one of these"
        )
    return Path(given)


class StudyResult:
    """A study's folder: what was asked for, evaluated and found.

    Args:
        folder: a folder that holds `run.json` and `ledger.sqlite`; of what a study returned it is
            the folder, which is read as it is now.

    Raises:
        StudyError: a file is missing or broken.
    """

    def __init__(self, folder: str | Path | StudyResult) -> None:
        self.folder = study_folder(folder)
        self.manifest = Manifest.read(self.folder)
        if not (self.folder / LEDGER).is_file():
            raise StudyError(
                f"a study's folder must hold {LEDGER}, but '{folder}' does not; "
                "give the folder a search wrote"
            )
        with Ledger(self.folder / LEDGER, reading=True) as ledger:
            everything = {c.name: ledger.charges(c.name) for c in self.manifest.contestants}
            self._spent = {name: self._units(charges) for name, charges in everything.items()}
            self._charges = {
                name: [c for c in charges if c.evaluation.estimator == self.manifest.estimator]
                for name, charges in everything.items()
            }
            self._tests = {
                e.policy.key: e for e in ledger.evaluations(self.manifest.test_estimator)
            }
            measured = self.manifest.latency.get("estimator", "")
            self._rungs = {
                rung.name: {e.policy.key: e for e in ledger.evaluations(rung.estimator)}
                for rung in self.manifest.rungs
            }
            self._latencies = {e.policy.key: e for e in ledger.evaluations(measured)}
        if self.manifest.finalists and not any(everything.values()):
            raise StudyError(
                f"the {LEDGER} of a study with finalists must hold evaluations, but that of "
                f"'{folder}' holds none; restore it from a copy"
            )

    def __repr__(self) -> str:
        manifest = self.manifest
        return f"StudyResult('{self.folder}': study '{manifest.study}', {manifest.status})"

    def _units(self, charges: Sequence[Charge]) -> int:
        """Evaluations of the budget that charges come to; only this study's estimators count."""
        costs = {rung.estimator: rung.cost for rung in self.manifest.rungs}
        costs[self.manifest.estimator] = 1
        return sum(costs.get(charge.evaluation.estimator, 0) for charge in charges)

    def spent(self, contestant: str) -> int:
        """Evaluations of its budget that a contestant was charged, those on other rungs too.

        Raises:
            KeyError: there is no such contestant.
        """
        return self._spent[contestant]

    def charges(self, contestant: str) -> list[Charge]:
        """What the search's estimator told a contestant, in the order it asked.

        Positions leave room for what it asked other rungs for.

        Raises:
            KeyError: there is no such contestant.
        """
        return self._charges[contestant]

    def test_evaluation(self, policy: Policy) -> Evaluation | None:
        """The measurement of a finalist on the final test images, or None."""
        return self._tests.get(policy.key)

    def rung(self, name: str) -> dict[str, Evaluation]:
        """What a rung of the fidelity ladder measured of those who climbed it, by policy key.

        What a strategy, an audit, or the study before an extension had measured there is not among
        it, nor is the uncompressed network; where it is not known who climbed, the former is.

        Raises:
            KeyError: there is no such rung.
        """
        found = self._rungs[name]
        rung = next(rung for rung in self.manifest.rungs if rung.name == name)
        climbers = found.keys() if rung.climbers is None else set(rung.climbers)
        return {key: e for key, e in found.items() if key in climbers and len(e.policy)}

    def usable_evaluations(self) -> dict[str, Evaluation]:
        """What the search measured without failing, by policy key, in the order it was found."""
        return {
            charge.evaluation.policy.key: charge.evaluation
            for charge, _ in self._asked
            if charge.evaluation.ok
        }

    def latency(self, policy: Policy) -> Evaluation | None:
        """The measured latency of a finalist or of the uncompressed network, or None.

        Its metrics are the median `latency_ms` and the ends of its 95 % interval,
        `latency_ms_lower` and `latency_ms_upper`, which hold within the session of all of them.
        """
        return self._latencies.get(policy.key)

    @cached_property
    def _asked(self) -> list[tuple[Charge, ContestantRecord]]:
        """All charges in the order of a serial run: by round, contestant, position."""
        order = {c.name: (i, c) for i, c in enumerate(self.manifest.contestants)}
        everything = [
            (charge, order[name][1], (charge.place.round, order[name][0], charge.place.position))
            for name, charges in self._charges.items()
            for charge in charges
        ]
        everything.sort(key=lambda item: item[2])
        return [(charge, record) for charge, record, _ in everything]

    def front(self) -> list[FrontPoint]:
        """The merged front of all contestants, smallest error first.

        Only policies that meet every constraint count.
        """
        first: dict[str, tuple[Charge, ContestantRecord]] = {}
        for charge, record in self._asked:
            if charge.evaluation.ok:
                first.setdefault(charge.evaluation.policy.key, (charge, record))
        evaluations = [charge.evaluation for charge, _ in first.values()]
        values = objective_values(evaluations, self.manifest.objectives)
        values[(violations(evaluations, self.manifest.constraints) > 0).any(axis=1)] = np.inf
        kept = [
            item
            for item, on_front in zip(first.values(), front_mask(values), strict=True)
            if on_front
        ]
        points = [self._point(charge.evaluation, record) for charge, record in kept]
        return sorted(points, key=lambda p: [p.objectives[n] for n in self.manifest.objectives])

    def _point(self, evaluation: Evaluation, record: ContestantRecord) -> FrontPoint:
        key = evaluation.policy.key
        # A finalist of before the study was extended may be none now.
        test = self._tests.get(key) if key in self.manifest.finalists else None
        quality = test.quality if test is not None and test.ok else None
        given = self.manifest.test_given
        return FrontPoint(
            policy=evaluation.policy,
            objectives={n: evaluation.minimised(n) for n in self.manifest.objectives},
            quality=quality_name(evaluation.metrics),
            search_quality=evaluation.quality,
            quality_se=evaluation.quality_se,
            test_quality=quality,
            strategy=record.strategy,
            seed=record.seed,
            test_lost=quality_of(given) - quality if given and quality is not None else None,
        )

    def front_document(self) -> dict[str, Any]:
        """The content of `front.json`."""
        names = self.manifest.objectives
        baseline = minimised_metrics(self.manifest.baseline)
        quality = quality_name(self.manifest.baseline)
        return {
            "version": 1,
            "objectives": [_objective(name, quality) for name in names],
            "baseline": {n: baseline[n] for n in names},
            **self._sparsified(quality),
            "points": [point.to_dict() for point in self.front()],
        }

    def _sparsified(self, quality: str) -> dict[str, dict[str, float]]:
        """What `front.json` says of a network before and after its sparsity training."""
        manifest = self.manifest
        if not manifest.given:
            return {}
        found = {
            "given_network": (manifest.given, manifest.test_given),
            "sparsified_network": (manifest.baseline, manifest.test_baseline),
        }
        return {
            name: {quality: quality_of(search), f"test_{quality}": quality_of(test)}
            for name, (search, test) in found.items()
        }

    def to_dataframe(self) -> pd.DataFrame:
        """One row per evaluation a contestant was told, contestants in order.

        `shared` says whether the policy had been asked for before, in the order of a serial run;
        the columns `TIMING_COLUMNS` depend on the run's timing, all others only on the study.
        """
        import pandas as pd  # here, because workers load this file and need no 40 MB more

        seen: set[str] = set()
        shared: dict[tuple[str, int], bool] = {}
        for charge, _ in self._asked:
            key = charge.evaluation.policy.key
            shared[charge.place.contestant, charge.place.position] = key in seen
            seen.add(key)
        rows = [
            _row(record, charge, shared[charge.place.contestant, charge.place.position])
            for record in self.manifest.contestants
            for charge in self._charges[record.name]
        ]
        others = [q for q in QUALITIES if q != quality_name(self.manifest.baseline)]
        unused = {*others, *map(error_name, others)}
        unused |= {DIVERGENCE, LATENCY} - set(self.manifest.baseline)
        return pd.DataFrame(rows, columns=[name for name in _COLUMNS if name not in unused])

    def save(self, folder: str | Path) -> None:
        """Copy the study and write `evaluations.parquet` and `front.json` beside it.

        Args:
            folder: made when missing; may be the study's own folder.

        Raises:
            StudyError: the folder holds another study, or cannot be made.
        """
        target = study_folder(folder)
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as reason:
            raise StudyError(
                f"a copy is written into a folder, but '{target}' cannot be made "
                f"({reason.strerror}); choose another"
            ) from reason
        if target.resolve() != self.folder.resolve():
            if (target / MANIFEST).exists():
                raise StudyError(
                    f"the folder of a copy must hold no study, but '{target}' does; "
                    "choose another folder"
                )
            with Ledger(self.folder / LEDGER, reading=True) as ledger:
                ledger.copy_to(target / LEDGER)
            shutil.copyfile(self.folder / MANIFEST, target / MANIFEST)
        table = target / "evaluations.parquet"
        with naming(table):
            partial = target / f"{table.name}.part"
            self.to_dataframe().to_parquet(partial, index=False)
            partial.replace(table)
        write_text(target / "front.json", json.dumps(self.front_document(), indent=1) + "\n")


def _objective(name: str, quality: str) -> dict[str, str]:
    """What `front.json` says of an objective; of the error, also what it is the error of."""
    of = {"of": quality} if name == "error" and quality != "accuracy" else {}
    return {"name": name, "unit": UNITS[name], **of}


_JUDGED = tuple(name for quality in QUALITIES for name in (quality, error_name(quality)))
_COLUMNS = (
    *("contestant", "strategy", "seed", "in_race", "position", "round", "policy_key", "policy"),
    *("status", "reason", *_JUDGED, DIVERGENCE, *COSTS, "images", "shared", *TIMING_COLUMNS),
)


def _row(record: ContestantRecord, charge: Charge, shared: bool) -> dict[str, Any]:
    evaluation = charge.evaluation
    return {
        "contestant": record.name,
        "strategy": record.strategy,
        "seed": record.seed,
        "in_race": record.in_race,
        "position": charge.place.position,
        "round": charge.place.round,
        "policy_key": evaluation.policy.key,
        "policy": evaluation.policy.to_json(),
        "status": evaluation.status,
        "reason": evaluation.reason,
        **{name: evaluation.metrics.get(name, np.nan) for name in QUALITIES},
        **{error_name(name): evaluation.quality_se for name in QUALITIES},
        **{name: evaluation.metrics.get(name, np.nan) for name in (DIVERGENCE, *COSTS)},
        "images": evaluation.images,
        "shared": shared,
        "seconds": evaluation.seconds,
        "finished": charge.finished,
    }
