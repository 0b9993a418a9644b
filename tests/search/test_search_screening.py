from __future__ import annotations

import numpy as np
import pytest

from automl_compress.evaluate import Evaluation
from automl_compress.search.record import Record
from automl_compress.search.screening import Surrogate, coordinates
from automl_compress.space import Gene, Policy, SearchSpace
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


def _gained(record: Record, policies: list[Policy]) -> float:
    """Hypervolume that the policies really add."""
    cells, total = record.cells(), 0.0
    for costs, policy in zip(record.shares(policies), policies, strict=True):
        error = 1.0 - NETWORK.accuracy(policy)
        total += float(cells.gains(costs[None], np.array([error]))[0])
        cells = cells.joined(costs, error)
    return total


def test_halving_channels_or_bits_is_one_way_and_kernels_count_linearly() -> None:
    space = SearchSpace(
        [
            Gene("channels:a", "channels", (8, 16, 32, 64)),
            Gene("weight_bits:a", "weight_bits", (2, 4, 8)),
            Gene("kernel_sparsity:a", "kernel_sparsity", (0.5, 0.25, 0.0)),
            Gene("channels:b", "channels", (8,)),
        ]
    )
    table = coordinates(space)
    assert table[0] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert table[1, :3] == pytest.approx([0, 0.5, 1])
    assert table[2, :3] == pytest.approx([0, 0.5, 1])
    assert table[3, 0] == 1


def test_the_chosen_gain_more_than_others() -> None:
    record = _record(60)
    pool = [policy for policy in _policies(200, 1) if policy not in _policies(60, 0)]
    chosen = Surrogate(NETWORK.space, record).choose(pool, 5)
    assert len(set(chosen)) == 5
    rng = np.random.default_rng(2)
    others = [_gained(record, [pool[i] for i in rng.choice(len(pool), 5)]) for _ in range(20)]
    assert _gained(record, [pool[place] for place in chosen]) > max(others)


def test_a_small_pool_is_chosen_whole_and_failures_are_no_lesson() -> None:
    record = _record(10)
    record.add([Evaluation.failed(NETWORK.space.largest, "e", "no memory")])
    pool = _policies(3, 5)
    assert sorted(Surrogate(NETWORK.space, record).choose(pool, 8)) == [0, 1, 2]
