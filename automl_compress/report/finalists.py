"""Finalists: policies measured on the final test images, and what holds of them there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from automl_compress.evaluate import (
    LATENCY,
    LOSSES,
    Constraint,
    Evaluation,
    quality_name,
    violations,
)
from automl_compress.ledger import StudyResult
from automl_compress.report.statistics import dominated, quality_interval
from automl_compress.space import Policy


@dataclass(frozen=True)
class Finalist:
    """A policy chosen for the final test images.

    Args:
        number: 1 for the smallest.
        estimate: what the search measured.
        test: what the final test images gave; None when not measured yet.
        strategy: who found it first.
        seed: that contestant's seed.
        dominated: whether another finalist is no worse in any objective on the test images and
            better in one.
        broken: constraints that do not hold on the test images, or for the measured latency, as
            the user wrote them.
        latency: its measured latency, see `StudyResult.latency`; None when there is none.
        too_slow: those of `broken` that the measured latency breaks.
    """

    number: int
    estimate: Evaluation
    test: Evaluation | None
    strategy: str
    seed: int
    dominated: bool
    broken: tuple[str, ...]
    latency: Evaluation | None = None
    too_slow: tuple[str, ...] = ()

    @property
    def quality(self) -> float | None:
        """Test quality in [0, 1]; None when not measured, or when that failed."""
        return self.test.quality if self.test is not None and self.test.ok else None

    @property
    def metrics(self) -> dict[str, float]:
        """The search's metrics, with the quality and the latency that were measured since."""
        measured = _measured_latency(self.estimate, self.latency).metrics
        name = quality_name(self.estimate.metrics)
        return {**measured, **({} if self.quality is None else {name: self.quality})}

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the test quality; None when not measured or not known."""
        if self.quality is None or self.test is None or self.test.images < 1:
            return None
        return quality_interval(self.test.metrics, self.test.images)


@dataclass(frozen=True)
class Optimism:
    """How far estimates lie above test qualities, as shares.

    Args:
        finalists: mean of the finalists, who were chosen by their estimates.
        baseline: of the uncompressed network, which nobody chose: what the images differ by.
        error: standard error of `finalists` over finalists; NaN for a single one. It takes them
            as independent, which networks measured on the same images are not.
    """

    finalists: float
    baseline: float
    error: float

    @property
    def beyond(self) -> float:
        """What the finalists' estimates have beyond those of a network that nobody chose.

        Where search and test judge the very same networks, that is the winner's curse: what
        choosing by noisy estimates adds to those of the chosen.
        """
        return self.finalists - self.baseline


def find_finalists(result: StudyResult, frame: pd.DataFrame) -> tuple[Finalist, ...]:
    """A study's finalists, the smallest first.

    Args:
        result: the study.
        frame: rows of `StudyResult.to_dataframe`.
    """
    estimates = result.usable_evaluations()
    first = frame[~frame["shared"].astype(bool)].set_index("policy_key")
    chosen = [estimates[key] for key in result.manifest.finalists if key in estimates]
    tests = [result.test_evaluation(estimate.policy) for estimate in chosen]
    order = sorted(range(len(chosen)), key=lambda i: _by_size(chosen[i], tests[i]))
    latencies = [result.latency(estimate.policy) for estimate in chosen]
    measured = [_measured_latency(e, m) for e, m in zip(chosen, latencies, strict=True)]
    beaten = _dominated_on_test(result, measured, tests)
    limits = constraints_as_measured(result)
    broken = [_broken(limits, t, m) for t, m in zip(tests, latencies, strict=True)]
    return tuple(
        Finalist(
            number=number,
            estimate=chosen[i],
            test=tests[i],
            strategy=str(first.at[chosen[i].policy.key, "strategy"]),
            seed=int(str(first.at[chosen[i].policy.key, "seed"])),
            dominated=beaten[i],
            broken=tuple(c.text for c in broken[i]),
            latency=latencies[i],
            too_slow=tuple(c.text for c in broken[i] if c.metric == LATENCY),
        )
        for number, i in enumerate(order, start=1)
    )


def _by_size(estimate: Evaluation, test: Evaluation | None) -> tuple[float, float, str]:
    error = test.minimised("error") if test is not None else math.inf
    return estimate.metrics.get("size_bytes", math.inf), error, estimate.policy.key


def _dominated_on_test(
    result: StudyResult, estimates: Sequence[Evaluation], tests: Sequence[Evaluation | None]
) -> list[bool]:
    """Which finalists are dominated: the test's error, the exact costs of the search."""
    names = result.manifest.objectives
    measured = [i for i, test in enumerate(tests) if test is not None and test.ok]
    values = np.array(
        [
            [
                tests[i].minimised("error") if n in LOSSES else estimates[i].minimised(n)  # type: ignore[union-attr]
                for n in names
            ]
            for i in measured
        ]
    ).reshape(-1, len(names))
    beaten = dict(zip(measured, dominated(values).tolist(), strict=True))
    return [beaten.get(i, False) for i in range(len(tests))]


def constraints_as_measured(result: StudyResult) -> tuple[Constraint, ...]:
    """A study's constraints as what was measured after the search is held against them.

    A share of the uncompressed network's latency was one of the predicted latency for the search.
    It is one of the measured latency here: both are off by what the prediction is.
    """
    whole = result.latency(Policy({}))
    constraints = result.manifest.constraints
    if whole is None:
        return constraints
    return tuple(
        Constraint.parse(c.text).absolute(whole.metrics) if c.metric == LATENCY and c.text else c
        for c in constraints
    )


def _broken(
    constraints: Iterable[Constraint], test: Evaluation | None, latency: Evaluation | None
) -> list[Constraint]:
    """Constraints on the error or the latency that measuring breaks; other costs are exact.

    A latency that is predicted only breaks none: the search has held it against its own limit.
    """
    if test is None or not test.ok:
        return []
    found = _measured_latency(test, latency)
    limited = ("error",) if latency is None else ("error", LATENCY)
    return [c for c in constraints if c.metric in limited and violations([found], [c]).any()]


def _measured_latency(evaluation: Evaluation, latency: Evaluation | None) -> Evaluation:
    """An evaluation whose predicted latency gives way to the measured one."""
    if latency is None:
        return evaluation
    metrics = {**evaluation.metrics, LATENCY: latency.metrics[LATENCY]}
    return replace(evaluation, metrics=metrics)
