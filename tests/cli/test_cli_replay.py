from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from automl_compress.cli import main


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    lines = ["channels_a,channels_b,top1,macs"]
    for a, b in itertools.product(range(1, 7), repeat=2):
        lines.append(f"{a},{b},{90 - 3 * (6 - a) ** 1.5 - (6 - b) ** 1.5},{a * b}")
    Path("table.csv").write_text("\n".join(lines))
    return "table.csv"


def test_a_replay_prints_and_writes_its_table(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", table, "--columns", "accuracy=top1", "--strategies", "random"]
    words += ["--strategies", "nsga2", "--seeds", "3", "--budget", "12"]
    words += ["--json", "out.json", "--markdown", "out.md"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "36 policies of 2 genes" in printed
    document = json.loads(Path("out.json").read_text())
    assert document["objectives"] == ["error", "macs"]
    assert {row["evaluations"] for row in document["comparison"]} == {3, 6, 12}
    assert set(document["hypervolume"]) == {
        f"{s}-{i}" for s in ("random", "nsga2") for i in range(3)
    }
    last = document["comparison"][-1]
    curves = [curve[11] for name, curve in document["hypervolume"].items() if "nsga2" in name]
    assert last["hypervolume"] == pytest.approx(sum(curves) / 3, abs=1e-6)
    assert f"{last['hypervolume']:.4f} ±" in printed
    assert f"{last['hypervolume']:.4f} ±" in Path("out.md").read_text()
    assert main(words) == 0
    assert json.loads(Path("out.json").read_text()) == document


def test_genes_may_have_names_and_words_of_their_own(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path(table).read_text().replace("channels_a,channels_b", "operation,width")
    header, *rows = text.splitlines()
    words = [f"op{row[0]}{row[1:]}" for row in rows]
    Path("named.csv").write_text("\n".join([header, *words]))
    command = ["replay", "named.csv", "--columns", "accuracy=top1", "--seeds", "1", "--budget", "8"]
    command += ["--strategies", "nsga2"]
    assert main(command) == 2
    assert "list them: --genes" in capsys.readouterr().err
    assert main([*command, "--genes", "operation", "width"]) == 0
    assert "36 policies of 2 genes" in capsys.readouterr().out


def test_a_replay_goes_on_with_whom_its_file_lacks(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", table, "--columns", "accuracy=top1", "--seeds", "2", "--budget", "8"]
    words += ["--json", "out.json", "--resume", "--strategies", "random"]
    assert main(words) == 0
    first = json.loads(Path("out.json").read_text())
    capsys.readouterr()
    assert main([*words, "nsga2"]) == 0
    assert "racing random" not in capsys.readouterr().out
    both = json.loads(Path("out.json").read_text())
    for kind in ("hypervolume", "accuracy"):
        assert set(both[kind]) == {f"{s}-{i}" for s in ("random", "nsga2") for i in range(2)}
        assert both[kind]["random-1"] == first[kind]["random-1"]
    assert main([*words[:-5], "--resume", "--strategies", "random"]) == 2
    assert "with --json" in capsys.readouterr().err
    assert main([*words, "--objectives", "error", "macs", "--constraints", "macs <= 0.5x"]) == 2
    assert "has others" in capsys.readouterr().err
    Path("out.json").write_text("[1]")
    assert main(words) == 2
    assert "is none" in capsys.readouterr().err


def test_a_replay_that_goes_on_says_what_one_in_one_go_says(table: str) -> None:
    """To the last digit: equal results are no different for having been stored."""
    words = ["replay", table, "--columns", "accuracy=top1", "--seeds", "6", "--budget", "36"]
    both = ["--strategies", "random", "scaled-random"]
    assert main([*words, *both, "--json", "whole.json"]) == 0
    assert main([*words, *both[:2], "--json", "parts.json"]) == 0
    assert main([*words, *both, "--json", "parts.json", "--resume"]) == 0
    whole, parts = (json.loads(Path(name).read_text()) for name in ("whole.json", "parts.json"))
    assert parts == whole
    last = [row for row in parts["comparison"] if row["evaluations"] == 36]
    assert [row["p"] for row in last] == [1.0, None]  # both have seen the whole table


def test_who_has_nothing_left_to_ask_for_is_named(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["replay", table, "--columns", "accuracy=top1", "--seeds", "2", "--budget", "12"]
    words += ["--json", "out.json", "--strategies", "random", "uniform"]
    assert main(words) == 0
    said = "Had nothing left to ask for before 12 evaluations: uniform 6"
    assert capsys.readouterr().out.splitlines()[-1] == said
    assert main([*words, "--resume", "--markdown", "out.md"]) == 0
    assert said in capsys.readouterr().out
    assert said in Path("out.md").read_text()
    document = json.loads(Path("out.json").read_text())
    assert document["asked"] == {"random-0": 12, "random-1": 12, "uniform-0": 6, "uniform-1": 6}


@pytest.mark.parametrize("command", [["replay"], ["bench", "ablation"]])
def test_one_seed_is_said_to_be_one(
    table: str, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    words = [*command, table, "--columns", "accuracy=top1", "--seeds", "1", "--budget", "2"]
    assert main([*words, "--json", "out.json", "--markdown", "out.md"]) == 0
    found = json.loads(Path("out.json").read_text())
    rows = found["comparison"] if "replay" in command else found
    assert {row["hypervolume_sd"] for row in rows} == {None}
    written = Path("out.md").read_text()
    assert "±" not in capsys.readouterr().out + written
    assert "one seed" in written


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["missing.csv"], "cannot be read"),
        (["table.csv"], "name columns"),
        (["table.csv", "--columns", "top1"], "must be METRIC=COLUMN"),
        (["table.csv", "--columns", "accuracy=top1", "accuracy=macs"], "'accuracy' once"),
        (["table.csv", "--columns", "accuracy=top1", "--seeds", "0"], "--seeds must be at least 1"),
        (["table.csv", "--columns", "accuracy=top1", "--budget", "0"], "--budget must be"),
        (["table.csv", "--columns", "accuracy=top1", "--strategies", "randm"], "'random'"),
        (["table.csv", "--columns", "accuracy=top1", "--strategies", *["random"] * 2], "repeats"),
        (["table.csv", "--columns", "accuracy=top1", "--objectives", "error"], "a cost"),
        (["table.csv", "--columns", "accuracy=top1", "--constraints", "macs"], "must be like"),
        (
            ["table.csv", "--columns", "accuracy=top1", "--objectives", "divergence", "macs"],
            "the table has no 'divergence'",
        ),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    table: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["replay", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_column_that_comes_twice_is_refused(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """pandas names the second one `macs.1`."""
    header, rows = Path(table).read_text().split("\n", 1)
    Path(table).write_text(f"{header},macs\n{rows}")
    assert main(["replay", table, "--columns", "accuracy=top1"]) == 2
    error = capsys.readouterr().err
    assert "columns must differ, but 'table.csv' repeats 'macs'; rename or remove one" in error
    assert error.count("\n") == 1
