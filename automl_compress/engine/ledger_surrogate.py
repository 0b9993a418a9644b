"""A finished study's ledger, made to answer for every policy of its space.

A ledger holds a few of a space's policies, and a strategy asks for others. So what it would be told
is predicted by regressions over the ledger: the error by the Gaussian process that strategies
screen with (`search.error_model`), costs by polynomials. A race on it is a simulation, and says as
much as the regressions are good: `Quality` states what cross-validation finds. Two limits are not
cured by that:

- Far from all that was evaluated a regression knows nothing. A policy that is farther from the
  nearest evaluated one than evaluated ones are from each other has no answer: it fails.
- Strategies that learn by the same kind of regression are favoured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import StudyError
from automl_compress.evaluate import (
    COSTS,
    Constraint,
    Evaluation,
    quality_name,
    quality_of,
    references,
)
from automl_compress.evaluate.recorded import Simulation
from automl_compress.ledger import StudyResult
from automl_compress.pareto import Reference
from automl_compress.search.error_model import ErrorModel, Known, coordinates
from automl_compress.space import Indices, Policy, SearchSpace

Array = NDArray[np.float64]

LEAST: Final = 50
"""Evaluations that worked, of different policies, that a ledger must hold."""
REACH: Final = 0.99
"""Share of the evaluated policies whose nearest neighbour tells how far answers reach."""
FOLDS: Final = 5
"""Parts of the ledger that are predicted from the others, to judge the regressions."""
_DEGREE: Final = 3
_CONSTANT: Final = 0.3
_RIDGE: Final = 1e-8


@dataclass(frozen=True)
class Quality:
    """How well a surrogate predicts policies it was not given.

    Args:
        evaluations: it was made of.
        kendall_tau: rank correlation of predicted and measured quality, in [-1, 1].
        r2: share of the quality's variance that is predicted, at most 1.
        cost_error: by cost, the median relative error.
    """

    evaluations: int
    kendall_tau: float
    r2: float
    cost_error: Mapping[str, float]

    def __str__(self) -> str:
        costs = ", ".join(f"{name} {error:.2%}" for name, error in self.cost_error.items())
        return (
            f"{self.evaluations} evaluations; {FOLDS}-fold cross-validation: Kendall's tau of the "
            f"quality {self.kendall_tau:.3f}, R2 {self.r2:.3f}; median error of {costs}"
        )


class LedgerSurrogate(Simulation):
    """Predicts every policy of a study's space from the study's evaluations. Without noise.

    Args:
        result: a study with evaluations.

    Raises:
        StudyError: fewer than `LEAST` different policies worked.
    """

    scored_by = "Useful hypervolume, simulated on a surrogate of a ledger"

    def __init__(self, result: StudyResult) -> None:
        manifest = result.manifest
        evaluations = _evaluations(result)
        if len(evaluations) < LEAST:
            raise StudyError(
                f"a ledger to replay must hold at least {LEAST} evaluations that worked, but that "
                f"of '{result.folder}' holds {len(evaluations)}; extend the study"
            )
        self.space = SearchSpace.from_dict(manifest.space)
        self._names = [
            name for name in COSTS if all(name in evaluation.metrics for evaluation in evaluations)
        ]
        self._baseline = np.array([manifest.baseline[name] for name in self._names])
        self._judged_by = quality_name(manifest.baseline)
        self._error = 1.0 - quality_of(manifest.baseline)
        indices = np.stack([self.space.encode(evaluation.policy) for evaluation in evaluations])
        shares = np.array([[e.metrics[name] for name in self._names] for e in evaluations])
        shares = shares / self._baseline
        errors = np.array([evaluation.minimised("error") for evaluation in evaluations])
        self._costs = _CostModel(self.space, indices, shares)
        self._known = Known(self.space, indices, self._costs.predict(indices), errors)
        self._fit = self._known.likeliest()
        self._model = ErrorModel(self._known, *self._fit)
        self._points = coordinates(self.space)[np.arange(len(self.space)), indices]
        self._reach = float(np.quantile([self._distance(p, 1) for p in self._points], REACH))
        self.quality = self._judged(shares)
        self.note = (
            f"Simulated on a surrogate of the ledger: {self.quality}. Policies farther than "
            f"{self._reach:.3f} (root mean square over genes) from all evaluated ones fail; "
            "strategies that learn by the same kind of regression are favoured"
        )
        self._cached: dict[Policy, dict[str, float]] = {}
        keys = "".join(evaluation.policy.key for evaluation in evaluations)
        digest = hashlib.sha256(keys.encode() + errors.tobytes() + shares.tobytes())
        self._identity = "surrogate-" + digest.hexdigest()[:16]

    @property
    def judged_by(self) -> str:
        """That of the study's task."""
        return self._judged_by

    @property
    def identity(self) -> str:
        """Hash of all evaluations."""
        return self._identity

    @property
    def baseline(self) -> dict[str, float]:
        """Minimised metrics of the study's uncompressed network."""
        return {
            "error": self._error,
            **{n: float(v) for n, v in zip(self._names, self._baseline, strict=True)},
        }

    @property
    def recorded(self) -> tuple[str, ...]:
        """The error, and the costs that all evaluations have."""
        return ("error", *self._names)

    def costs(self, policy: Policy) -> dict[str, float]:
        """Predicted costs."""
        if policy not in self._cached:
            shares = self._costs.predict(self.space.encode(policy)[None])[0]
            named = zip(self._names, shares * self._baseline, strict=True)
            self._cached[policy] = {name: float(cost) for name, cost in named}
        return self._cached[policy]

    def estimate(self, policy: Policy) -> Evaluation:
        """Predicted quality and costs; failed where nothing near was evaluated."""
        costs = self.costs(policy)
        point = coordinates(self.space)[np.arange(len(self.space)), self.space.encode(policy)]
        if (distance := self._distance(point)) > self._reach:
            reason = f"{distance:.3f} from all evaluated policies, beyond {self._reach:.3f}"
            return Evaluation.failed(policy, self._identity, reason)
        shares = np.array([[costs[name] for name in self._names]]) / self._baseline
        error, _ = self._model.predict(self.space.encode(policy)[None], shares, np.zeros(1))
        quality = 1.0 - float(np.clip(error[0], 0.0, 1.0))
        return Evaluation(policy, self._identity, {self._judged_by: quality, **costs})

    def scale(
        self, objectives: Sequence[str], constraints: Sequence[Constraint]
    ) -> tuple[Reference, float]:
        """The reference of the useful hypervolume: the best front of a space is not known."""
        values = np.column_stack([self._known.errors, self._known.costs * self._baseline])
        limits = [(limit, values[:, self.recorded.index(limit.metric)]) for limit in constraints]
        if not np.all([column <= limit.limit for limit, column in limits], axis=0).any():
            texts = ", ".join(limit.text for limit in constraints)
            raise StudyError(
                f"constraints must leave policies, but none of the ledger meets {texts}; "
                "loosen them"
            )
        return references(objectives, self.baseline)[1], 1.0

    def _distance(self, point: Array, skipped: int = 0) -> float:
        """Root mean square distance of (n_genes,) coordinates to the nearest evaluated policy.

        Args:
            point: where.
            skipped: of the nearest: 1 for a policy that is one of them.
        """
        squares = ((self._points - point) ** 2).mean(axis=1)
        return float(np.sqrt(np.partition(squares, skipped)[skipped]))

    def _judged(self, shares: Array) -> Quality:
        """Predictions of each fold from the others, held against what was measured."""
        known = self._known
        count = len(known.errors)
        fold = np.random.default_rng(0).permutation(count) % FOLDS
        errors, costs = np.zeros(count), np.zeros(shares.shape)
        for number in range(FOLDS):
            given, left = fold != number, fold == number
            model = _CostModel(self.space, known.indices[given], shares[given])
            costs[left] = model.predict(known.indices[left])
            part = Known(
                self.space,
                known.indices[given],
                model.predict(known.indices[given]),
                known.errors[given],
            )
            predicted = ErrorModel(part, *self._fit).predict(
                known.indices[left], costs[left], np.zeros(1)
            )
            errors[left] = np.clip(predicted[0], 0.0, 1.0)
        missed = np.median(np.abs(costs / shares - 1.0), axis=0)
        return Quality(
            evaluations=count,
            kendall_tau=_kendall_tau(errors, known.errors),
            r2=1.0 - float(((errors - known.errors) ** 2).mean() / max(known.errors.var(), 1e-12)),
            cost_error={n: float(m) for n, m in zip(self._names, missed, strict=True)},
        )


