"""What an estimator says of one policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from automl_compress.space import Policy

Status = Literal["ok", "failed"]

UNITS: Final[Mapping[str, str]] = {
    "accuracy": "1",
    "error": "1",
    "macs": "multiply-accumulate",
    "params": "1",
    "size_bytes": "byte",
    "bitops": "bit-operation",
    "latency_ms": "ms",
}
"""Unit of every metric. Accuracy and error are shares in [0, 1], costs are for one image,
but a latency is for one run of the batch that its study states."""

LATENCY: Final = "latency_ms"
COSTS: Final = ("size_bytes", "macs", "params", "bitops", LATENCY)
"""Metrics that are computed from a policy without images: exactly, but for the latency, which is
predicted, and only where a study says how it is measured."""


@dataclass(frozen=True)
class Evaluation:
    """One measured policy.

    Args:
        policy: what was measured.
        estimator: identity of the estimator that measured it.
        metrics: value by name, see `UNITS`; empty when failed.
        status: `ok`, or `failed` with a `reason`.
        reason: why it failed, in one line; empty when ok.
        images: labelled images the accuracy was counted on.
        seconds: time the evaluation took where it was made.
    """

    policy: Policy
    estimator: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    status: Status = "ok"
    reason: str = ""
    images: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether the metrics can be used: it did not fail, and all of them are finite."""
        return self.status == "ok" and all(map(math.isfinite, self.metrics.values()))

    @classmethod
    def failed(
        cls, policy: Policy, estimator: str, reason: str, seconds: float = 0.0
    ) -> Evaluation:
        """An evaluation that says why a policy could not be measured."""
        line = " ".join(reason.split()) or "no reason given"
        return cls(policy, estimator, {}, "failed", line, 0, seconds)

    def minimised(self, name: str) -> float:
        """A metric as a value to minimise: `error` is 1 - accuracy; inf when failed."""
        if not self.ok:
            return math.inf
        if name == "error":
            return 1.0 - self.metrics["accuracy"]
        return self.metrics[name]
