"""Files that commands write at their end are checked before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest

from automl_compress.cli import main, options
from automl_compress.cli.main import _parser
from automl_compress.errors import InputError

MEASURING = [
    ["bench", "strategies"],
    ["bench", "ablation"],
    ["bench", "estimate", "sweep.yaml"],
    ["bench", "repair", "sweep.yaml"],
    ["bench", "packed"],
    ["bench", "latency", "digits_cnn"],
    ["bench", "speedup", "digits_cnn"],
    ["replay", "table.csv"],
    ["audit", "folder"],
]
PAGES = [words for words in MEASURING if words[-1] not in ("ablation", "strategies")][:5]


@pytest.mark.parametrize("words", MEASURING, ids=" ".join)
def test_json_in_a_folder_that_cannot_be_made(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below = tmp_path / "file"
    below.write_text("kept")
    assert main([*words, "--json", str(below / "new" / "rows.json")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"--json: must lie in a folder that can be written, but '{below}' is none" in error
    assert below.read_text() == "kept"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["space", "digits_cnn"], "-o"),
        (["bench", "strategies", "--strategies", "random", "--evaluations", "10"], "--json"),
    ],
)
def test_files_in_a_missing_folder_are_written_with_it(
    words: list[str], option: str, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "folder" / "file"
    assert main([*words, option, str(path)]) == 0
    assert path.stat().st_size > 0


def test_json_that_is_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "strategies", "--json", str(tmp_path)]) == 2
    assert "is a folder; add a name" in capsys.readouterr().err


@pytest.mark.parametrize("words", PAGES, ids=" ".join)
def test_a_page_below_a_file(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    below = tmp_path / "file"
    below.write_text("kept")
    assert main([*words, "-o", str(below / "pages")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"must be a folder that can be written, but '{below}' is none" in error
    assert below.read_text() == "kept"


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    options.write_file(tmp_path / "new" / "page.md", "text")
    assert (tmp_path / "new" / "page.md").read_text() == "text"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(InputError, match="must be a file that can be written"):
        options.write_file(tmp_path / "file" / "page.md", "text")


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _parsers(below)


def test_every_command_and_every_word_of_it_is_explained() -> None:
    parsers = list(_parsers(_parser()))
    assert len(parsers) > 20
    for parser in parsers:
        assert (parser.description or "").endswith("."), parser.prog
        for action in parser._actions:
            if not isinstance(action, argparse._SubParsersAction):
                assert action.help, (parser.prog, action.dest)
