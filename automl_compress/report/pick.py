"""Picking one network of a study by a rule."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import StudyError, nothing_found
from automl_compress.evaluate import (
    LATENCY,
    QUALITIES,
    Constraint,
    Evaluation,
    check_quality,
    minimised_metrics,
    objective_values,
    quality_name,
    references_around,
    useful_baseline,
    violations,
)
from automl_compress.ledger import StudyResult
from automl_compress.report import formats
from automl_compress.report.finalists import constraints_as_measured
from automl_compress.report.summary import Summary
from automl_compress.settings import shown
from automl_compress.space import Policy

KNEE: Final = "knee"
_POINT: Final = "point:"
_SHORTEST_KEY: Final = 4
_ALIASES: Final[Mapping[str, str]] = {"size": "size_bytes", "latency": "latency_ms"}
"""Short names of metrics."""


@dataclass(frozen=True)
class Pick:
    """A network picked from a study.

    Args:
        evaluation: its costs, and its quality: on the final test images if `tested`, otherwise
            the search's estimate. Its latency is measured if `tested`, otherwise predicted.
        number: the finalist's number in the report; None when it is none.
        tested: whether the quality is that of the final test.
        broken: constraints of the study that it breaks as measured, see `Finalist`.
    """

    evaluation: Evaluation
    number: int | None
    tested: bool
    broken: tuple[str, ...] = ()

    @property
    def policy(self) -> Policy:
        """What to build."""
        return self.evaluation.policy

    def describe(self) -> str:
        """Which one it is: `finalist 3, key ...`, and what it breaks."""
        what = "a point of the front" if self.number is None else f"finalist {self.number}"
        texts = " and ".join(f"'{text}'" for text in self.broken)
        breaks = f" (breaks {texts} as measured)" if texts else ""
        return f"{what}, key {self.policy.key}{breaks}"


def pick_network(result: StudyResult, rule: str | Policy) -> Pick:
    """The network of a study that a rule picks.

    Rules, several limits joined by commas:

    - `size<=200kB`, `macs<=0.4x` (of the baseline), `accuracy>=0.92`, any metric of the study:
      all must hold, and the best quality wins; where only the quality is limited, the smallest.
    - `knee`: the largest box between the point and the useful reference (see
      `evaluate.references_around` and `evaluate.useful_baseline`), so that no objective alone
      decides; among those that meet the limits, if there are any.
    - `point:ID`: a finalist's number in the report, or a policy's key or the start of it. In Python
      the policy itself says the same.

    Finalists come first, by their test quality. Those that break a constraint of the study as
    measured are picked by `point:ID` alone. Only when no finalist meets the limits, the other
    points of the front count, by the search's estimates.

    Raises:
        StudyError: the rule is wrong, or no network meets it and the constraints; the nearest is
            named.
    """
    if isinstance(rule, Policy):
        rule = f"{_POINT}{rule.key}"
    if not isinstance(rule, str):
        raise StudyError(
            f"a pick must be a rule such as 'knee' or a policy, but is {shown(rule)}; correct it"
        )
    summary = Summary(result)
    text = rule.strip()
    if text.startswith(_POINT):
        return _by_id(summary, text.removeprefix(_POINT))
    parts = [part.strip() for part in text.split(",")]
    limits = read_limits(rule)
    tiers = [tier for tier in (_tested(summary), _estimated(summary)) if tier]
    if not tiers:
        finished = result.manifest.status == "finished"
        need = "a pick needs a network that was found"
        raise nothing_found(need, result.folder, finished=finished)
    check_quality(limits, quality_name(result.manifest.baseline))
    _check_metrics(limits, tiers[0][0].evaluation)
    for tier in tiers:
        fitting = [p for p in tier if not _exceeded(result, p, limits).any()]
        good = [p for p in fitting if not p.broken]
        if good and KNEE in parts:
            return _knee(result, good, limits)
        if good:
            return min(good, key=lambda p: _order(p, limits))
        if fitting:
            raise _only_broken(result, rule, fitting)
    everyone = [p for tier in tiers for p in tier]
    nearest = min(everyone, key=lambda p: float(_exceeded(result, p, limits).sum()))
    raise StudyError(
        f"a pick must meet '{rule}', but no network of '{result.folder}' does; the nearest is "
        f"{nearest.describe()} with {_shown(nearest, limits)}: loosen the rule"
    )


def _only_broken(result: StudyResult, rule: str, picks: Sequence[Pick]) -> StudyError:
    """That every finalist that meets a rule breaks a constraint; the nearest is named."""
    own = constraints_as_measured(result)
    nearest = min(picks, key=lambda p: float(_exceeded(result, p, own).sum()))
    shown = _shown(nearest, [c for c in own if c.text in nearest.broken])
    return StudyError(
        f"a pick must meet the study's constraints as measured, but every finalist of "
        f"'{result.folder}' that meets '{rule}' breaks one; the nearest is {nearest.describe()} "
        f"with {shown}: loosen the rule, or take that one with 'point:{nearest.number}'"
    )


def read_limits(rule: str) -> list[Constraint]:
    """The limits of a rule of `pick_network`; none of one that names a point.

    Raises:
        StudyError: it is no rule.
    """
    text = rule.strip()
    if text.startswith(_POINT):
        return []
    parts = [part.strip() for part in text.split(",")]
    return [_limit(part, rule) for part in parts if part != KNEE]


def _limit(part: str, rule: str) -> Constraint:
    """A limit whose metric may have a short name."""
    name = re.match(r"[a-z][a-z_0-9]*", part)
    known = _ALIASES.get(name[0], name[0]) if name else ""
    try:
        return Constraint.parse(known + part[len(name[0]) :] if name else part)
    except StudyError as reason:
        raise StudyError(
            f"a pick must be 'knee', 'point:ID' or limits such as 'size<=200kB,macs<=0.5x', but "
            f"is '{rule}': {reason}"
        ) from reason


def _tested(summary: Summary) -> list[Pick]:
    """Finalists by what the final test images said."""
    picks = []
    for finalist in summary.measured:
        evaluation = replace(finalist.estimate, metrics=finalist.metrics)
        picks.append(Pick(evaluation, finalist.number, True, finalist.broken))
    return picks


def _estimated(summary: Summary) -> list[Pick]:
    """Points of the front that were not tested, by the search's estimates."""
    tested = {finalist.estimate.policy.key for finalist in summary.measured}
    numbers = {f.estimate.policy.key: f.number for f in summary.finalists}
    found = summary.result.usable_evaluations()
    keys = [point.policy.key for point in summary.front]
    return [Pick(found[key], numbers.get(key), False) for key in keys if key not in tested]


