from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from automl_compress.engine.replay import replay, table_problem
from automl_compress.errors import StudyError
from automl_compress.evaluate.recorded import RecordedEstimator
from automl_compress.evaluate.table import read_table
from automl_compress.pareto import Reference
from automl_compress.testing import ToyNetwork

NETWORK = ToyNetwork(layers=2, weight_bits=(2, 4, 8))


def _table() -> RecordedEstimator:
    """The toy's space, recorded."""
    space = NETWORK.space
    shape = tuple(space.sizes)
    metrics = {name: np.empty(shape) for name in ("accuracy", "size_bytes", "macs")}
    for place in itertools.product(*map(range, shape)):
        policy = space.decode(np.array(place))
        found = {"accuracy": NETWORK.accuracy(policy), **NETWORK.costs(policy)}
        for name, values in metrics.items():
            values[place] = found[name]
    return RecordedEstimator(space, metrics)


def test_who_tries_everything_reaches_the_exact_front() -> None:
    table = _table()
    problem = table_problem(table)
    heard: list[object] = []
    done = replay(table, problem, ["random"], [0, 1], 200, heard.append)
    assert heard == done
    best = 1 - table.values(["error"]).min()
    for contestant in done:
        curve = contestant.hypervolume
        assert len(curve) == 200 > table.space.cardinality
        assert (np.diff(curve) >= 0).all()
        assert curve[70] < 1 - 1e-9 or curve[100] < 1 - 1e-9
        assert curve[-1] == pytest.approx(1.0)
        assert contestant.quality[-1] == pytest.approx(best)
        assert contestant.quality[0] < best


def test_curves_are_hypervolume_over_the_fronts() -> None:
    table = _table()
    problem = table_problem(table, ("error", "macs"))
    (done,) = replay(table, problem, ["uniform"], [0], 30, lambda _: None)
    values = table.values(("error", "macs"))
    reference = Reference(values.max(axis=0))
    assert problem.counted_error == reference.point[0]  # strategies know what counts
    tried = [table.space.largest]
    told = np.array([[1 - NETWORK.accuracy(p), NETWORK.costs(p)["macs"]] for p in tried])
    assert done.hypervolume[0] == pytest.approx(reference.share(told) / reference.share(values))


def test_what_breaks_a_constraint_counts_nothing() -> None:
    table = _table()
    accurate = 0.9
    problem = table_problem(table, ("error", "macs"), [f"accuracy >= {accurate}", "macs <= 0.9x"])
    (done,) = replay(table, problem, ["random"], [0], 200, lambda _: None)
    assert done.hypervolume[-1] == pytest.approx(1.0)
    counted = done.quality[done.quality > 0]
    assert counted.min() >= accurate
    assert len(counted) < 200


def test_what_the_table_cannot_answer_is_refused() -> None:
    table = _table()
    with pytest.raises(StudyError, match="no 'bitops'"):
        table_problem(table, ("error", "bitops"))
    with pytest.raises(StudyError, match="no 'params'"):
        table_problem(table, (), ["params <= 0.5x"])
    with pytest.raises(StudyError, match="none of the table meets macs <= 1"):
        replay(table, table_problem(table, (), ["macs <= 1"]), ["random"], [0], 5, lambda _: None)
    whole = table_problem(table, (), [f"error <= {table.baseline['error']}"])
    with pytest.raises(StudyError, match="of what meets the constraints none is in error"):
        replay(table, whole, ["random"], [0], 5, lambda _: None)
    with pytest.raises(StudyError, match="did you mean 'random'"):
        replay(table, table_problem(table), ["randm"], [0], 5, lambda _: None)


@pytest.mark.table
@pytest.mark.skipif("AUTOML_COMPRESS_TEST_NATS" not in os.environ, reason="no recorded table")
def test_random_search_on_nats_reaches_what_others_measured() -> None:
    """200 draws: 95.2 % of the true hypervolume, best accuracy 93.22 +- 0.15 %."""
    path = Path(os.environ["AUTOML_COMPRESS_TEST_NATS"])
    columns = {"accuracy": "test_accuracy_cifar10", "macs": "macs_cifar10"}
    table = read_table(path, columns).estimator()
    problem = table_problem(table, ("error", "macs"))
    done = replay(table, problem, ["random"], range(30), 200, lambda _: None)
    assert np.mean([c.hypervolume[-1] for c in done]) == pytest.approx(0.952, abs=0.003)
    accuracy = [c.quality[-1] for c in done]
    assert np.mean(accuracy) == pytest.approx(0.9322, abs=0.0008)
    assert np.std(accuracy) == pytest.approx(0.0015, abs=0.0005)
