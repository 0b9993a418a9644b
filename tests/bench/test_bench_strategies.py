from __future__ import annotations

import json
from pathlib import Path

import pytest

from automl_compress.bench.strategies import OverheadRow, measure_strategies, overhead_table
from automl_compress.cli import main
from automl_compress.errors import InputError
from automl_compress.search.local import LocalSearch


def test_every_strategy_asked_for_has_a_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "strategies", "--strategies", "random", "local", "--genes", "4"]
    output = tmp_path / "rows.json"
    assert main([*words, "--evaluations", "12", "--json", str(output)]) == 0
    rows = json.loads(output.read_text())
    assert [row["strategy"] for row in rows] == ["random", "local"]
    assert all(row["genes"] == 4 and row["evaluations"] == 12 for row in rows)
    assert all(row["milliseconds"] > 0 for row in rows)
    assert "| local | 4 | 0 | 12 |" in capsys.readouterr().out


def test_a_space_that_ends_ends_the_measurement() -> None:
    (row,) = measure_strategies(["random"], 2, 1_000)
    assert row.evaluations == 20


def test_who_needs_long_is_marked() -> None:
    rows = [OverheadRow("slow", 4, 0, 10, 50.1, 60.0), OverheadRow("fast", 4, 0, 10, 49.9, 60.0)]
    _, _, slow, fast = overhead_table(rows).splitlines()
    assert "above 50 ms" in slow
    assert "above" not in fast


def test_what_is_known_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks for it again, and nobody begins at the beginning."""
    (row,) = measure_strategies(["random"], 2, 1_000, known=15)
    assert (row.known, row.evaluations) == (15, 5)
    skipped = []
    monkeypatch.setattr(LocalSearch, "skip_start", lambda self: skipped.append(len(self._archive)))
    list(measure_strategies(["local"], 8, 10, known=30))
    assert len(skipped) == 1
    assert skipped[0] > 0


@pytest.mark.parametrize(
    ("genes", "evaluations", "known"), [(3, 100, 0), (0, 100, 0), (4, 9, 0), (4, 10, -1)]
)
def test_numbers_are_checked(genes: int, evaluations: int, known: int) -> None:
    with pytest.raises(InputError, match="must be"):
        list(measure_strategies(["random"], genes, evaluations, known))
