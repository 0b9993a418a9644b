"""The table of repairs, on handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automl_compress.bench.repair import LEVELS
from automl_compress.cli import main
from automl_compress.cli.bench import _training_facts
from automl_compress.compress import REPAIRS

SWEEP = """
study: tiny
workload: {model: digits_cnn, train: {epochs: 2}}
space: auto
estimate: {images: 100, calibration_images: 64}
budget: {evaluations: 2}
"""


@pytest.fixture
def sweep(tmp_path: Path) -> str:
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return str(tmp_path / "sweep.yaml")


@pytest.mark.slow
def test_every_repair_is_measured_at_every_level(
    sweep: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.json"
    command = ["bench", "repair", sweep, "--images", "150", "-o", str(tmp_path / "pages")]
    assert main([*command, "--json", str(output)]) == 0
    rows = json.loads(output.read_text())
    seen = {(row["network"], row["level"], row["repair"]) for row in rows}
    assert seen == {(n, e, r) for n in ("as trained", "folded") for e in LEVELS for r in REPAIRS}
    by = {(row["network"], row["level"], row["repair"]): row["quality"] for row in rows}
    for network in ("as trained", "folded"):
        assert by[network, "medium", "auto"] > by[network, "medium", "none"]
    assert "| folded | variance |" in capsys.readouterr().out
    page = (tmp_path / "pages" / "tiny.md").read_text()
    harsh = next(row for row in rows if row["repair"] == "auto" and row["level"] == "harsh")
    assert f"{harsh['quality']:.2%} ({harsh['seconds']:.1f} s)" in page
    assert f"uncompressed network: {harsh['baseline']:.2%}. Judged on 150 test images" in page


def test_the_page_says_what_the_card_says_of_the_weights(tmp_path: Path) -> None:
    weights = tmp_path / "net.safetensors"
    assert _training_facts(weights) == []
    card = {"version": 1, "training": {"epochs": 6}, "device": "cpu"}
    accuracy = {"held_out": 0.875, "test": 0.5}
    weights.with_suffix(".json").write_text(json.dumps({**card, "accuracy": accuracy}))
    (fact,) = _training_facts(weights)
    assert "6 epochs on cpu; their held-out accuracy is 87.50%" in fact


@pytest.mark.parametrize("images", ["0", "1000000"])
def test_impossible_image_counts_are_refused(
    images: str, sweep: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "repair", sweep, "--images", images]) == 2
    assert "--images must be at" in capsys.readouterr().err