def _by_id(summary: Summary, identity: str) -> Pick:
    for chosen in (*_tested(summary), *_estimated(summary)):
        if chosen.number is not None and str(chosen.number) == identity:
            return chosen
    found = summary.result.usable_evaluations()
    keys = [key for key in found if key.startswith(identity)]
    if len(identity) < _SHORTEST_KEY or len(keys) != 1:
        why = "names no network" if not keys or len(identity) < _SHORTEST_KEY else "names several"
        raise StudyError(
            f"a pick's point:ID must be a finalist's number, 1..{len(summary.finalists)}, or the "
            f"key of a policy of '{summary.result.folder}', but '{identity}' {why}; take one from "
            "the report"
        )
    for chosen in (*_tested(summary), *_estimated(summary)):
        if chosen.policy.key == keys[0]:
            return chosen
    return Pick(found[keys[0]], None, False)


def _check_metrics(limits: Sequence[Constraint], known: Evaluation) -> None:
    for limit in limits:
        if limit.metric != "error" and limit.metric not in known.metrics:
            raise StudyError(
                f"a pick must limit what the study measured ({', '.join(known.metrics)}), but "
                f"'{limit.text}' limits '{limit.metric}'; limit another metric"
            )


def _baseline(result: StudyResult, picked: Pick) -> dict[str, float]:
    """Minimised values of the uncompressed network on the same images."""
    manifest = result.manifest
    metrics = manifest.test_baseline if picked.tested else manifest.baseline
    whole = result.latency(Policy({})) if picked.tested else None
    measured = {} if whole is None else {LATENCY: whole.metrics[LATENCY]}
    return minimised_metrics({**manifest.baseline, **metrics, **measured})


def _exceeded(
    result: StudyResult, picked: Pick, limits: Sequence[Constraint]
) -> NDArray[np.float64]:
    """(n_limits,) how far each limit is exceeded, as a share of it."""
    baseline = _baseline(result, picked)
    exceeded: NDArray[np.float64] = violations(
        [picked.evaluation], [limit.absolute(baseline) for limit in limits]
    )[0]
    return exceeded


def _knee(result: StudyResult, picks: Sequence[Pick], limits: Sequence[Constraint]) -> Pick:
    """Who dominates alone the largest share of the useful box; of equals, the best quality."""
    manifest, baseline = result.manifest, _baseline(result, picks[0])
    own = constraints_as_measured(result) if picks[0].tested else manifest.constraints
    constraints = [*own, *(limit.absolute(baseline) for limit in limits)]
    values = objective_values([p.evaluation for p in picks], manifest.objectives)
    lost = manifest.test_sparsity_loss if picks[0].tested else manifest.sparsity_loss
    start = useful_baseline(baseline, lost)
    useful = references_around(manifest.objectives, start, constraints, values)[1]
    shares = [useful.share(row[None]) for row in values]
    best = max(range(len(picks)), key=lambda row: (shares[row], picks[row].evaluation.quality))
    return picks[best]


def _order(picked: Pick, limits: Sequence[Constraint]) -> tuple[float, float, str]:
    """The best quality first, or the smallest where only the quality is limited."""
    error = picked.evaluation.minimised("error")
    size = picked.evaluation.metrics["size_bytes"]
    cheapest = all(limit.metric == "error" for limit in limits)
    return (size, error, picked.policy.key) if cheapest else (error, size, picked.policy.key)


def _shown(picked: Pick, limits: Sequence[Constraint]) -> str:
    """The values that limits speak of."""
    metrics = picked.evaluation.metrics
    values = []
    for name in dict.fromkeys(limit.metric for limit in limits):
        if name == "error":
            title = QUALITIES[quality_name(metrics)]
            values.append(f"{title} {formats.percent(picked.evaluation.quality)}")
        else:
            values.append(f"{name} {formats.cost(name, metrics[name], metrics[name])}")
    return ", ".join(values)
