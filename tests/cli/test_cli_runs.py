"""Whole runs of the command line on the digits network."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from automl_compress.cli import main
from automl_compress.cli.progress import Progress
from automl_compress.engine import RungStanding, Standing, Study
from automl_compress.ledger import StudyResult
from automl_compress.space import load_rules

SWEEP = """
study: tiny
workload: {model: digits_cnn, train: {epochs: 2}}
estimate: {images: 150, calibration_images: 32, repair: recalibrate}
strategies: [nsga2, ddpg]
seeds: 1
budget: {evaluations: 36}
finalists: 3
"""
_SIGNALS = {"ctrl-c": signal.SIGINT, "kill -9": signal.SIGKILL}
_SERIAL = ("--set", "engine.kind=serial")
_ON_RAY = ("--workers", "2")


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP)
    return path


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, undrawn: Callable[[], AbstractContextManager[None]]
) -> Path:
    """The folder of an undisturbed run."""
    place = tmp_path_factory.mktemp("whole")
    (place / "sweep.yaml").write_text(SWEEP)
    out = place / "out"
    serial = ("--set", "engine.kind=serial")
    with undrawn():
        assert main(["search", str(place / "sweep.yaml"), "-o", str(out), *serial]) == 0
    return out


def _table(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "evaluations.parquet")
    return table.drop(columns=["seconds", "finished"])


def _finished(folder: Path) -> dict[str, float]:
    """When each evaluation of the search was made, by policy."""
    if not (folder / "ledger.sqlite").exists():
        return {}
    with closing(sqlite3.connect(folder / "ledger.sqlite", timeout=30)) as ledger:
        if not ledger.execute("SELECT * FROM sqlite_master").fetchall():
            return {}  # the ledger is being made
        rows = ledger.execute("SELECT policy_key || estimator, finished FROM evaluations")
        return dict(rows.fetchall())


def _run(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "automl_compress", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def _signal_after(process: subprocess.Popen[bytes], how: signal.Signals, evaluations: int) -> None:
    """Once the search of the folder `disturbed` has made so many."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        if len(_finished(Path("disturbed"))) >= evaluations:
            break
        time.sleep(0.02)
    if how is signal.SIGINT:
        os.killpg(process.pid, how)  # as a terminal does
    else:
        process.send_signal(how)


def _status() -> str:
    return str(json.loads(Path("disturbed/run.json").read_text())["status"])


@pytest.mark.cluster
@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize(
    "stops",
    [
        ((_SERIAL, "kill -9"),),
        pytest.param(((_SERIAL, "kill -9"), (_ON_RAY, "ctrl-c")), marks=pytest.mark.slow),
        pytest.param(((_SERIAL, "ctrl-c"), (_ON_RAY, "kill -9")), marks=pytest.mark.slow),
    ],
    ids=["killed", "killed first", "killed on Ray"],
)
def test_after_ctrl_c_and_kill_9_a_run_ends_like_an_undisturbed_one(
    stops: tuple[tuple[tuple[str, ...], str], ...],
    sweep: Path,
    whole: Path,
) -> None:
    """Begun in one process, it may go on with workers, which are a cluster's, and ends without."""
    measured = [_finished(Path("disturbed"))]
    for where, how in stops:
        begun = Path("disturbed").exists()
        command = ("resume", "disturbed") if begun else ("search", str(sweep), "-o", "disturbed")
        process = _run(*command, *where)
        _signal_after(process, _SIGNALS[how], len(measured[-1]) + 10)
        _, errors = process.communicate(timeout=120)
        assert how == "kill -9" or process.returncode == 130, errors.decode()
        assert _status() == ("running" if how == "kill -9" else "interrupted")
        measured.append(_finished(Path("disturbed")))
    time.sleep(1.0)  # what Ray left behind dies by itself
    measured[-1] = _finished(Path("disturbed"))
    assert Path("disturbed/tune").is_dir() == (_ON_RAY in dict(stops))
    Study.resume("disturbed", kind="serial")
    after = _finished(Path("disturbed"))
    for before, later in pairwise((*measured, after)):
        assert len(before) < len(later)
        assert {key: after[key] for key in before} == before
    pd.testing.assert_frame_equal(_table(Path("disturbed")), _table(whole))
    fronts = [json.loads((f / "front.json").read_text()) for f in (Path("disturbed"), whole)]
    assert fronts[0] == fronts[1]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["serial", pytest.param("cluster", marks=pytest.mark.cluster)])
