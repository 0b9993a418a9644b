"""Latency as a metric: added to what another estimator measures, predicted, never timed here."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.evaluation import LATENCY, Evaluation
from automl_compress.space import Policy


class LatencyPredictor(Protocol):
    """Says how long a policy's network takes; for one identity, always the same."""

    @property
    def identity(self) -> str:
        """Hash of everything that decides a prediction."""

    def __call__(self, policy: Policy) -> float:
        """Milliseconds of one run."""


class WithLatency(Estimator):
    """Adds `latency_ms` to the evaluations of another estimator.

    Args:
        estimator: measures everything else.
        latency: predicts.
    """

    def __init__(self, estimator: Estimator, latency: LatencyPredictor) -> None:
        self._estimator = estimator
        self._latency = latency
        parts = f"{estimator.identity} {latency.identity}"
        self._identity = hashlib.sha256(parts.encode()).hexdigest()[:32]

    @property
    def identity(self) -> str:
        """Hash of both identities."""
        return self._identity

    def estimate(self, policy: Policy) -> Evaluation:
        """Measure and predict; an evaluation that failed stays as it is."""
        evaluation = replace(self._estimator.estimate(policy), estimator=self._identity)
        if not evaluation.ok:
            return evaluation
        return replace(evaluation, metrics={**evaluation.metrics, LATENCY: self._latency(policy)})


@dataclass(frozen=True)
class CostsWithLatency:
    """All costs of a policy, its predicted latency among them.

    Args:
        costs: everything else.
        latency: predicts.
    """

    costs: Callable[[Policy], Mapping[str, float]]
    latency: LatencyPredictor

    def __call__(self, policy: Policy) -> dict[str, float]:
        """Costs by metric name."""
        return {**self.costs(policy), LATENCY: self.latency(policy)}
