"""What a study's `run.json` says of it, and the names of the other files in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from automl_compress.errors import StudyError
from automl_compress.evaluate import Constraint, quality_of
from automl_compress.ledger.whole_file import write_text

MANIFEST_VERSION: Final = 1
MANIFEST: Final = "run.json"
LEDGER: Final = "ledger.sqlite"
AUDIT: Final = "audit.json"
"""What an audit of the study's estimates found."""
RECOVERED: Final = "recovered"
"""Folder of the networks that were trained after the search, each below its policy's key."""


@dataclass(frozen=True)
class ContestantRecord:
    """One contestant of a study.

    Args:
        name: unique in the study, `strategy-seed`.
        strategy: the strategy's registered name, or the user's callable.
        seed: its seed.
        in_race: False for the uniform line that is drawn for reference only.
    """

    name: str
    strategy: str
    seed: int
    in_race: bool = True


@dataclass(frozen=True)
class RungRecord:
    """One rung of a study's fidelity ladder, from cheap to dear.

    Args:
        name: of the rung.
        estimator: identity of its estimator; empty while it is not known.
        keep: share of what it measured that went on.
        settings: what it measures by.
        cost: evaluations of a contestant's budget that one of its evaluations is charged; 0 where
            strategies cannot ask for it.
        baseline: metrics of the uncompressed network there; empty where it has none.
        climbers: keys of the policies that came to it when the race was over; None until then, and
            in older studies.
    """

    name: str
    estimator: str
    keep: float
    settings: Mapping[str, Any]
    cost: int = 0
    baseline: Mapping[str, float] = field(default_factory=dict)
    climbers: tuple[str, ...] | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RungRecord:
        """What `run.json` says."""
        climbers = data.get("climbers")
        return cls(**{**data, "climbers": None if climbers is None else tuple(climbers)})


@dataclass(frozen=True)
class Manifest:
    """What `run.json` says of a study.

    Args:
        study: its name.
        status: `running`, `interrupted` or `finished`.
        config: the sweep file's settings as given, with what `auto` came to.
        fingerprint: hash of everything that decides the study's evaluations.
        objectives: names of the minimised objectives.
        constraints: absolute constraints.
        budget: evaluations each contestant is charged.
        estimator: identity of the search's estimator.
        test_estimator: identity of the estimator on the final test images.
        baseline: metrics of the uncompressed network on the search's images.
        test_baseline: the same on the final test images.
        given: quality of the network the user gave on the search's images, where sparsity training
            made the uncompressed network of it; empty where the two are one, and in older studies.
        test_given: the same on the final test images.
        contestants: everyone who asks for evaluations.
        finalists: keys of the policies measured on the final test images.
        space: the search space, `SearchSpace.to_dict()`.
        coverage: what of the network the space covers.
        workload: name, split sizes and content hashes.
        environment: versions, hardware, git commit, time.
        latency: how latencies were measured, and by what they were predicted; empty where the
            study has none.
        rungs: what candidates climbed between the race and the final test.
        predictor: how well the learned predictor ranks, see `engine.promotion`; empty where
            nobody asked.
        networks: hashes of what decides the networks that the search and the final test measure;
            empty in older studies.
        plans: by strategy, what it set out to do, one sentence each; who says nothing is left out.
        extended: fingerprints of the study before it was extended, the first one first.
    """

    study: str
    status: str
    config: Mapping[str, Any]
    fingerprint: str
    objectives: tuple[str, ...]
    constraints: tuple[Constraint, ...]
    budget: int
    estimator: str
    test_estimator: str
    baseline: Mapping[str, float]
    test_baseline: Mapping[str, float]
    contestants: tuple[ContestantRecord, ...]
    finalists: tuple[str, ...] = ()
    space: Mapping[str, Any] = field(default_factory=dict)
    coverage: Mapping[str, Any] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    latency: Mapping[str, Any] = field(default_factory=dict)
    rungs: tuple[RungRecord, ...] = ()
    predictor: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = ()
    extended: tuple[str, ...] = ()
    plans: Mapping[str, Sequence[str]] = field(default_factory=dict)
    given: Mapping[str, float] = field(default_factory=dict)
    test_given: Mapping[str, float] = field(default_factory=dict)
    version: int = MANIFEST_VERSION

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """What names this study: what was made of it before it was extended is still its own."""
        return (self.fingerprint, *self.extended)

    @property
    def sparsity_loss(self) -> float:
        """Quality that sparsity training lost on the search's images; 0 where there was none."""
        return quality_of(self.given) - quality_of(self.baseline) if self.given else 0.0

    @property
    def test_sparsity_loss(self) -> float:
        """Quality that sparsity training lost on the final test images; 0 where not measured."""
        known = self.test_given and self.test_baseline
        return quality_of(self.test_given) - quality_of(self.test_baseline) if known else 0.0

    def to_json(self) -> str:
        """The content of `run.json`."""
        return json.dumps(asdict(self), indent=1, default=str) + "\n"

    def write(self, folder: Path) -> None:
        """Write `run.json`, whole or not at all."""
        write_text(folder / MANIFEST, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `run.json`.

        Raises:
            StudyError: it is missing, broken or of a newer version.
        """
        path = folder / MANIFEST
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            version = data["version"]
            if version > MANIFEST_VERSION:
                raise StudyError(
                    f"the version of '{path}' must be at most {MANIFEST_VERSION}, but is "
                    f"{version}; use a newer automl-compress"
                )
            data["constraints"] = tuple(Constraint(**c) for c in data["constraints"])
            data["contestants"] = tuple(ContestantRecord(**c) for c in data["contestants"])
            data["objectives"] = tuple(data["objectives"])
            data["finalists"] = tuple(data["finalists"])
            data["networks"] = tuple(data.get("networks", ()))
            data["extended"] = tuple(data.get("extended", ()))
            data["rungs"] = tuple(RungRecord.from_dict(rung) for rung in data.get("rungs", ()))
            return cls(**data)
        except OSError as reason:
            raise StudyError(
                f"a study's folder must hold {MANIFEST}, but '{folder}' does not; "
                "give the folder a search wrote"
            ) from reason
        except (ValueError, KeyError, TypeError) as reason:
            if isinstance(reason, StudyError):
                raise
            raise StudyError(
                f"'{path}' must be a study's manifest, but is broken; restore it from a copy"
            ) from reason
