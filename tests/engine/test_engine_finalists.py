from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from engine_races import CONTESTANTS, frame, race

from automl_compress.engine.promotion import PICKED_LOSSES, Candidates, candidates_of_race
from automl_compress.engine.serial import SerialEngine
from automl_compress.engine.study import Study
from automl_compress.errors import InterruptedStudy
from automl_compress.evaluate import Constraint
from automl_compress.ledger import Manifest, StudyResult
from automl_compress.space import Policy


def _result(folder: Path) -> StudyResult:
    engine = SerialEngine(race(folder))
    engine.run(CONTESTANTS, lambda _: None)
    engine.close()
    frame(folder)  # writes the manifest
    return StudyResult(folder)


def test_the_cheapest_networks_at_each_loss_are_finalists(tmp_path: Path) -> None:
    result = _result(tmp_path)
    finalists = set(candidates_of_race(result).finalists(8))
    front = result.front()
    baseline = 1 - result.manifest.baseline["accuracy"]
    checked = 0
    for loss in PICKED_LOSSES:
        good = [p for p in front if p.objectives["error"] - baseline <= loss]
        for name in ("size_bytes", "macs"):
            if good:
                least = min(point.objectives[name] for point in good)
                assert any(p.objectives[name] == least and p.policy in finalists for p in good)
                checked += 1
    assert checked


@pytest.mark.parametrize("count", [1, 3, 1_000])
def test_there_are_no_more_finalists_than_asked_for(tmp_path: Path, count: int) -> None:
    result = _result(tmp_path)
    finalists = candidates_of_race(result).finalists(count)
    assert len(finalists) == len(set(finalists)) == min(count, len(result.front()))


@pytest.mark.parametrize(("limit", "chosen"), [(40.0, {0, 3}), (None, {0, 1})])
def test_finalists_are_spread_where_constraints_leave_the_original_out(
    limit: float | None, chosen: set[int]
) -> None:
    """All are far from it: the useful box would hold none of them, and the first would be taken."""
    values = np.array([[0.30, 40.0], [0.31, 39.9], [0.32, 39.8], [0.33, 10.0]])
    policies = tuple(Policy({"channels:a": width}) for width in range(1, 5))
    limits = () if limit is None else (Constraint("macs", limit),)
    baseline = {"error": 0.06, "macs": 100.0}
    found = Candidates(policies, ("error", "macs"), values, values[:, 0], baseline, limits)
    assert set(found.finalists(2)) == {policies[row] for row in chosen}
    assert set(found.climbing(2)) == {policies[row] for row in chosen}


@pytest.mark.parametrize(("lost", "chosen"), [(0.0, {0, 3}), (0.04, {0, 1}), (0.2, {0, 3})])
def test_finalists_are_spread_over_what_loses_little_of_the_given_network(
    lost: float, chosen: set[int]
) -> None:
    """Or of the sparsified one, where sparsity training left nothing useful of the given one."""
    values = np.array([[0.33, 40.0], [0.34, 39.9], [0.35, 39.85], [0.38, 10.0]])
    policies = tuple(Policy({"channels:a": width}) for width in range(1, 5))
    baseline = {"error": 0.3, "macs": 100.0}
    found = Candidates(policies, ("error", "macs"), values, values[:, 0], baseline, (), lost)
    assert set(found.finalists(2)) == {policies[row] for row in chosen}


def test_what_loses_just_a_loss_is_picked_at_it() -> None:
    """0.08 - 0.06 is a little more than 0.02."""
    values = np.array([[0.06, 100.0], [0.08, 10.0]])
    policies = (Policy({"channels:a": 2}), Policy({"channels:a": 1}))
    baseline = {"error": 0.06, "macs": 100.0}
    found = Candidates(policies, ("error", "macs"), values, values[:, 0], baseline)
    assert found._picked(np.arange(2)) == [0, 0, 1]


def test_stopping_while_finalists_are_measured_leaves_a_state_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    study = Study(
        study="tiny",
        workload={"model": "digits_cnn", "train": {"epochs": 1}},
        estimate={"images": 50, "calibration_images": 16},
        strategies=["scaled-random"],
        seeds=1,
        budget={"evaluations": 3},
        engine={"kind": "serial"},
    )
    monkeypatch.setattr(SerialEngine, "measure", stop)
    with pytest.raises(InterruptedStudy, match="resume"):
        study.run(tmp_path / "out")
    assert Manifest.read(tmp_path / "out").status == "interrupted"
    monkeypatch.undo()
    assert Study.resume(tmp_path / "out").manifest.status == "finished"


def test_losses_count_against_the_network_that_sparsity_training_was_given() -> None:
    values = np.array([[0.06, 100.0], [0.07, 40.0], [0.085, 10.0]])
    policies = tuple(Policy({"channels:a": width}) for width in (3, 2, 1))
    baseline = {"error": 0.065, "macs": 100.0}
    found = Candidates(policies, ("error", "macs"), values, values[:, 0], baseline)
    assert found._picked(np.arange(3)) == [1, 1, 2]
    assert replace(found, sparsity_loss=0.01)._picked(np.arange(3)) == [0, 0, 1]
