"""The contract of everything that says how good a policy is."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod

from automl_compress.errors import InterruptedStudy
from automl_compress.evaluate.evaluation import QUALITIES, Evaluation
from automl_compress.space import Policy


class Estimator(ABC):
    """Says how good a policy is. Pure: for one identity, one policy has one answer."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Hash of everything that can change an answer: network, data, settings, version."""

    @abstractmethod
    def estimate(self, policy: Policy) -> Evaluation:
        """Measure a policy; whatever goes wrong becomes a failed evaluation."""


def answer(estimator: Estimator, policy: Policy) -> Evaluation:
    """Ask an estimator; an exception or a metric that is not finite becomes a failed evaluation.

    Engines ask through this, so that no estimator, third parties' included, can crash a search.
    """
    start = time.perf_counter()
    try:
        evaluation = estimator.estimate(policy)
    except InterruptedStudy:
        raise
    except Exception as reason:
        message = f"{type(reason).__name__}: {reason}"
        return Evaluation.failed(policy, estimator.identity, message, time.perf_counter() - start)
    wrong = [name for name, value in evaluation.metrics.items() if not math.isfinite(value)]
    judged = any(name in evaluation.metrics for name in QUALITIES)
    if evaluation.status == "ok" and (wrong or not judged):
        message = f"{wrong[0]} is not finite" if wrong else f"{' or '.join(QUALITIES)} is missing"
        return Evaluation.failed(policy, estimator.identity, message, evaluation.seconds)
    return evaluation
