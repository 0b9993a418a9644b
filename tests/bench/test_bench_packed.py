"""The table of packed files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automl_compress.bench.packed import SPACES, PackedRow, packed_page
from automl_compress.cli import main


def test_files_of_random_policies_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.json"
    words = ["bench", "packed", "--models", "digits_cnn", "--policies", "3"]
    assert main([*words, "-o", str(tmp_path / "pages"), "--json", str(output)]) == 0
    rows = [PackedRow(**row) for row in json.loads(output.read_text())]
    assert [row.space for row in rows] == [label for label in SPACES for _ in range(4)]
    assert all(row.equal and 0 < row.disk - row.promised < 200 for row in rows)
    for label in SPACES:
        own = [row for row in rows if row.space == label]
        assert [row.smallest for row in own] == [True, False, False, False]
        assert own[0].promised < min(row.promised for row in own[1:])
    assert "| digits_cnn | channels, bits, kernels | 3 |" in capsys.readouterr().out
    assert (tmp_path / "pages" / "packed.md").read_text() == packed_page(rows)


def test_files_off_the_promise_are_counted() -> None:
    sizes = [(100_000, 102_100), (100_000, 101_900), (100_000, 97_000)]
    rows = [PackedRow("net", "s", str(p), False, p, d, True) for p, d in sizes]
    assert "| 3 | 100,000 to 100,000 | -3000 to 2100 |" in packed_page(rows)
    assert "| 1 of 3 | 3 of 3 |" in packed_page(rows)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--models", "resnet21"], "--models must name shipped networks"),
        (["--policies", "0"], "--policies must be at least 1"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "packed", *words, "-o", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
