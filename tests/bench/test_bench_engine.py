"""What `bench engine` says of a race on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automl_compress.bench.engine import EngineCost, engine_table
from automl_compress.cli import main

SWEEP = """
study: tiny
workload: {model: digits_cnn, train: {epochs: 1}}
estimate: {images: 50, calibration_images: 32}
budget: {evaluations: 2}
engine: {workers: 1}
"""


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_here")
def test_a_race_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    rows = tmp_path / "rows.json"
    words = ["bench", "engine", str(tmp_path / "sweep.yaml"), "--json", str(rows)]
    assert main([*words, "--contestants", "2", "--evaluations", "6"]) == 0
    found = json.loads(rows.read_text())
    assert (found["workers"], found["contestants"], found["evaluations"]) == (1, 2, 12)
    assert 0 < found["busy"] < 1.5
    assert found["dispatcher_ms"] > 0
    assert found["baseline_mb"] > 50
    assert len(found["evaluators_mb"]) == 1
    assert "| evaluators | 1 |" in capsys.readouterr().out


def test_the_largest_evaluator_is_stated() -> None:
    table = engine_table(EngineCost(2, 4, 200, 1.234, 0.973, 280.4, (120.2, 260.6)))
    assert "| contestants x evaluations | 4 x 50 |" in table
    assert "per evaluation | 1.23 |" in table
    assert "on estimates | 97.3% |" in table
    assert "at most | 261 MB |" in table


def test_numbers_are_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    assert main(["bench", "engine", str(tmp_path / "sweep.yaml"), "--contestants", "1"]) == 2
    assert "--contestants must be at least 2" in capsys.readouterr().err
