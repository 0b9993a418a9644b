"""The learned predictor on a toy whose accuracies are formulas."""

from __future__ import annotations

import numpy as np
import pytest

from automl_compress.errors import EstimateError
from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.predictor import FEWEST, LearnedEstimator
from automl_compress.evaluate.ranking import spearman
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=4)
TOY = ToyEstimator(NETWORK)


def _evaluations(count: int, seed: int = 0) -> list[Evaluation]:
    rng, space = np.random.default_rng(seed), NETWORK.space
    return [TOY.estimate(space.decode(rng.integers(0, space.sizes))) for _ in range(count)]


def _accuracies(evaluations: list[Evaluation]) -> np.ndarray:
    return np.array([e.metrics["accuracy"] for e in evaluations])


def test_unseen_policies_are_ranked_better_than_by_their_costs() -> None:
    learned = LearnedEstimator(_evaluations(150), NETWORK.costs)
    unseen = _evaluations(60, seed=1)
    accuracy, error = learned.predict([e.policy for e in unseen])
    sizes = np.array([e.metrics["size_bytes"] for e in unseen])
    truth = _accuracies(unseen)
    assert spearman(accuracy, truth) > 0.9 > spearman(sizes, truth)
    within = np.abs(accuracy - truth) <= 2 * error
    assert within.mean() > 0.8


def test_evaluated_policies_are_predicted_by_those_who_have_not_seen_them() -> None:
    told = _evaluations(60)
    lie = told[7]
    metrics = {**lie.metrics, "accuracy": 1.0 - lie.metrics["accuracy"]}
    other = [Evaluation(lie.policy, lie.estimator, metrics) if e is lie else e for e in told]
    one = LearnedEstimator(told, NETWORK.costs)
    two = LearnedEstimator(other, NETWORK.costs)
    assert one.identity != two.identity
    # What is said of a policy does not depend on what was measured of it.
    assert one.estimate(lie.policy).metrics == two.estimate(lie.policy).metrics
    changed = [e.policy for e in told if e is not lie]
    assert (one.predict(changed)[0] != two.predict(changed)[0]).any()


def test_the_same_evaluations_predict_the_same_in_any_order() -> None:
    told = _evaluations(40)
    one, two = (LearnedEstimator(e, NETWORK.costs) for e in (told, told[::-1]))
    assert one.identity == two.identity
    found = [estimator.estimate(told[3].policy) for estimator in (one, two)]
    assert found[0].metrics == found[1].metrics
    assert found[0].quality_se > 0


def test_too_few_evaluations_are_refused() -> None:
    failed = [Evaluation.failed(e.policy, "e", "no") for e in _evaluations(9, seed=3)]
    with pytest.raises(EstimateError, match=f"at least {FEWEST}"):
        LearnedEstimator([*_evaluations(FEWEST - 1), *failed], NETWORK.costs)
