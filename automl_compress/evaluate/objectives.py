"""Objectives and constraints: what a study minimises and what it insists on.

Everything is minimised inside the project. `accuracy >= 0.9` becomes `error <= 0.1` here, and
nowhere else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import StudyError
from automl_compress.evaluate.evaluation import COSTS, QUALITIES, UNITS, Evaluation
from automl_compress.pareto import Reference

OBJECTIVES: Final = ("error", *COSTS)
USEFUL_LOSS: Final = 0.10
"""A network that loses more quality than this against the baseline is of no use to anyone."""

_CONSTRAINT = re.compile(
    r"^\s*(?P<metric>[a-z][a-z_0-9]*)\s*(?P<sign><=|>=)\s*(?P<number>[0-9.]+(?:e[+-]?[0-9]+)?)"
    r"\s*(?P<unit>[A-Za-z%]*)\s*$"
)
_FACTORS: Final[Mapping[str, float]] = {
    "": 1.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9,
}  # fmt: skip


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
        share = metric in QUALITIES or metric == "error"
        if unit == "x" and not share:
            return cls(metric, number, True, text)
        factors = {**_FACTORS, UNITS[metric]: 1.0}
        if unit not in factors or (share and unit):
            raise StudyError(f"the unit '{unit}' does not fit '{text}'; use x, kB, MB, k or M")
        if share and number > 1:
            raise StudyError(f"'{metric}' must be bounded by a share in [0, 1], but is '{text}'")
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
        StudyError: one is unknown or repeated, `error` is missing, or no cost is among them.
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
    if "error" not in chosen or len(chosen) < 2:
        raise StudyError(
            f"objectives must hold 'error' and a cost, but are {', '.join(chosen) or 'none'}; "
            "add what is missing"
        )
    return chosen


def objective_values(
    evaluations: Iterable[Evaluation], objectives: Iterable[str]
) -> NDArray[np.float64]:
    """(n, n_objectives) minimised values; rows of failed evaluations are inf."""
    names = tuple(objectives)
    rows = [[evaluation.minimised(name) for name in names] for evaluation in evaluations]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


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
        [max(0.0, (e.minimised(c.metric) - c.limit) / max(c.limit, 1e-12)) for c in limits]
        for e in evaluations
    ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(limits))


def references(
    objectives: Iterable[str], baseline: Mapping[str, float]
) -> tuple[Reference, Reference]:
    """Reference points of the plain and the useful hypervolume.

    Plain: error 1 and the baseline's costs. Useful: the baseline's error plus `USEFUL_LOSS`, so
    that ruined networks count nothing, and the baseline's costs.

    Args:
        objectives: names, in the order of the columns that will be scored.
        baseline: minimised value of every objective for the uncompressed network.
    """
    names = tuple(objectives)
    plain = [1.0 if name == "error" else baseline[name] for name in names]
    useful = [min(1.0, baseline[n] + USEFUL_LOSS) if n == "error" else baseline[n] for n in names]
    return Reference(np.array(plain)), Reference(np.array(useful))
