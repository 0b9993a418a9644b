from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from automl_compress.pareto import Reference, front_mask, spread_subset

SHAPES = st.tuples(st.integers(1, 14), st.integers(2, 4))
GRID = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5])
POINTS = arrays(np.float64, SHAPES, elements=GRID)
BROKEN = arrays(
    np.float64, SHAPES, elements=st.one_of(GRID, st.sampled_from([np.inf, -np.inf, np.nan]))
)


def _brute_front(values: np.ndarray) -> list[bool]:
    good = np.isfinite(values).all(axis=1)

    def beaten(i: int) -> bool:
        return any(
            good[j] and (values[j] <= values[i]).all() and ((values[j] < values[i]).any() or j < i)
            for j in range(len(values))
            if j != i
        )

    return [bool(good[i]) and not beaten(i) for i in range(len(values))]


@given(BROKEN)
def test_front_is_what_comparing_all_pairs_gives(values: np.ndarray) -> None:
    assert front_mask(values).tolist() == _brute_front(values)


@given(POINTS, st.randoms(use_true_random=False))
def test_front_does_not_depend_on_order(values: np.ndarray, random: object) -> None:
    order = np.array(random.sample(range(len(values)), len(values)))  # type: ignore[attr-defined]
    expected = {tuple(row) for row in values[front_mask(values)]}
    assert {tuple(row) for row in values[order][front_mask(values[order])]} == expected


def test_front_of_nothing() -> None:
    assert front_mask(np.empty((0, 3))).tolist() == []
    assert front_mask(np.array([[np.inf, 0.0]])).tolist() == [False]


def test_front_leaves_its_input_alone() -> None:
    values = np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0]])
    for given_values in (values, np.asfortranarray(values), values[::-1]):
        before = given_values.copy()
        assert front_mask(given_values).sum() == 2
        assert np.array_equal(given_values, before)


def _staircase(values: np.ndarray, point: np.ndarray) -> float:
    """Area of a 2-D front, by walking along its steps."""
    scaled = sorted(tuple(row) for row in values / point if (row < 1).all())
    area, height = 0.0, 1.0
    for x, y in scaled:
        if y < height:
            area += (1.0 - x) * (height - y)
            height = y
    return area


@given(arrays(np.float64, st.tuples(st.integers(0, 20), st.just(2)), elements=st.floats(0, 2)))
def test_hypervolume_in_two_dimensions(values: np.ndarray) -> None:
    point = np.array([1.5, 0.5])
    assert Reference(point).share(values) == pytest.approx(_staircase(values, point))


@pytest.mark.parametrize("objectives", [3, 4])
def test_hypervolume_against_counting(objectives: int) -> None:
    rng = np.random.default_rng(objectives)
    point = np.linspace(1.0, 2.0, objectives)
    values = rng.random((12, objectives)) * 2
    samples = rng.random((40_000, objectives)) * point
    dominated = (values[None, :] <= samples[:, None]).all(axis=2).any(axis=1)
    assert Reference(point).share(values) == pytest.approx(dominated.mean(), abs=0.01)


@given(BROKEN)
def test_progress_is_the_share_of_every_beginning(values: np.ndarray) -> None:
    reference = Reference(np.ones(values.shape[1]))
    expected = [reference.share(values[: i + 1]) for i in range(len(values))]
    np.testing.assert_allclose(reference.progress(values), expected, atol=1e-12)


def test_points_on_the_border_count_nothing() -> None:
    reference = Reference(np.array([1.0, 2.0]))
    assert reference.share(np.array([[1.0, 0.0], [0.0, 2.0], [np.nan, 0.0]])) == 0
    assert reference.share(np.array([[0.0, 0.0]])) == 1
    assert reference.share(np.empty((0, 2))) == 0


@settings(max_examples=50)
@given(POINTS, st.integers(0, 6))
def test_spread_subset_is_greedy_and_of_the_front(values: np.ndarray, count: int) -> None:
    front = values[front_mask(values)]
    reference = Reference(np.ones(values.shape[1]))
    chosen = spread_subset(front, reference, count)
    assert len(chosen) == len(set(chosen)) == min(count, len(front))
    assert sorted(chosen) == list(chosen)
    if count:
        singles = [reference.share(row[None]) for row in front]
        assert max(singles) == pytest.approx(max(singles[i] for i in chosen))
        fewer = set(spread_subset(front, reference, count - 1))
        assert fewer <= set(chosen)


def test_spread_subset_keeps_ends_and_middle() -> None:
    x = np.linspace(0.05, 0.95, 19)
    front = np.stack([x, 1 - x], axis=1)
    reference = Reference(np.ones(2))
    chosen = spread_subset(front, reference, 5)
    assert reference.share(front[chosen]) > 0.85 * reference.share(front)
    assert spread_subset(front, reference, 1).tolist() == [9]


def test_spread_subset_takes_useless_points_last_and_in_order() -> None:
    front = np.array([[2.0, 0.1], [0.5, 0.5], [0.1, 2.0]])
    reference = Reference(np.ones(2))
    assert spread_subset(front, reference, 1).tolist() == [1]
    assert spread_subset(front, reference, 2).tolist() == [0, 1]
