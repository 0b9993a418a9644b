"""The proxy audit of a study: what its cheap estimates are worth, as its folder says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import StudyError
from automl_compress.ledger import AUDIT
from automl_compress.report import formats

VERSION: Final = 1
TRUSTED: Final = 0.7
"""Kendall's tau with the trained accuracy below which a report warns."""
SEARCH: Final = "search"
TRAINED: Final = "trained"
TITLES: Final[Mapping[str, str]] = {
    "learned": "learned predictor",
    "search": "search estimate",
    "redrawn": "search estimate, other images",
    "full": "all search-validation images",
    "size_bytes": "size alone",
    "macs": "MACs alone",
    "bitops": "bit operations alone",
}
"""What a reader calls each rung and each cost that ranks without an estimate."""
NULLS: Final = ("size_bytes", "macs", "bitops")
"""Costs that rank policies without any estimate."""

Values = Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class Audit:
    """An audit, as `audit.json` says.

    Args:
        policies: costs, accuracies and bands of the audited policies.
        correlations: by rung or cost, scope (`overall`, `within_bands`) and measure.
        noise: of the search's estimate, measured and stated, as shares.
        rungs: images and mean seconds by rung.
        settings: of the audit.
        failed: policies that a rung could not measure.
    """

    policies: tuple[Mapping[str, Any], ...]
    correlations: Mapping[str, Mapping[str, Mapping[str, Values]]]
    noise: Mapping[str, float]
    rungs: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    failed: int

    def correlation(self, name: str, scope: str, measure: str) -> float:
        """A correlation with the trained accuracy; NaN where nothing could be ranked."""
        value = self.correlations[name][scope][measure]["value"]
        return math.nan if value is None else value

    @property
    def trusted(self) -> bool:
        """Whether the search's estimate ranks as training does, overall and within bands."""
        scopes = ("overall", "within_bands")
        return all(self.correlation(SEARCH, scope, "kendall") >= TRUSTED for scope in scopes)

    def column(self, name: str) -> NDArray[np.float64]:
        """(n,) accuracies of a rung, or a cost."""
        kind = "costs" if name in NULLS else "accuracy"
        return np.array([policy[kind][name] for policy in self.policies], dtype=np.float64)


def read_audit(folder: Path, fingerprint: str) -> Audit | None:
    """The audit of a study; None where none was made.

    Args:
        folder: the study's.
        fingerprint: the study's.

    Raises:
        StudyError: the document is broken, newer than this program, or another study's.
    """
    path = folder / AUDIT
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, study = data["version"], data["study"]
        if version > VERSION:
            raise StudyError(
                f"the version of '{path}' must be at most {VERSION}, but is {version}; use a "
                "newer automl-compress"
            )
        found = Audit(
            policies=tuple(data["policies"]),
            correlations=data["correlations"],
            noise=data["noise"],
            rungs=data["rungs"],
            settings=data["settings"],
            failed=int(data["failed"]),
        )
        found.column(TRAINED)
    except (OSError, ValueError, KeyError, TypeError) as reason:
        if isinstance(reason, StudyError):
            raise
        raise StudyError(
            f"'{path}' must be a study's audit, but is broken; remove it and audit again"
        ) from reason
    if study != fingerprint:
        raise StudyError(
            f"'{path}' must be of this study, but is another's; move it out of the folder"
        )
    return found


def audit_verdict(audit: Audit) -> str:
    """One sentence: whether the search's estimate can be trusted, and by how much it leads."""
    overall, within = (
        audit.correlation(SEARCH, scope, "kendall") for scope in ("overall", "within_bands")
    )
    taus = f"{number_text(overall)} overall and {number_text(within)} within budget bands"
    if audit.trusted:
        return (
            f"The search's estimate ranks policies as brief training does: Kendall's tau is {taus}."
        )
    return (
        f"Warning: the search's estimate does not rank policies as brief training does. Kendall's "
        f"tau is {taus}, and should be at least {TRUSTED:g}; raise estimate.images, change "
        "estimate.repair, or add a rung that trains to the ladder."
    )


def audit_note(audit: Audit) -> str:
    """What was measured, and how."""
    failed = f" {audit.failed} more failed." if audit.failed else ""
    settings, train = audit.settings, audit.settings["train"]
    length = (
        formats.count(train["steps"], "step")
        if train["steps"]
        else formats.count(train["training"]["epochs"], "epoch")
    )
    inside = sum(policy["band"] > 0 for policy in audit.policies)
    return (
        f"{len(audit.policies):,} policies of the space were trained for {length} of batch "
        f"{train['training']['batch']} and measured on all search-validation images.{failed} "
        f"{inside} of them stand in {settings['bands']} bands, in which bytes and "
        f"multiply-accumulates differ by at most {100 * settings['tolerance']:g} % from the "
        "band's centre; within bands, only policies of one band are compared, so that size is of "
        "no help. Intervals are 95 %, by bootstrap over policies. Another draw of search and "
        "calibration images moves a search estimate by "
        f"{formats.points(audit.noise['measured'])} points (standard deviation); it states "
        f"{formats.points(audit.noise['stated'])}."
    )


def number_text(value: float | None) -> str:
    """A correlation with three decimals."""
    return formats.MISSING if value is None or math.isnan(value) else f"{value:.3f}"
