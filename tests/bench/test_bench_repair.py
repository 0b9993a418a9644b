"""The table of repairs, on handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automl_compress.bench.repair import LEVELS
from automl_compress.cli import main
from automl_compress.compress import REPAIRS

SWEEP = Path(__file__).parents[2] / "sweeps" / "quickstart.yaml"


def test_every_repair_is_measured_at_every_level(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.json"
    assert main(["bench", "repair", str(SWEEP), "--images", "150", "--json", str(output)]) == 0
    rows = json.loads(output.read_text())
    seen = {(row["network"], row["level"], row["repair"]) for row in rows}
    assert seen == {(n, e, r) for n in ("as trained", "folded") for e in LEVELS for r in REPAIRS}
    by = {(row["network"], row["level"], row["repair"]): row["accuracy"] for row in rows}
    for network in ("as trained", "folded"):
        assert by[network, "medium", "auto"] > by[network, "medium", "none"]
    assert "| folded | variance |" in capsys.readouterr().out


@pytest.mark.parametrize("images", ["0", "1000000"])
def test_impossible_image_counts_are_refused(
    images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "repair", str(SWEEP), "--images", images]) == 2
    assert "--images must be at" in capsys.readouterr().err
