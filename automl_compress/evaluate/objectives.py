"""Objectives and constraints: what a study minimises and what it insists on.

Everything is minimised inside the project. `accuracy >= 0.9` becomes `error <= 0.1` here, and
nowhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import StudyError
from automl_compress.evaluate.evaluation import (
    COSTS,
    DIVERGENCE,
    LATENCY,
    LOSSES,
    QUALITIES,
    UNITS,
    Evaluation,
    quality_of,
)
from automl_compress.pareto import Reference

OBJECTIVES: Final = (*LOSSES, *COSTS)
USEFUL_LOSS: Final = 0.10
"""A network that loses more quality than this against the baseline is of no use to anyone."""
_USEFUL_DIVERGENCE: Final = 0.5
"""ResNet-20's networks that lose `USEFUL_LOSS` diverge by 0.49 (results/audit_resnet20)."""
_ROUNDING: Final = 1e-9
"""Losses that differ by less are the same; of any number of images, one counts for more."""
_SHARE_ROUNDING: Final = 1e-12
"""Costs that differ by less of their limit are the same: 0.57 times 100 is a little less than 57.
Of a cost below 1e12 that is less than one."""
_Values = TypeVar("_Values", float, NDArray[np.float64])

_CONSTRAINT = re.compile(
    r"^\s*(?P<metric>[a-z][a-z_0-9]*)\s*(?P<sign><=|>=)\s*(?P<number>[0-9.]+(?:[eE][+-]?[0-9]+)?)"
    r"\s*(?P<unit>[A-Za-z%]*)\s*$"
)
_COUNTS: Final[Mapping[str, float]] = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9}
_BYTES: Final[Mapping[str, float]] = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}


@dataclass(frozen=True)
class Constraint:
    """An upper bound on a minimised metric.

    Args:
        metric: an objective's name.
        limit: the largest value allowed, in the metric's unit, or as a share of the baseline.
        relative: whether `limit` is a share of the baseline (`0.25x`).
        text: as the user wrote it.
    """

    metric: str
    limit: float
    relative: bool = False
    text: str = ""

    @classmethod
    def parse(cls, text: str) -> Constraint:
        """Read `size_bytes <= 200 kB`, `macs <= 0.5x` or `accuracy >= 0.9`.

        Raises:
            StudyError: the text has another form, or bounds a metric from the wrong side.
        """
        found = _CONSTRAINT.match(text)
        if not found:
            raise StudyError(
                f"a constraint must be like 'size_bytes <= 200 kB', 'macs <= 0.5x' or "
                f"'error <= 0.1', but is '{text}'; correct it"
            )
        metric, sign, unit = found["metric"], found["sign"], found["unit"]
        if metric not in UNITS:
            raise StudyError(
                f"a constraint must bound one of {', '.join(UNITS)}, but '{text}' bounds "
                f"'{metric}'; correct it"
            )
        if (sign == ">=") != (metric in QUALITIES):
            right = ">=" if metric in QUALITIES else "<="
            raise StudyError(f"'{metric}' must be bounded by {right}, but is '{text}'; turn it")
        number = _number(found["number"], text)
        share = metric in QUALITIES or metric in LOSSES
        if unit == "x" and not share:
            return cls(metric, number, True, text)
        if share and (unit or number > 1):
            raise StudyError(
                f"'{metric}' must be bounded by a share in [0, 1], but is '{text}'; write a share "
                "such as 0.98"
            )
        sizes = _BYTES if UNITS[metric] == "byte" else {}
        factors = {**_COUNTS, **sizes, UNITS[metric]: 1.0}
        if unit not in factors:
            usual = "x, kB, MB, k or M" if sizes else "x, k or M"
            raise StudyError(f"the unit '{unit}' does not fit '{text}'; use {usual}")
        if metric in QUALITIES:
            return cls("error", 1.0 - number, False, text)
        return cls(metric, number * factors[unit], False, text)

    def absolute(self, baseline: Mapping[str, float]) -> Constraint:
        """The same constraint with its limit in the metric's unit."""
        if not self.relative:
            return self
        return Constraint(self.metric, self.limit * baseline[self.metric], False, self.text)


