"""The proxy audit of a study: what its cheap estimates are worth, as its folder says."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import StudyError
from automl_compress.evaluate import DIVERGENCE, error_name
from automl_compress.ledger import AUDIT
from automl_compress.report import formats

VERSION: Final = 1
TRUSTED: Final = 0.7
"""Least Kendall's tau overall, and least Spearman's rho within bands, of an estimate that ranks as
training does; below it a report warns."""
DECIDING: Final[Mapping[str, str]] = {"overall": "kendall", "within_bands": "spearman"}
"""By scope, the correlation that decides whether an estimate is trusted."""
SEARCH: Final = "search"
TRAINED: Final = "trained"
AGAIN: Final = "trained again"
"""The second training of every policy, if there is one; its row says how it ranks the first."""
TITLES: Final[Mapping[str, str]] = {
    "learned": "learned predictor",
    "search": "search estimate",
    "redrawn": "search estimate, other examples",
    "full": "all search-validation examples",
    "size_bytes": "size alone",
    "macs": "MACs alone",
    "bitops": "bit operations alone",
    AGAIN: "one training, the other",
}
"""What a reader calls each rung and each cost that ranks without an estimate."""
_BY_DIVERGENCE: Final = f" {DIVERGENCE}"
"""Behind a rung's name: not its quality ranks, but how little its networks diverge."""
NULLS: Final = ("size_bytes", "macs", "bitops")
"""Costs that rank policies without any estimate."""

Values = Mapping[str, float | None]


