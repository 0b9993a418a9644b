from __future__ import annotations

import numpy as np
import pytest

from automl_compress.pareto import Reference
from automl_compress.search.improvement import CostCells

LIMIT = 0.3
ONE = [(LIMIT, 1.0)]


def _points(count: int, costs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((count, costs)), LIMIT * rng.random(count) * 1.2


@pytest.mark.parametrize("boxes", [ONE, [(1.0, 0.25), *ONE], [(0.2, 1.0), *ONE]])
@pytest.mark.parametrize("costs", [1, 2])
def test_gains_are_what_the_hypervolumes_grow_by(
    costs: int, boxes: list[tuple[float, float]]
) -> None:
    """Against moocore: gains are weighted shares of the boxes."""
    known, errors = _points(25, costs, 0)
    cells = CostCells(known, errors, boxes)
    new, new_errors = _points(40, costs, 1)
    found = cells.gains(new, new_errors)
    values = np.column_stack([known, errors])
    for cost, error, gain in zip(new, new_errors, found, strict=True):
        joined = np.vstack([values, np.append(cost, error)])
        references = [(Reference(np.append(np.ones(costs), limit)), w) for limit, w in boxes]
        grown = sum(w * (r.share(joined) - r.share(values)) for r, w in references)
        assert gain == pytest.approx(grown, abs=1e-12)
    assert (found > 0).any()
    assert (found == 0).any()


def test_where_no_error_is_allowed_nothing_gains() -> None:
    cells = CostCells(*_points(10, 2, 2), [(0.0, 1.0), (0.0, 1.0)])
    assert (cells.gains(*_points(5, 2, 3)) == 0).all()


def test_several_errors_of_one_candidate_are_told_apart() -> None:
    cells = CostCells(*_points(10, 2, 2), ONE)
    costs, errors = _points(5, 2, 3)
    both = cells.gains(costs, np.stack([errors, errors / 2], axis=1))
    assert np.array_equal(both[:, 0], cells.gains(costs, errors))
    assert np.array_equal(both[:, 1], cells.gains(costs, errors / 2))


def test_what_is_believed_gains_nothing_again() -> None:
    cells = CostCells(np.zeros((0, 2)), np.zeros(0), ONE)
    cost = np.array([0.5, 0.25])
    gains = cells.gains(cost[None], np.array([0.1]))
    assert gains == pytest.approx([0.5 * 0.75 * 0.2 / LIMIT])
    joined = cells.joined(cost, 0.1)
    assert joined.gains(cost[None], np.array([0.1])) == pytest.approx([0.0])


def test_large_fronts_are_thinned_and_stay_near() -> None:
    rng = np.random.default_rng(0)
    known = rng.random((300, 2))
    errors = LIMIT * (1 - known.mean(axis=1)) * (0.9 + 0.1 * rng.random(300))
    cells = CostCells(known, errors, ONE)
    new = rng.random((30, 2))
    reference = Reference(np.array([1.0, 1.0, LIMIT]))
    values = np.column_stack([known, errors])
    gains = cells.gains(new, np.full(30, 0.02))
    exact = [
        (reference.share(np.vstack([values, np.append(c, 0.02)])) - reference.share(values))
        for c in new
    ]
    assert np.corrcoef(gains, exact)[0, 1] > 0.99


@pytest.mark.parametrize("costs", [1, 2])
def test_joined_cells_are_those_of_all_points(costs: int) -> None:
    known, errors = _points(15, costs, 4)
    more, more_errors = _points(12, costs, 5)
    cells = CostCells(known, errors, ONE)
    for cost, error in zip(more, more_errors, strict=True):
        cells = cells.joined(cost, float(error))
    whole = CostCells(np.vstack([known, more]), np.append(errors, more_errors), ONE)
    new, new_errors = _points(30, costs, 6)
    assert cells.gains(new, new_errors) == pytest.approx(whole.gains(new, new_errors), abs=1e-12)