def check_quality(constraints: Iterable[Constraint], quality: str) -> None:
    """Check that constraints on how good networks are speak of the metric they are judged by.

    Args:
        constraints: as `Constraint.parse` gives them.
        quality: the metric of the workload's task.

    Raises:
        StudyError: one names another.
    """
    for constraint in constraints:
        found = _CONSTRAINT.match(constraint.text)
        if found and found["metric"] in QUALITIES and found["metric"] != quality:
            raise StudyError(
                f"networks here are judged by {quality}, but '{constraint.text}' bounds "
                f"'{found['metric']}'; correct it"
            )


def _number(text: str, whole: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise StudyError(f"a constraint's bound must be a number, but is '{whole}'; correct it")
    return number


def check_objectives(names: Iterable[str]) -> tuple[str, ...]:
    """Check the names of a study's objectives.

    Raises:
        StudyError: one is unknown or repeated, or they are not one of `LOSSES` and costs.
    """
    chosen = tuple(names)
    for name in chosen:
        if name not in OBJECTIVES:
            hint = f"; {name} is stated as 'error' = 1 - {name}" if name in QUALITIES else ""
            raise StudyError(
                f"objectives must be among {', '.join(OBJECTIVES)}, but hold '{name}'{hint}"
            )
    if len(set(chosen)) != len(chosen):
        raise StudyError(f"objectives must differ, but are {', '.join(chosen)}; remove repeats")
    losses = [name for name in LOSSES if name in chosen]
    if len(losses) != 1 or len(chosen) < 2:
        raise StudyError(
            f"objectives must hold 'error' or 'divergence' and a cost, but are "
            f"{', '.join(chosen) or 'none'}; "
            + ("leave one out" if len(losses) > 1 else "add what is missing")
        )
    return chosen


def minimised_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """What can be minimised of an evaluation's metrics, the error in place of the quality."""
    known = {**metrics, "error": 1.0 - quality_of(metrics)}
    return {name: known[name] for name in OBJECTIVES if name in known}


def loss_of(objectives: Iterable[str]) -> str:
    """The one of `LOSSES` among a study's objectives."""
    return next(name for name in objectives if name in LOSSES)


def useful_loss(loss: str) -> float:
    """How much more of a loss than the baseline a network may have to be of use."""
    return _USEFUL_DIVERGENCE if loss == DIVERGENCE else USEFUL_LOSS


def check_measured(named: Mapping[str, Iterable[str]], baseline: Mapping[str, float]) -> None:
    """Check that what a study goes by is what its networks are measured by.

    Args:
        named: metrics by the key of the settings that names them.
        baseline: minimised metrics of the uncompressed network.

    Raises:
        StudyError: one is missing there.
    """
    for key, names in named.items():
        if missing := sorted(set(names) - set(baseline)):
            raise StudyError(
                f"'{key}' must go by what is measured here, {', '.join(baseline)}, but goes by "
                f"'{missing[0]}'; choose among them"
            )


def check_met_by_least(constraints: Iterable[Constraint], least: Mapping[str, float]) -> None:
    """Check that the most compressed network meets the constraints on what it has least of.

    Args:
        constraints: absolute ones. Those on losses and on the latency are not judged.
        least: costs of the most compressed network of the space.

    Raises:
        StudyError: it breaks one, so that no network meets it.
    """
    for c in constraints:
        judged = c.metric in COSTS and c.metric != LATENCY
        if judged and beyond(c.metric, least[c.metric], c.limit) > 0:
            raise StudyError(
                f"a constraint must be met by some network, but '{c.text}' allows {c.limit:,.10g} "
                f"and the most compressed one of the space has {c.metric} of "
                f"{least[c.metric]:,.10g}; loosen it, or let the space compress more"
            )


def objective_values(
    evaluations: Iterable[Evaluation], objectives: Iterable[str]
) -> NDArray[np.float64]:
    """(n, n_objectives) minimised values; rows of failed evaluations are inf."""
    names = tuple(objectives)
    rows = [[evaluation.minimised(name) for name in names] for evaluation in evaluations]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def beyond(metric: str, values: _Values, limit: float) -> _Values:
    """How far values of a minimised metric are above a limit, in its unit; negative below it.

    Every comparison with a limit asks this. Losses count as on it when nearer than `_ROUNDING`
    (1 - 0.98 is a little more than 0.02), costs when nearer than `_SHARE_ROUNDING` of it: a
    relative limit is a product, so that 57 may be above `0.57x` of 100.
    """
    above = values - limit
    return above * (abs(above) > (_ROUNDING if metric in LOSSES else _SHARE_ROUNDING * limit))


def violations(
    evaluations: Iterable[Evaluation], constraints: Iterable[Constraint]
) -> NDArray[np.float64]:
    """(n, n_constraints) how far each limit is exceeded, as a share of it; 0 where it holds.

    Args:
        evaluations: n evaluations; failed ones exceed by inf.
        constraints: absolute constraints.
    """
    limits = tuple(constraints)
    rows = [
        [
            max(0.0, beyond(c.metric, e.minimised(c.metric), c.limit)) / max(c.limit, 1e-12)
            for c in limits
        ]
        for e in evaluations
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(limits))


def useful_baseline(baseline: Mapping[str, float], sparsity_loss: float) -> dict[str, float]:
    """What useful networks are reckoned from: the baseline, but the error of what the user gave.

    Where sparsity training alone lost more than `USEFUL_LOSS`, which only a training after the
    search can make good, it is the baseline itself: else no network would be of use.

    Args:
        baseline: minimised value of every metric for the network that policies compress.
        sparsity_loss: error that sparsity training added before the search; negative when it took
            some away, 0 where there was none.
    """
    lost = sparsity_loss if beyond("error", sparsity_loss, USEFUL_LOSS) <= 0 else 0.0
    return {**baseline, "error": baseline["error"] - lost}


def references(
    objectives: Iterable[str], baseline: Mapping[str, float], tolerated: float | None = None
) -> tuple[Reference, Reference]:
    """Reference points of the plain and the useful hypervolume.

    Plain: a loss of 1 and the baseline's costs. Useful: the baseline's loss plus `useful_loss`, so
    that ruined networks count nothing, and the baseline's costs.

    Args:
        objectives: names, in the order of the columns that will be scored.
        baseline: minimised value of every objective for the uncompressed network.
        tolerated: how much more loss is useful; the loss's own `useful_loss` when not given.
    """
    names = tuple(objectives)
    more = {n: useful_loss(n) if tolerated is None else tolerated for n in names if n in LOSSES}
    plain = [1.0 if name in LOSSES else baseline[name] for name in names]
    useful = [min(1.0, baseline[n] + more[n]) if n in more else baseline[n] for n in names]
    return Reference(np.array(plain)), Reference(np.array(useful))


def leave_out(constraints: Iterable[Constraint], baseline: Mapping[str, float]) -> bool:
    """Whether constraints on costs leave the uncompressed network out.

    Args:
        constraints: absolute ones.
        baseline: minimised value of every metric for the uncompressed network.
    """
    return any(
        c.metric not in LOSSES and beyond(c.metric, baseline.get(c.metric, 0.0), c.limit) > 0
        for c in constraints
    )


def references_around(
    objectives: Iterable[str],
    baseline: Mapping[str, float],
    constraints: Iterable[Constraint],
    values: NDArray[np.float64],
) -> tuple[Reference, Reference]:
    """`references` of what is known, where constraints leave the uncompressed network out.

    What is useful begins there at the least loss that is known to meet them: often nothing comes
    near the uncompressed network, and all useful hypervolumes would be 0. Everywhere else the
    references are those of `references`.

    Args:
        objectives: names, in the order of the columns.
        baseline: minimised value of every metric for the uncompressed network.
        constraints: absolute ones.
        values: (n, n_objectives) minimised; inf where a constraint is broken.
    """
    names = tuple(objectives)
    loss = loss_of(names)
    least = baseline[loss]
    if leave_out(constraints, baseline):
        least = max(least, min(1.0, float(values[:, names.index(loss)].min(initial=np.inf))))
    more = min(1.0, least + useful_loss(loss)) - baseline[loss]
    return references(names, baseline, more)
