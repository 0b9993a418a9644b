"""The standard error of an accuracy, against simulated draws of images."""

from __future__ import annotations

import math

import numpy as np
import pytest

from automl_compress.evaluate import Evaluation, error_name, standard_error
from automl_compress.space import Policy

IMAGES = 512
FOLDS = 8


def _answers(draws: int) -> np.ndarray:
    """(draws, IMAGES) right answers on fresh images, some of which are far harder than others."""
    rng = np.random.default_rng(0)
    chance = rng.beta(4.0, 0.6, size=(draws, IMAGES))
    return rng.random((draws, IMAGES)) < chance


def test_it_is_how_far_accuracies_scatter_over_fresh_images() -> None:
    accuracies = _answers(4_000).mean(axis=1)
    stated = [standard_error(accuracy, IMAGES) for accuracy in accuracies]
    assert np.mean(stated) == pytest.approx(accuracies.std(), rel=0.04)


def test_folds_have_the_same_mean_and_know_it_worse() -> None:
    answers = _answers(4_000)
    folds = answers.reshape(len(answers), FOLDS, -1).mean(axis=2)
    by_folds = folds.std(axis=1, ddof=1) / math.sqrt(FOLDS)
    counted = np.array([standard_error(accuracy, IMAGES) for accuracy in answers.mean(axis=1)])
    assert np.sqrt((by_folds**2).mean()) == pytest.approx(np.sqrt((counted**2).mean()), rel=0.03)
    assert by_folds.std() / by_folds.mean() > 0.2 > 0.1 > counted.std() / counted.mean()


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_no_count_is_known_exactly(accuracy: float) -> None:
    assert 0 < standard_error(accuracy, 100) < 0.02


def test_an_evaluation_says_it_where_it_can() -> None:
    policy = Policy({})
    assert Evaluation(policy, "e", {"accuracy": 0.5}, images=97).quality_se == pytest.approx(0.05)
    assert (
        Evaluation(policy, "e", {"accuracy": 0.5, error_name("accuracy"): 0.02}).quality_se == 0.02
    )
    assert math.isnan(Evaluation(policy, "e", {"accuracy": 0.5}).quality_se)
    assert math.isnan(Evaluation.failed(policy, "e", "no memory").quality_se)
