from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from automl_compress.evaluate import USEFUL_LOSS, Evaluation
from automl_compress.search.record import Record
from automl_compress.search.screening import Screen, Surrogate, _expected
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=3)
ESTIMATOR = ToyEstimator(NETWORK)


def _policies(count: int, seed: int) -> list[Policy]:
    space, rng = NETWORK.space, np.random.default_rng(seed)
    found = {space.decode(space.sample(rng)): None for _ in range(2 * count)}
    return list(found)[:count]


def _record(count: int) -> Record:
    record = Record(NETWORK.problem())
    record.add(ESTIMATOR.estimate(policy) for policy in _policies(count, 0))
    return record


def _surrogate(record: Record) -> Surrogate:
    found = Screen(NETWORK.space, record).surrogate()
    assert found is not None
    return found


def _gained(record: Record, policies: list[Policy]) -> float:
    """Hypervolume that the policies really add."""
    cells, total = record.cells(), 0.0
    for costs, policy in zip(record.shares(policies), policies, strict=True):
        error = 1.0 - NETWORK.accuracy(policy)
        total += float(cells.gains(costs[None], np.array([error]))[0])
        cells = cells.joined(costs, error)
    return total


def test_the_chosen_gain_more_than_others() -> None:
    record = _record(60)
    pool = [policy for policy in _policies(200, 1) if policy not in _policies(60, 0)]
    chosen = _surrogate(record).choose(pool, 5)
    assert len(set(chosen)) == 5
    rng = np.random.default_rng(2)
    others = [_gained(record, [pool[i] for i in rng.choice(len(pool), 5)]) for _ in range(20)]
    assert _gained(record, [pool[place] for place in chosen]) > max(others)


def _fails(policy: Policy) -> bool:
    """What halves the middle layer does not run."""
    return policy["channels:layer1"] <= 8


def test_what_fails_like_others_is_not_chosen() -> None:
    record = Record(NETWORK.problem())
    for policy in _policies(60, 0):
        failed = Evaluation.failed(policy, "e", "no memory")
        record.add([failed if _fails(policy) else ESTIMATOR.estimate(policy)])
    pool = [policy for policy in _policies(200, 1) if policy not in _policies(60, 0)]
    best = np.argsort(-_surrogate(record).gains(pool))[:10]
    assert sum(map(_fails, pool)) > 40
    assert not any(_fails(pool[place]) for place in best)
    assert not _fails(pool[_surrogate(record).choose(pool, 1)[0]])


def test_a_small_pool_is_chosen_whole_and_failures_are_no_lesson() -> None:
    record = _record(10)
    record.add([Evaluation.failed(NETWORK.space.largest, "e", "no memory")])
    pool = _policies(3, 5)
    assert sorted(_surrogate(record).choose(pool, 8)) == [0, 1, 2]


def test_a_restored_record_is_learnt_alike() -> None:
    """Settings follow from the record alone, whenever a surrogate was asked for before."""
    grown, pool = Record(NETWORK.problem()), _policies(200, 1)
    screen = Screen(NETWORK.space, grown)
    for policy in _policies(60, 0):
        grown.add([ESTIMATOR.estimate(policy)])
        kept = screen.surrogate()
    assert kept is not None
    assert kept.choose(pool, 9) == _surrogate(_record(60)).choose(pool, 9)


def test_gains_are_those_of_a_first_choice() -> None:
    record, pool = _record(30), _policies(50, 4)
    surrogate = _surrogate(record)
    gains = surrogate.gains(pool)
    assert [int(np.argmax(gains))] == surrogate.choose(pool, 1)
    assert surrogate.gains(pool[::-1]).tolist() == gains[::-1].tolist()


def test_lazily_chosen_are_the_greedily_chosen() -> None:
    record, pool = _record(30), _policies(150, 4)
    surrogate = _surrogate(record)
    columns = zip(*surrogate._predicted(pool), strict=True)
    costs, believed, errors, _, _ = (np.array(column) for column in columns)
    cells, left, slow = record.cells(), list(range(len(pool))), []
    for _ in range(12):
        gains = _expected(cells, costs[left], errors[left])
        slow.append(left.pop(int(np.argmax(gains))))
        cells = cells.joined(costs[slow[-1]], float(believed[slow[-1]]))
    assert surrogate.choose(pool, 12) == slow


def test_where_one_hypervolume_counts_errors_fill_it_evenly_and_no_further() -> None:
    """As in a replayed table; in a study an error below use fills two hypervolumes at once."""
    problem = replace(NETWORK.problem(("error", "macs")), counted_error=0.5)
    record = Record(problem)
    errors, share = np.array([0.1, 0.15, 0.3, 0.5, 0.7]), np.full((5, 1), 0.25)
    expected = 0.75 * np.array([0.8, 0.7, 0.4, 0.0, 0.0])
    for plain in (0.0, 1.0):
        assert record.cells(plain).gains(share, errors) == pytest.approx(expected)
    record = Record(replace(problem, counted_error=None))
    kinked = record.cells(plain=1.0).gains(share, errors)
    useful = NETWORK.baseline["error"] + USEFUL_LOSS
    assert kinked == pytest.approx(0.75 * ((1 - errors) + np.maximum(0, 1 - errors / useful)))


def _told(record: Record, mildness: float, error: float) -> None:
    """Tell of a network with all genes alike."""
    policy = NETWORK.space.decode(NETWORK.space.from_unit(np.full(len(NETWORK.space), mildness)))
    metrics = ESTIMATOR.estimate(policy).metrics | {"accuracy": 1 - error}
    record.add([replace(ESTIMATOR.estimate(policy), metrics=metrics)])


def test_under_a_tight_constraint_what_is_useful_follows_the_least_error_that_meets_it() -> None:
    free, tight = NETWORK.problem(("error", "macs")), NETWORK.problem(constraints=["macs <= 0.3x"])
    records = [Record(free), Record(tight)]
    assert records[0].useful_error == pytest.approx(free.baseline["error"] + USEFUL_LOSS)
    assert records[1].useful_error == 1.0
    for record in records:
        _told(record, 1.0, 0.08)  # breaks the constraint
        _told(record, 0.4, 0.45)
        _told(record, 0.3, 0.55)
    assert records[0].useful_error == pytest.approx(free.baseline["error"] + USEFUL_LOSS)
    assert records[1].useful_error == pytest.approx(0.45 + USEFUL_LOSS)
    again = Record(tight)
    _told(again, 0.2, 0.3)
    again.load_state_dict(records[1].state_dict())
    assert again.useful_error == records[1].useful_error


def test_under_a_tight_constraint_a_better_network_gains_more_than_a_ruined_smaller_one() -> None:
    record = Record(NETWORK.problem(("error", "macs"), constraints=["macs <= 0.3x"]))
    _told(record, 0.4, 0.45)
    better, ruined = 0.40, 0.88
    gains = record.cells().gains(np.array([[0.3], [0.05]]), np.array([better, ruined]))
    assert gains[0] > gains[1] == 0