@dataclass(frozen=True, eq=False)
class Audit:
    """An audit, as `audit.json` says.

    Args:
        policies: costs, qualities and bands of the audited policies.
        correlations: by rung or cost, scope (`overall`, `within_bands`) and measure.
        noise: of the search's estimate, measured and stated, as shares.
        rungs: images and mean seconds by rung.
        settings: of the audit.
        failed: policies that a rung could not measure.
        quality: what networks are judged by, a metric's name.
        loss: what of its estimates the search minimised, a metric's name.
    """

    policies: tuple[Mapping[str, Any], ...]
    correlations: Mapping[str, Mapping[str, Mapping[str, Values]]]
    noise: Mapping[str, float]
    rungs: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    failed: int
    quality: str
    loss: str

    def correlation(self, name: str, scope: str, measure: str) -> float:
        """A correlation with the trained quality, in [-1, 1]; NaN where nothing could be ranked.

        Args:
            name: a key of `correlations`.
            scope: `overall` or `within_bands`.
            measure: `kendall` or `spearman`.
        """
        value = self.correlations[name][scope][measure]["value"]
        return math.nan if value is None else value

    @property
    def searched(self) -> str:
        """What the search went by."""
        return f"{SEARCH}{_BY_DIVERGENCE}" if self.loss == DIVERGENCE else SEARCH

    @property
    def trusted(self) -> bool:
        """Whether what the search went by ranks as training does, overall and within bands."""
        return self._ranks(self.searched)

    @property
    def intervals(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """95 % intervals of what decides whether it is trusted, overall and within bands.

        From -1 to 1 where nothing could be ranked.
        """
        measures = self.correlations[self.searched]
        overall, within = (_interval(measures[scope][kind]) for scope, kind in DECIDING.items())
        return overall, within

    @property
    def sure(self) -> bool:
        """Whether the intervals leave no other answer to whether it is trusted."""
        if self.trusted:
            return all(low >= TRUSTED for low, _ in self.intervals)
        return any(high < TRUSTED for _, high in self.intervals)

    @property
    def trusted_others(self) -> list[str]:
        """Keys of `correlations` of other cheap estimates that rank so."""
        left_out = {self.searched, AGAIN, *NULLS}
        return [n for n in self.correlations if n not in left_out and self._ranks(n)]

    def _ranks(self, name: str) -> bool:
        return all(self.correlation(name, *scope) >= TRUSTED for scope in DECIDING.items())

    def best_null(self, scope: str, measure: str) -> float:
        """The highest correlation that a cost alone reaches; NaN where none can rank."""
        found = [self.correlation(name, scope, measure) for name in NULLS]
        return max((value for value in found if not math.isnan(value)), default=math.nan)

    @property
    def attainable(self) -> tuple[float, float] | None:
        """About the highest Spearman's rho that an estimate can reach, overall and within bands.

        None where policies were trained once. From how two trainings rank each other follows how
        their mean, the reference, ranks what it is the noisy sight of (Spearman 1904 and 1910).
        """
        if AGAIN not in self.correlations:
            return None
        overall, within = (
            _of_truth(self.correlation(AGAIN, scope, "spearman"))
            for scope in ("overall", "within_bands")
        )
        return overall, within

    @property
    def within_bands(self) -> tuple[float, float]:
        """How far trained qualities of one band scatter, and their standard error, as shares.

        Where the first is not well above the second, nothing could rank them.
        """
        bands = np.array([policy["band"] for policy in self.policies])
        trained = self.column(TRAINED)
        groups = [trained[bands == band] for band in sorted(set(bands[bands > 0].tolist()))]
        free = sum(len(group) - 1 for group in groups)
        squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
        errors = self.standard_errors(TRAINED)[bands > 0]
        if not free:
            return math.nan, math.nan
        return math.sqrt(squares / free), float(np.sqrt((errors**2).mean()))

    def column(self, name: str) -> NDArray[np.float64]:
        """(n,) qualities of a rung or, by a name of `correlations`, its divergences or a cost."""
        kind = "costs" if name in NULLS else self.quality
        if name.endswith(_BY_DIVERGENCE):
            kind, name = DIVERGENCE, rung_of(name)
        return np.array([policy[kind][name] for policy in self.policies], dtype=np.float64)

    def standard_errors(self, name: str) -> NDArray[np.float64]:
        """(n,) of the qualities of a rung, as shares."""
        kind = error_name(self.quality)
        return np.array([policy[kind][name] for policy in self.policies], dtype=np.float64)


def _of_truth(between: float) -> float:
    """Correlation of a mean of two with what both are noisy sights of, from that of the two."""
    return math.sqrt(2 * between / (1 + between)) if between > 0 else math.nan


def _interval(values: Values) -> tuple[float, float]:
    low, high = values["low"], values["high"]
    return (-1.0 if low is None else low, 1.0 if high is None else high)


def read_audit(folder: Path, fingerprints: Collection[str]) -> Audit | None:
    """The audit of a study; None where none was made.

    Args:
        folder: the study's.
        fingerprints: the study's, of which the audit must name one.

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
            quality=data.get("quality", "accuracy"),
            loss=data.get("loss", "error"),
        )
        found.column(TRAINED)
    except (OSError, ValueError, KeyError, TypeError) as reason:
        if isinstance(reason, StudyError):
            raise
        raise StudyError(
            f"'{path}' must be a study's audit, but is broken; remove it and audit again"
        ) from reason
    if study not in fingerprints:
        raise StudyError(
            f"'{path}' must be of this study, but is another's; move it out of the folder"
        )
    return found


def audit_verdict(audit: Audit) -> str:
    """Whether the search's estimate can be trusted, and what costs alone reach."""
    scopes = DECIDING.items()
    overall, within = (_told(audit.correlation(audit.searched, *scope)) for scope in scopes)
    sizes = [_told(audit.best_null(*scope)) for scope in scopes]
    found = (
        f"Kendall's tau is {overall} overall, and Spearman's rho within budget bands {within}; "
        f"the best of the costs alone reaches {sizes[0]} and {sizes[1]}."
    )
    found += _doubt(audit)
    if audit.trusted:
        return f"The search's estimate ranks policies as brief training does: {found}"
    return (
        f"Warning: the search's estimate does not rank policies as brief training does. {found} "
        f"Both should be at least {TRUSTED:g}: raise estimate.images, change "
        "estimate.repair, or add a rung that trains to the ladder."
        f"{_what_ranks(audit)}"
    )


def _told(value: float | None) -> str:
    """A correlation in a sentence."""
    text = number_text(value)
    return "unknown" if text == formats.MISSING else text


def _doubt(audit: Audit) -> str:
    """That so few policies leave the other answer possible, where they do."""
    if audit.sure:
        return ""
    overall, within = (f"{low:.2f} to {high:.2f}" for low, high in audit.intervals)
    return (
        f" {len(audit.policies):,} policies leave the other answer possible: the 95 % intervals "
        f"are {overall} and {within}; more of them (audit --policies) tell."
    )


def _what_ranks(audit: Audit) -> str:
    """Which other estimates reach in this audit what the search's misses."""
    names = audit.trusted_others
    if not names:
        return ""
    by_divergence = f"{SEARCH}{_BY_DIVERGENCE}" in names
    how = ". Objectives may name divergence in place of error" if by_divergence else ""
    return f" What reaches both here: {'; '.join(map(ranked_by, names))}{how}."


def rung_of(name: str) -> str:
    """The rung, or the cost, that a key of an audit's correlations speaks of."""
    return name.removesuffix(_BY_DIVERGENCE)


def ranked_by(name: str) -> str:
    """What a reader calls a key of an audit's correlations."""
    rung = rung_of(name)
    return TITLES.get(rung, rung) + (", by divergence" if rung != name else "")


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
        f"{train['training']['batch']} and measured on all search-validation examples.{failed} "
        f"{inside} of them stand in {settings['bands']} bands, in which bytes and "
        f"multiply-accumulates differ by at most {100 * settings['tolerance']:g} % from the "
        "band's centre; within bands, only policies of one band are compared, so that size is of "
        "no help. Intervals are 95 %, by bootstrap over policies. Another draw of search and "
        "calibration examples moves a search estimate by "
        f"{formats.points(audit.noise['measured'])} points (standard deviation); it states "
        f"{formats.points(audit.noise['stated'])}. Within bands, trained networks scatter by "
        f"{formats.points(audit.within_bands[0])} points (standard deviation) with a standard "
        f"error of {formats.points(audit.within_bands[1])}: where these are close, there is "
        "nothing to rank."
        f"{_noise_of_training(audit)}"
    )


def _noise_of_training(audit: Audit) -> str:
    """What two trainings of every policy tell, if there are two."""
    if audit.attainable is None:
        return ""
    between = (audit.correlation(AGAIN, s, "spearman") for s in ("overall", "within_bands"))
    one, other, overall, within = map(number_text, (*between, *audit.attainable))
    return (
        " Every policy was trained twice, from two seeds and on two draws of examples; estimates "
        f"rank the means. The two trainings rank each other with Spearman's rho {one} overall and "
        f"{other} within bands, so that an estimate which knew the true means would reach about "
        f"{overall} and {within}."
    )


def number_text(value: float | None) -> str:
    """A correlation with three decimals."""
    return formats.MISSING if value is None or math.isnan(value) else f"{value:.3f}"