def test_a_strategy_of_ones_own_races_and_is_shown(
    kind: str,
    sweep: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It asks for what it would ask for under a registered name."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "engine")
    own = "engine_doubles:own_random"
    sweep.write_text(SWEEP.replace("[nsga2, ddpg]", f"[{own}]").replace("36", "10"))
    for name, strategy, where in (("one", own, kind), ("other", "random", "serial")):
        if where == "cluster":
            request.getfixturevalue("ray_here")
        words = [f"engine.kind={where}", f"strategies=[{strategy}]"]
        assert main(["search", str(sweep), "-o", name, "--set", words[0], "--set", words[1]]) == 0
    assert f"{own}-0 " in capsys.readouterr().out
    one, other = (_table(Path(name)).query("in_race") for name in ("one", "other"))
    assert set(one["contestant"]) == {f"{own}-0"}
    named = ["contestant", "strategy"]
    pd.testing.assert_frame_equal(one.drop(columns=named), other.drop(columns=named))
    assert own in Path("one/report.html").read_text()
    assert main(["compare", "one", "other"]) == 0
    assert own in capsys.readouterr().out


def test_a_search_leaves_all_its_files(
    sweep: Path,
    undrawn: Callable[[], AbstractContextManager[None]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shorter = ("--set", "budget.evaluations=6")
    assert main(["search", str(sweep), "--set", "engine.kind=serial", *shorter]) == 0
    printed = capsys.readouterr().out
    folder = Path("results/tiny")
    assert f"report: {folder / 'report.html'}" in printed
    for name in ("run.json", "ledger.sqlite", "evaluations.parquet", "front.json", "report.md"):
        assert (folder / name).stat().st_size > 0
    assert list(folder.glob("figures/*.svg"))
    result = StudyResult(folder)
    assert 0 < len(result.manifest.finalists) <= 3
    measured = [point for point in result.front() if point.test_accuracy is not None]
    assert len(measured) == len(result.manifest.finalists)
    document = json.loads((folder / "front.json").read_text())
    assert document["version"] == 1
    assert len(document["points"]) == len(result.front())
    with undrawn():
        assert main(["resume", str(folder)]) == 0
        assert main(["report", str(folder)]) == 0


@pytest.mark.usefixtures("no_figures")
def test_resume_needs_no_file_of_the_space_and_refuses_changed_settings(
    sweep: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("space.yaml").write_text("weight_bits: [2, 4]\n")
    arguments = ("--set", "engine.kind=serial", "--set", "space=space.yaml")
    arguments += ("--set", "budget.evaluations=2")
    assert main(["search", str(sweep), "--out", "out", *arguments]) == 0
    manifest = Path("out/run.json")
    interrupted = manifest.read_text().replace('"finished"', '"interrupted"')
    manifest.write_text(interrupted)
    Path("space.yaml").unlink()
    assert main(["resume", "out"]) == 0
    changed = json.loads(interrupted)
    changed["config"]["space"]["weight_bits"] = [2, 8]
    manifest.write_text(json.dumps(changed))
    capsys.readouterr()
    assert main(["resume", "out"]) == 2
    assert "have changed" in capsys.readouterr().err


@pytest.mark.usefixtures("no_figures")
def test_space_writes_a_file_that_loads(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["space", "digits_cnn", "-o", "derived/space.yaml"]) == 0
    assert "channel groups" in capsys.readouterr().out
    assert load_rules("derived/space.yaml").weight_bits == (2, 3, 4, 5, 6, 8)
    out = ("--set", "space=derived/space.yaml", "--set", "engine.kind=serial")
    assert main(["search", str(sweep), *out, "--set", "budget.evaluations=2"]) == 0


def test_space_of_a_users_own_network(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mynet.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))\n"
    )
    assert main(["space", "mynet:build", "-o", "own.yaml", "--input-shape", "3,8,8"]) == 0
    assert "1 channel groups, 2 layers" in capsys.readouterr().out


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_doctor_is_content(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "all is well" in said
    assert "INT8 files: products of 8 bits" in said


def test_progress_is_readable_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 20.0, 21.0, 40.0])
    monkeypatch.setattr("automl_compress.cli.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    progress = Progress(100, 2, stream)
    for done in (5, 10, 15):
        progress(Standing("nsga2-0", done, 2, 1, 0.25, 0.125))
    progress.close()
    blocks = stream.getvalue().split("[")[1:]
    assert len(blocks) == 2
    assert "0:20] 10 of about 200 evaluations, 0.3 per second, about 12:" in blocks[0]
    assert "nsga2-0" in blocks[0]
    assert "2 hits" in blocks[0]
    assert "12.5%" in blocks[0]
    assert "1 failed" in blocks[0]
    assert "\x1b" not in stream.getvalue()


def test_progress_says_once_that_the_race_is_over_and_the_best_are_measured() -> None:
    stream = io.StringIO()
    progress = Progress(5, 2, stream)
    for name in ("a-0", "b-0"):
        assert "measured again" not in stream.getvalue()
        progress(Standing(name, 5, 0, 0, 0.25, 0.125))
    progress.close()
    assert stream.getvalue().count("10 of about 10 evaluations") == 1
    assert " left" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].endswith("the best networks are measured again ...")


def test_progress_says_how_far_rungs_have_come(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0, 4.0, 20.0, 60.0, 61.0])
    monkeypatch.setattr("automl_compress.cli.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    progress = Progress(5, 1, stream)
    progress(Standing("a-0", 5, 0, 0, 0.25, 0.125))
    for done in (1, 2, 10):
        progress(RungStanding("full", done, 46))
    progress(RungStanding("full", 46, 46))
    progress(RungStanding("finalists", 1, 1))
    progress.close()
    assert stream.getvalue().splitlines()[-4:] == [
        "  full: 1 of 46 networks",
        "  full: 10 of 46 networks, about 1:12 left",
        "  full: 46 of 46 networks",
        "  finalists: 1 of 1 networks",
    ]


def test_a_warning_is_not_drawn_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    monkeypatch.setattr("automl_compress.cli.progress.REDRAW_SECONDS", 0.0)
    progress = Progress(100, 1, stream)
    for done in (5, 10):
        progress(Standing("a-0", done, 0, 0, 0.25, 0.125))
    assert stream.getvalue().count("\x1b[2F") == 1
    logging.getLogger("automl_compress.engine.cluster").warning("evaluators wait for %d", 7)
    progress(Standing("a-0", 15, 0, 0, 0.25, 0.125))
    assert stream.getvalue().count("\x1b[2F") == 1
    progress.close()
    assert capsys.readouterr().err == "evaluators wait for 7\n"
    assert not logging.getLogger("automl_compress").handlers


def test_progress_says_how_near_networks_come_while_none_is_within_a_point() -> None:
    stream = io.StringIO()
    progress = Progress(100, 4, stream)
    progress(Standing("a-0", 5, 2, 1, 0.0, 0.125, 0.07))
    progress(Standing("b-0", 5, 2, 1, 0.0, None, 0.225))
    progress(Standing("c-0", 5, 2, 1, 0.0, None, 0.225, "divergence"))
    progress(Standing("d-0", 5, 2, 1, None, None))
    progress.close()
    assert [line.count("useful") for line in stream.getvalue().splitlines()] == [0, 1, 1, 1, 0]
    ends = [line.split("  ")[-1] for line in stream.getvalue().splitlines()[1:]]
    assert ends == [
        "smallest within 1 point 12.5%, 1 failed",
        "least error 22.5%, 1 failed",
        "least divergence 0.225, 1 failed",
        "nothing usable yet, 1 failed",
    ]


def _on_rung(folder: Path, name: str) -> dict[str, float]:
    """When each measurement of a rung was made, by policy."""
    with closing(sqlite3.connect(folder / "ledger.sqlite", timeout=30)) as ledger:
        query = "SELECT policy_key, finished FROM evaluations WHERE contestant = ?"
        return dict(ledger.execute(query, (name,)).fetchall())


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_kill_9_on_a_rung_loses_nothing(sweep: Path) -> None:
    text = sweep.read_text().replace("[nsga2, ddpg]", "[scaled-random]").replace("36", "12")
    rungs = "[{name: full, images: all}, {name: trained, recover: {steps: 8, device: cpu}}]"
    sweep.write_text(text + f"ladder: {rungs}\nengine: {{kind: serial}}\n")
    assert main(["search", str(sweep), "--out", "whole"]) == 0
    process = _run("search", str(sweep), "--out", "killed")
    deadline = time.monotonic() + 120
    while not _finished(Path("killed")) or len(_on_rung(Path("killed"), "trained")) < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.kill()
    process.communicate()
    before = _on_rung(Path("killed"), "trained")
    assert main(["resume", "killed"]) == 0
    after = _on_rung(Path("killed"), "trained")
    assert 1 < len(before) < len(after)
    assert {key: after[key] for key in before} == before
    killed, whole = (StudyResult(name).manifest for name in ("killed", "whole"))
    assert killed.rungs == whole.rungs
    assert killed.finalists == whole.finalists
    for name in ("full", "trained"):
        one, two = (StudyResult(folder).rung(name) for folder in ("killed", "whole"))
        assert {k: e.metrics for k, e in one.items()} == {k: e.metrics for k, e in two.items()}
