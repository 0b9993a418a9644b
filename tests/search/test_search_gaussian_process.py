from __future__ import annotations

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from automl_compress.search.gaussian_process import GaussianProcess, additive, joint, likeliest


def _data(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    points = np.random.default_rng(seed).random((count, 3))
    return points, np.sin(3 * points[:, 0]) + points[:, 1] ** 2


def _fitted(kernels: tuple, blocks: tuple, values: np.ndarray) -> GaussianProcess:
    return GaussianProcess(kernels, blocks, values, likeliest(kernels, blocks, values)[1])


def test_posterior_is_that_of_another_implementation() -> None:
    """With two blocks of the same columns and equal scales, the kernel is one of scikit-learn's."""
    points, values = _data(30, 0)
    ours = _fitted((joint,), (points,), values)
    (length,) = ours._settings.lengths
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
    process = _fitted((joint, joint), (points, points[:, :1]), values)
    new, expected = _data(40, 3)
    mean, deviation = process.predict((new, new[:, :1]))
    assert np.abs(mean - expected).max() < 0.1
    far = new + 3.0
    assert process.predict((far, far[:, :1]))[1].min() > 3 * deviation.max()


def test_noise_is_told_from_signal() -> None:
    points, values = _data(150, 4)
    noisy = values + 0.3 * np.random.default_rng(0).standard_normal(150)
    mean, _ = _fitted((joint,), (points,), noisy).predict((points,))
    assert np.abs(mean - values).mean() < 0.5 * np.abs(noisy - values).mean()


@pytest.mark.parametrize("steps", [(20, 25, 40), (1, 40), (39, 40, 40)])
def test_what_is_learnt_from_an_earlier_process_is_what_all_values_teach(
    steps: tuple[int, ...],
) -> None:
    points, values = _data(40, 6)
    kernels, blocks = (joint, additive), (points, points[:, :2])
    whole = _fitted(kernels, blocks, values)
    grown = None
    for count in steps:
        first = [block[:count] for block in blocks]
        grown = GaussianProcess(kernels, first, values[:count], whole._settings, grown)
    assert grown is not None
    new, _ = _data(10, 7)
    for one, other in zip(
        grown.predict((new, new[:, :2])), whole.predict((new, new[:, :2])), strict=True
    ):
        assert one == pytest.approx(other, abs=1e-9)


def test_equal_values_are_no_error() -> None:
    points, _ = _data(5, 5)
    mean, deviation = _fitted((joint,), (points,), np.full(5, 0.25)).predict((points,))
    assert mean == pytest.approx(np.full(5, 0.25))
    assert np.isfinite(deviation).all()


@pytest.mark.parametrize("length", [0.25, 0.5, 2.0])
def test_the_additive_kernel_is_the_mean_of_one_per_column(length: float) -> None:
    one, other = _data(20, 6)[0], _data(15, 7)[0]
    apart = (one[:, None] - other) / length
    slow = np.exp(-0.5 * apart**2).mean(axis=2)
    assert additive(one, other, length) == pytest.approx(slow, abs=2e-3)


def test_a_sum_over_many_columns_is_learnt_from_few_values() -> None:
    rng = np.random.default_rng(8)
    points, new = rng.random((60, 40)), rng.random((100, 40))
    strengths = rng.random(40) ** 3

    def total(rows: np.ndarray) -> np.ndarray:
        return (1 - rows) ** 2 @ strengths

    both = _fitted((additive, joint), (points, points), total(points))
    alone = _fitted((joint,), (points,), total(points))
    missed = [
        np.abs(process.predict(blocks)[0] - total(new)).mean()
        for process, blocks in ((both, (new, new)), (alone, (new,)))
    ]
    assert missed[0] < 0.9 * missed[1]
    assert both._settings.weights[0] > 0.5
