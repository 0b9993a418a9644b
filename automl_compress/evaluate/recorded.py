"""A recorded search space: every policy's metrics stand in a table, so nothing is measured.

Such a table replays searches in seconds (Dong et al. 2021, NATS-Bench, is one).
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import EstimateError, StudyError
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.evaluation import COSTS, Evaluation
from automl_compress.evaluate.objectives import Constraint, beyond
from automl_compress.pareto import Reference
from automl_compress.space import Policy, SearchSpace


class Simulation(Estimator):
    """Answers for every policy of a space without a network, costs included."""

    space: SearchSpace
    scored_by: str
    """What hypervolumes are measured by, for captions."""
    note: str = ""
    """What is to be said of the answers, likewise."""

    @property
    @abstractmethod
    def judged_by(self) -> str:
        """The quality that answers hold, see `QUALITIES`."""

    @property
    @abstractmethod
    def baseline(self) -> dict[str, float]:
        """Minimised metrics of the uncompressed network."""

    @property
    @abstractmethod
    def recorded(self) -> tuple[str, ...]:
        """Names of the metrics that can be minimised."""

    @property
    def counted_error(self) -> float | None:
        """Error at which the hypervolume ends that counts; None where a study's count."""
        return None

    @abstractmethod
    def costs(self, policy: Policy) -> dict[str, float]:
        """The costs of a policy by name."""

    @abstractmethod
    def scale(
        self, objectives: Sequence[str], constraints: Sequence[Constraint]
    ) -> tuple[Reference, float]:
        """A reference, and the share of its box that counts as 1.

        Raises:
            StudyError: no policy meets the constraints.
        """


class RecordedEstimator(Simulation):
    """Answers from a table that holds every policy of a space once.

    Args:
        space: the search space.
        metrics: by name, accuracy in [0, 1] among them: (n_policies,) values of all policies, the
            last gene running fastest, or any shape that holds them so. Where the accuracy is NaN,
            a policy failed; that of the least compressed one is known.
        note: what is to be said of the answers.
    """

    scored_by = "Hypervolume as a share of the exact front's"

    def __init__(
        self, space: SearchSpace, metrics: Mapping[str, NDArray[np.float64]], note: str = ""
    ) -> None:
        self.space = space
        self.note = note
        self._metrics = {name: np.ravel(values) for name, values in metrics.items()}
        self._steps = np.cumprod([1, *space.sizes[:0:-1]])[::-1]
        digest = hashlib.sha256(repr(space.to_dict()).encode())
        for name in sorted(self._metrics):
            digest.update(name.encode() + self._metrics[name].tobytes())
        self._identity = "table-" + digest.hexdigest()[:16]

    @property
    def judged_by(self) -> str:
        """Tables record accuracies."""
        return "accuracy"

    @property
    def identity(self) -> str:
        """Hash of the space and all values."""
        return self._identity

    def estimate(self, policy: Policy) -> Evaluation:
        """Look a policy up."""
        row = self._row(policy)
        if math.isnan(row["accuracy"]):
            return Evaluation.failed(policy, self._identity, "the table records no accuracy")
        return Evaluation(policy, self._identity, row)

    def costs(self, policy: Policy) -> dict[str, float]:
        """The recorded costs of a policy."""
        return {name: value for name, value in self._row(policy).items() if name != "accuracy"}

    def _row(self, policy: Policy) -> dict[str, float]:
        place = int(self.space.encode(policy) @ self._steps)
        return {name: float(values[place]) for name, values in self._metrics.items()}

    @property
    def baseline(self) -> dict[str, float]:
        """Minimised metrics of the least compressed policy."""
        row = self._row(self.space.largest)
        return {"error": 1.0 - row.pop("accuracy"), **row}

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of the metrics that can be minimised."""
        return ("error", *(name for name in COSTS if name in self._metrics))

    @property
    def counted_error(self) -> float:
        """The worst error of the table."""
        return float(_worst(self.values(["error"]))[0])

    def scale(
        self, objectives: Sequence[str], constraints: Sequence[Constraint]
    ) -> tuple[Reference, float]:
        """The worst values of the table, and the share that its exact front dominates."""
        limits = [(limit, self.values([limit.metric])[:, 0]) for limit in constraints]
        met = check_met(limits, self.space.cardinality, "table")
        return worst_scale(self.values(objectives), met, objectives)

    def values(self, objectives: Iterable[str]) -> NDArray[np.float64]:
        """(n_policies, n_objectives) minimised values of the whole space; failed errors are inf.

        Raises:
            EstimateError: an objective is not recorded.
        """
        return np.stack([self._column(name) for name in objectives], axis=1)

    def _column(self, objective: str) -> NDArray[np.float64]:
        if objective not in self.recorded:
            raise EstimateError(
                f"an objective must be recorded, one of {', '.join(self.recorded)}, but is "
                f"'{objective}'"
            )
        if objective == "error":
            return np.nan_to_num(1.0 - self._metrics["accuracy"], nan=math.inf)
        return self._metrics[objective]


def check_met(
    limits: Sequence[tuple[Constraint, NDArray[np.float64]]], count: int, source: str
) -> NDArray[np.bool_]:
    """(count,) which policies meet all constraints.

    Args:
        limits: absolute constraints, each with (count,) values of what it bounds.
        count: policies.
        source: where they are recorded, for the message.

    Raises:
        StudyError: none does.
    """
    met = np.ones(count, dtype=np.bool_)
    for limit, values in limits:
        met &= beyond(limit.metric, values, limit.limit) <= 0
    if not met.any():
        texts = ", ".join(limit.text for limit, _ in limits)
        raise StudyError(
            f"constraints must leave policies, but none of the {source} meets {texts}; loosen them"
        )
    return met


def worst_scale(
    values: NDArray[np.float64], met: NDArray[np.bool_], objectives: Sequence[str]
) -> tuple[Reference, float]:
    """The worst values, and the share of their box that those which meet constraints dominate.

    Args:
        values: (n, n_objectives) minimised; inf where a policy failed.
        met: (n,) which meet the constraints.
        objectives: names of the columns.

    Raises:
        StudyError: nothing is better than the worst in every objective.
    """
    reference = Reference(_worst(values))
    whole = reference.share(values[met])
    if not whole:
        judged = "the table" if met.all() else "what meets the constraints"
        raise StudyError(
            "some policy must be better than the table's worst in every objective, but of "
            f"{judged} none is in {', '.join(objectives)}; choose other objectives or constraints"
        )
    return reference, whole


def _worst(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_objectives,) largest values of the policies that did not fail."""
    worst: NDArray[np.float64] = values[np.isfinite(values).all(axis=1)].max(axis=0)
    return worst