def _evaluations(result: StudyResult) -> list[Evaluation]:
    """Those that worked, each policy once, contestants in order."""
    found: dict[str, Evaluation] = {}
    for contestant in result.manifest.contestants:
        for charge in result.charges(contestant.name):
            if charge.evaluation.ok:
                found.setdefault(charge.evaluation.policy.key, charge.evaluation)
    return list(found.values())


class _CostModel:
    """Costs as polynomials of the genes' values, by kernel ridge regression.

    A cost is a sum over layers of products of the channels before it, those it keeps, and its
    bits: polynomials of degree 3. What is fitted is the relative error.

    Args:
        space: the search space.
        indices: (n, n_genes).
        shares: (n, n_costs) costs as shares of the baseline's, above 0.
    """

    def __init__(self, space: SearchSpace, indices: Indices, shares: Array) -> None:
        self._values = _kept_shares(space)
        self._inputs = self._encoded(indices)
        self._least = shares.min(axis=0) / 2.0
        kernel = self._kernel(self._inputs)
        solved = []
        for column in shares.T:
            relative = kernel / column[:, None] / column
            ridge = _RIDGE * np.trace(relative) / len(column) * np.eye(len(column))
            solved.append(np.linalg.solve(relative + ridge, np.ones(len(column))) / column)
        self._weights = np.stack(solved, axis=1)

    def predict(self, indices: Indices) -> Array:
        """(m, n_costs) shares of (m, n_genes) indices; never below half the least known."""
        predicted = self._kernel(self._encoded(indices)) @ self._weights
        return np.asarray(np.maximum(self._least, predicted), np.float64)

    def _encoded(self, indices: Indices) -> Array:
        return self._values[np.arange(indices.shape[1]), indices]

    def _kernel(self, inputs: Array) -> Array:
        """(m, n) kernel of (m, n_genes) shares and the known ones."""
        mean = inputs @ self._inputs.T / inputs.shape[1]
        kernel: Array = ((_CONSTANT + mean) / (_CONSTANT + 1.0)) ** _DEGREE
        return kernel


def _kept_shares(space: SearchSpace) -> Array:
    """(n_genes, most values) share of channels, bits or kernels that each value keeps."""
    table = np.ones((len(space), int(space.sizes.max())))
    for row, gene in zip(table, space, strict=True):
        values = np.array(gene.values, dtype=np.float64)
        sparse = gene.kind == "kernel_sparsity"
        row[: len(gene)] = 1.0 - values if sparse else values / values[-1]
    return table


def _kendall_tau(one: Array, other: Array) -> float:
    """Rank correlation with ties (Kendall 1945, tau-b); 0 where one side is constant."""
    signs = [np.sign(values[:, None] - values) for values in (one, other)]
    pairs = np.sqrt(float((signs[0] != 0).sum()) * float((signs[1] != 0).sum()))
    return float((signs[0] * signs[1]).sum() / pairs) if pairs else 0.0
