"""What an estimator says of one policy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from automl_compress.space import Policy

Status = Literal["ok", "failed"]

QUALITIES: Final[Mapping[str, str]] = {"accuracy": "accuracy", "map50": "mAP50"}
"""Metrics that say how good a network's answers are, shares in [0, 1], and what readers call
them. An evaluation has one of them: that of its workload's task."""
UNITS: Final[Mapping[str, str]] = {
    **dict.fromkeys(QUALITIES, "1"),
    "error": "1",
    "divergence": "1",
    "macs": "multiply-accumulate",
    "params": "1",
    "size_bytes": "byte",
    "bitops": "bit-operation",
    "latency_ms": "ms",
}
"""Unit of every metric. Qualities, error and divergence are shares in [0, 1], costs are for one
image, but a latency is for one run of the batch that its study states."""

DIVERGENCE: Final = "divergence"
"""How far a network's answers are from those of the uncompressed one, in [0, 1]: 1 - exp(-d), d
being the mean Kullback-Leibler divergence (`workload.Task.divergences`) over the images that the
quality was measured on. It needs no labels, and is smooth where counted answers are not: of 512
images it foretells other images' errors, and the accuracy after training, better than their own
count does (results/audit_resnet20). Not every task has it, nor every estimator."""
LOSSES: Final = ("error", DIVERGENCE)
"""Metrics in [0, 1] that say how badly a network answers. They have to be measured, and a study
minimises one of them."""
LATENCY: Final = "latency_ms"
_SE: Final = "_se"
"""Behind a quality's name: how far off it may be, from an estimator that does not count it."""
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
        images: labelled images the quality was measured on.
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

    @property
    def quality(self) -> float:
        """The accuracy, or whatever else its task is judged by.

        Raises:
            KeyError: it failed.
        """
        return quality_of(self.metrics)

    @property
    def quality_se(self) -> float:
        """Standard error of the quality, as a share; NaN when failed or not known.

        It says how far an equally large draw of other images would move the quality, for the same
        network. Of an accuracy that was counted, it is the binomial one: images are drawn alike,
        however hard each is, so every answer is a draw of one coin, and the scatter over disjoint
        folds of the images has just this mean. Eight folds would know it to within a quarter
        only. It is taken of (right + 1) / (images + 2), for a network that is right on all images
        drawn is not known to be perfect: it is the standard deviation of the accuracy given the
        count, all accuracies being as likely before (Laplace). Where images were drawn by margins
        (`evaluate.draw`), the estimator states it (`workload.task.weighted_share`).

        Networks measured on the same images differ by less than their errors suggest, for hard
        images are hard for all. What other calibration images would change is not in it.
        """
        if not self.ok:
            return math.nan
        name = quality_name(self.metrics)
        if error_name(name) in self.metrics:
            return self.metrics[error_name(name)]
        return standard_error(self.quality, self.images) if name == "accuracy" else math.nan

    @classmethod
    def failed(
        cls, policy: Policy, estimator: str, reason: str, seconds: float = 0.0
    ) -> Evaluation:
        """An evaluation that says why a policy could not be measured.

        Args:
            policy: what was to be measured.
            estimator: identity of the estimator that tried.
            reason: why; put into one line.
            seconds: that it took to fail.
        """
        line = " ".join(reason.split()) or "no reason given"
        return cls(policy, estimator, {}, "failed", line, 0, seconds)

    def minimised(self, name: str) -> float:
        """A metric as a value to minimise: `error` is 1 - quality; inf when failed."""
        if not self.ok:
            return math.inf
        if name == "error":
            return 1.0 - self.quality
        return self.metrics[name]


def quality_name(metrics: Mapping[str, float]) -> str:
    """Which quality is among metrics.

    Raises:
        KeyError: none is.
    """
    for name in QUALITIES:
        if name in metrics:
            return name
    raise KeyError(f"one of {', '.join(QUALITIES)}")


def quality_of(metrics: Mapping[str, float]) -> float:
    """The quality among metrics, a share in [0, 1].

    Raises:
        KeyError: there is none.
    """
    return metrics[quality_name(metrics)]


def error_name(quality: str) -> str:
    """Name of the metric that is the standard error of a quality."""
    return quality + _SE


def standard_error(accuracy: float, images: int) -> float:
    """Standard error of a counted accuracy, see `Evaluation.quality_se`; NaN without images.

    Args:
        accuracy: share in [0, 1].
        images: how many it was counted on.
    """
    if images < 1:
        return math.nan
    share = (accuracy * images + 1) / (images + 2)
    return math.sqrt(share * (1 - share) / (images + 3))
