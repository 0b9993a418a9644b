"""A regression over evaluations that predicts accuracies, with their uncertainty.

Extremely randomised trees (Geurts et al. 2006) over a policy's gene values and exact costs. They
learn the logarithm of the error, for harms multiply; how far trees disagree is the uncertainty
(as in Hutter et al. 2011, SMAC). This is the only file of this package that uses scikit-learn.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import EstimateError
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.evaluation import Evaluation, error_name, quality_name
from automl_compress.space import Policy

if TYPE_CHECKING:
    from sklearn.ensemble import ExtraTreesRegressor

Array = NDArray[np.float64]
Costs = Callable[[Policy], Mapping[str, float]]

VERSION: Final = 1
"""Raised whenever the same evaluations would predict something else than before."""
FOLDS: Final = 5
FEWEST: Final = 4 * FOLDS
"""Evaluations that a prediction needs at least."""
_TREES: Final = 100
_OFFSET: Final = 0.005
"""Errors are learnt as logarithms, counted from this much below none."""


class LearnedEstimator(Estimator):
    """Predicts a policy's quality from the evaluations of others; costs exactly.

    Evaluations are parted into folds by their policies' keys, and one forest is grown without each
    fold. An evaluated policy is predicted by the forest that has not seen it, any other by all:
    so every prediction is a cross-validated one.

    Args:
        evaluations: of one estimator; failed ones are left out. Policies must have the same genes.
        costs: exact costs of a policy by metric name.

    Raises:
        EstimateError: fewer than `FEWEST` evaluations worked.
    """

    def __init__(self, evaluations: Sequence[Evaluation], costs: Costs) -> None:
        known = sorted((e for e in evaluations if e.ok), key=lambda e: e.policy.key)
        if len(known) < FEWEST:
            raise EstimateError(
                f"a prediction must learn from at least {FEWEST} evaluations that worked, but has "
                f"{len(known)}; raise the budget"
            )
        self._costs = costs
        self._genes = tuple(known[0].policy)
        self._folds = {e.policy.key: _fold(e.policy) for e in known}
        inputs = np.stack([self._features(e.policy) for e in known])
        targets = np.log([e.minimised("error") + _OFFSET for e in known])
        folds = np.array([self._folds[e.policy.key] for e in known])
        self._forests = [_forest(inputs[folds != f], targets[folds != f]) for f in range(FOLDS)]
        told = [(e.policy.key, e.estimator, e.quality) for e in known]
        self._name = quality_name(known[0].metrics)
        parts = json.dumps((VERSION, told))
        self._identity = "learned-" + hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """Hash of everything it learned from."""
        return self._identity

    def estimate(self, policy: Policy) -> Evaluation:
        """Predict a policy's quality and its standard error."""
        start = time.perf_counter()
        quality, error = (float(part[0]) for part in self.predict([policy]))
        metrics = {self._name: quality, error_name(self._name): error, **self._costs(policy)}
        seconds = time.perf_counter() - start
        return Evaluation(policy, self._identity, metrics, seconds=seconds)

    def predict(self, policies: Sequence[Policy]) -> tuple[Array, Array]:
        """(n,) qualities and (n,) standard errors of n policies, as shares."""
        inputs = np.stack([self._features(policy) for policy in policies])
        everyone = np.stack([_grown(forest, inputs) for forest in self._forests])
        means, deviations = np.empty(len(policies)), np.empty(len(policies))
        for row, policy in enumerate(policies):
            fold = self._folds.get(policy.key)
            trees = everyone[:, :, row] if fold is None else everyone[fold, :, row]
            means[row], deviations[row] = trees.mean(), trees.std()
        errors = np.exp(means)
        return 1.0 - np.clip(errors - _OFFSET, 0.0, 1.0), errors * deviations

    def _features(self, policy: Policy) -> Array:
        """(n_features,) gene values and costs; trees need no scales."""
        costs = self._costs(policy)
        values = [policy[name] for name in self._genes] + [costs[name] for name in sorted(costs)]
        return np.array(values, dtype=np.float64)


def _fold(policy: Policy) -> int:
    return int(policy.key[:8], 16) % FOLDS


def _forest(inputs: Array, targets: Array) -> ExtraTreesRegressor:
    # Slow to import, and most runs predict nothing.
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(_TREES, min_samples_leaf=2, random_state=0)
    return forest.fit(inputs, targets)


def _grown(forest: ExtraTreesRegressor, inputs: Array) -> Array:
    """(n_trees, n) what each tree says."""
    rows = inputs.astype(np.float32)  # as trees read them
    # `tree.predict` checks its input, which takes a hundred times as long as the answer.
    return np.stack([tree.tree_.predict(rows)[:, 0] for tree in forest.estimators_])
