from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from automl_compress.search.gaussian_process import GaussianProcess


def _data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    points = np.random.default_rng(seed).random((count, 3))
    return points, np.sin(3 * points[:, 0]) + points[:, 1] ** 2


def test_posterior_is_that_of_another_implementation() -> None:
    """With two blocks of the same columns and equal scales, the kernel is one of scikit-learn's."""
    points, values = _data(30, 0)
    ours = GaussianProcess((points,), values)
    (length,) = ours._lengths
    noise = float((ours._root @ ours._root.T)[0, 0] - 1.0)
    theirs = GaussianProcessRegressor(RBF(length * np.sqrt(3)), alpha=noise, optimizer=None)
    theirs.fit(points, values - values.mean())
    new, _ = _data(10, 1)
    mean, deviation = ours.predict((new,))
    expected, expected_deviation = theirs.predict(new, return_std=True)
    assert mean == pytest.approx(expected + values.mean(), abs=1e-6)
    assert deviation / np.sqrt(ours._variance) == pytest.approx(expected_deviation, abs=1e-4)


def test_smooth_functions_are_learnt_and_doubt_grows_with_distance() -> None:
    points, values = _data(60, 2)
    process = GaussianProcess((points, points[:, :1]), values)
    new, expected = _data(40, 3)
    mean, deviation = process.predict((new, new[:, :1]))
    assert np.abs(mean - expected).max() < 0.1
    far = new + 3.0
    assert process.predict((far, far[:, :1]))[1].min() > 3 * deviation.max()


def test_noise_is_told_from_signal() -> None:
    points, values = _data(150, 4)
    noisy = values + 0.3 * np.random.default_rng(0).standard_normal(150)
    mean, _ = GaussianProcess((points,), noisy).predict((points,))
    assert np.abs(mean - values).mean() < 0.5 * np.abs(noisy - values).mean()


def test_equal_values_are_no_error() -> None:
    points, _ = _data(5, 5)
    mean, deviation = GaussianProcess((points,), np.full(5, 0.25)).predict((points,))
    assert mean == pytest.approx(np.full(5, 0.25))
    assert np.isfinite(deviation).all()
