"""Strategies and criteria of the user's own, named `package.module:callable`, in every command."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from automl_compress import Study
from automl_compress.cli import main
from automl_compress.engine.contestant import Standing
from automl_compress.errors import InterruptedStudy, StudyError
from automl_compress.ledger import TIMING_COLUMNS, StudyResult
from automl_compress.user_code import resolve

SWEEP = """
study: tiny
workload: {model: digits_cnn, train: {epochs: 1}}
estimate: {images: 50, calibration_images: 16, repair: none}
strategies: ['own_of_tests:Mine']
seeds: 1
budget: {evaluations: 6}
finalists: 1
engine: {kind: serial}
"""
MINE = """
from automl_compress.search.random_search import RandomSearch

class Mine(RandomSearch):
    batch = 2

def _hidden(problem, seed):
    return RandomSearch(problem, seed, scaled=True)

def later(model, groups, images, seed):
    model.fc = None
    return {group.name: list(range(group.channels)) for group in groups}

value = 3
"""
OWN = "own_of_tests:Mine"
Write = Callable[[str], None]


@pytest.fixture
def write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes the user's module into the current folder; the next import reads it."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("sweep.yaml").write_text(SWEEP)

    def anew(text: str) -> None:
        sys.modules.pop("own_of_tests", None)
        (folder / "own_of_tests.py").write_text(text)

    anew(MINE)
    yield anew
    sys.modules.pop("own_of_tests", None)


def _refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line on standard error of a command that exits with 2."""
    capsys.readouterr()
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


def _table(folder: str) -> pd.DataFrame:
    return StudyResult(folder).to_dataframe().drop(columns=list(TIMING_COLUMNS))


@pytest.mark.usefixtures("write")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("strategies=[plug]", "'package.module:callable', but is 'plug'"),
        ("strategies=['no_such:Mine']", "no module 'no_such'; correct the part before the colon"),
        ("strategies=['own_of_tests:Yours']", "has no 'Yours'; correct the part after the colon"),
        ("strategies=['own_of_tests:value']", "but is of type int; name something that can be"),
        ("strategies=['own_of_tests:later']", "strategy 'own_of_tests:later' must not fail, but"),
        ("strategies=['builtins:divmod']", "'builtins:divmod' must not fail, but raised TypeError"),
        ("estimate.criterion=tailor", "but is 'tailor', did you mean 'taylor'?; correct it (--set"),
        ("estimate.criterion='no_such:l3'", "no module 'no_such'; correct the part before the"),
        ("estimate.criterion='own_of_tests:Yours'", "has no 'Yours'; correct the part after the"),
        ("estimate.criterion='own_of_tests:Mine'", "criterion 'own_of_tests:Mine' must not fail"),
        ("estimate.criterion='builtins:print'", "criterion 'builtins:print' must not fail, but"),
    ],
)
def test_what_is_no_strategy_or_criterion_is_refused_before_anything_is_written(
    setting: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in _refused(capsys, "search", "sweep.yaml", "-o", "out", "--set", setting)
    assert not Path("out").exists()


@pytest.mark.usefixtures("write")
def test_in_python_classes_and_functions_stand_for_their_names() -> None:
    mine, later = resolve(OWN), resolve("own_of_tests:later")
    config = Study(
        study="tiny",
        workload={"model": later, "data": later},
        strategies=(mine, "random"),
        estimate={"criterion": later},
        budget={"evaluations": 6},
    ).config
    assert config.strategies == (OWN, "random")
    assert config.estimate.criterion == "own_of_tests:later"
    assert config.plain["workload"] == dict.fromkeys(("model", "data"), "own_of_tests:later")
    hidden = type("Mine", (mine,), {"__module__": "own_of_tests"})
    scripted = type("Mine", (mine,), {"__module__": "__main__"})
    for wrong in (hidden, scripted, lambda problem, seed: None):
        with pytest.raises(StudyError, match="by 'resume', but is not; define it at the top of"):
            Study(study="tiny", workload={"model": "resnet20"}, strategies=[wrong])


@pytest.mark.usefixtures("no_figures")
def test_a_mistake_is_told_and_the_study_goes_on_once_it_is_corrected(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", "sweep.yaml", "-o", "whole"]) == 0
    late = "    def tell(self, evaluations):\n        super().tell(evaluations)\n"
    late += "        if len(self._seen) > 4:\n            raise RuntimeError('too\\nmany')\n"
    write(MINE.replace("    batch = 2\n", f"    batch = 2\n{late}"))
    said = _refused(capsys, "search", "sweep.yaml", "-o", "out")
    assert f"'tell' of strategy '{OWN}' must not fail, but raised RuntimeError: too many;" in said
    write(MINE.replace("batch = 2", "batch = 2\n    pass"))
    assert main(["resume", "out"]) == 0
    pd.testing.assert_frame_equal(_table("out"), _table("whole"))


@pytest.mark.usefixtures("no_figures")
def test_an_interrupted_study_goes_on_with_the_same_strategy_only(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: Standing) -> None:
        raise KeyboardInterrupt

    with pytest.raises(InterruptedStudy):
        Study.from_file("sweep.yaml").run("out", interrupt)
    other = MINE.replace("class Mine", "class Other") + "\n\nclass Mine(Other):\n"
    other += "    def __init__(self, problem, seed):\n        super().__init__(problem, seed + 1)\n"
    write(other)
    said = _refused(capsys, "resume", "out")
    assert f"'{OWN}-0' asks otherwise at evaluation 0; restore its code" in said
    Path("own_of_tests.py").unlink()
    sys.modules.pop("own_of_tests")
    assert "there is no module 'own_of_tests'" in _refused(capsys, "resume", "out")
    write(MINE)
    assert main(["resume", "out"]) == 0
    assert main(["search", "sweep.yaml", "-o", "whole"]) == 0
    pd.testing.assert_frame_equal(_table("out"), _table("whole"))
    capsys.readouterr()
    assert main(["extend", "out", "--strategy", "own_of_tests:_hidden"]) == 0
    assert "own_of_tests:_hidden-0 " in capsys.readouterr().out
    assert StudyResult("out").spent("own_of_tests:_hidden-0") == 6


@pytest.mark.usefixtures("write")
def test_the_legend_names_every_strategy() -> None:
    """matplotlib leaves out what begins with an underscore."""
    Path("_own_too.py").write_text(MINE)
    strategies = ["_own_too:Mine", OWN]
    settings = {"estimate": {"images": 50, "calibration_images": 16, "repair": "none"}}
    study = Study(
        study="tiny",
        workload={"model": "digits_cnn", "train": {"epochs": 1}},
        strategies=strategies,
        seeds=1,
        budget={"evaluations": 3},
        engine={"kind": "serial"},
        **settings,
    )
    study.run("out")
    assert main(["report", "out"]) == 0
    figure = Path("out/figures/hypervolume_useful.svg").read_text()
    assert all(name in figure for name in strategies)
    sys.modules.pop("_own_too")


@pytest.mark.usefixtures("write", "no_figures")
def test_networks_of_another_criterion_are_other_networks(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where its code has changed under one name."""
    criterion = ("--set", "estimate.criterion='own_of_tests:later'")
    assert main(["search", "sweep.yaml", "-o", "later", *criterion]) == 0
    assert main(["search", "sweep.yaml", "-o", "l1"]) == 0
    assert main(["export", "later", "--pick", "knee", "-o", "later.packed"]) == 0
    write(MINE.replace("range(group.channels)", "range(group.channels, 0, -1)"))
    said = _refused(capsys, "export", "later", "--pick", "knee", "-o", "other.packed")
    assert "have changed; restore them" in said
    assert main(["search", "sweep.yaml", "-o", "sooner", *criterion]) == 0
    write(MINE.replace("value = 3", "value = 4"))
    assert main(["export", "later", "--pick", "knee", "-o", "same.packed"]) == 0
    assert Path("same.packed").read_bytes() == Path("later.packed").read_bytes()
    manifests = [StudyResult(name).manifest for name in ("later", "sooner", "l1")]
    assert len({manifest.estimator for manifest in manifests}) == 3
    assert len({networks for manifest in manifests for networks in manifest.networks}) == 6


@pytest.mark.usefixtures("write")
def test_a_replay_and_a_benchmark_take_it(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{a},{b},{90 - a * b},{100 - a - b}" for a in range(1, 6) for b in range(1, 6)]
    Path("table.csv").write_text("\n".join(["channels_a,channels_b,accuracy,macs", *rows]))
    words = ["replay", "table.csv", "--strategies", OWN, "random", "--budget", "8"]
    words += ["--seeds", "2", "--json", "out.json", "--markdown", "out.md"]
    assert main(words) == 0
    document = json.loads(Path("out.json").read_text())
    curves = document["hypervolume"]
    assert list(curves) == [f"{OWN}-0", f"{OWN}-1", "random-0", "random-1"]
    assert curves[f"{OWN}-0"] == curves["random-0"]
    assert OWN in Path("out.md").read_text().replace("\\_", "_")
    capsys.readouterr()
    assert main([*words, "--resume"]) == 0
    assert "racing" not in capsys.readouterr().out
    assert json.loads(Path("out.json").read_text())["hypervolume"] == curves
    small = ("--genes", "4", "--evaluations", "10")
    assert main(["bench", "strategies", "--strategies", OWN, *small]) == 0
    assert f"| {OWN} | 4 |" in capsys.readouterr().out
    missing = ("--strategies", "random", "own_of_tests:Yours")
    assert "has no 'Yours'" in _refused(capsys, "replay", "table.csv", *missing)
    assert "has no 'Yours'" in _refused(capsys, "bench", "strategies", *missing, *small)


SIGNALS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def network():
    first = (nn.Conv1d(2, 8, 5), nn.BatchNorm1d(8), nn.ReLU())
    return nn.Sequential(*first, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(8, 3)).eval()

def data():
    labels = torch.arange(60) % 3
    values = torch.randn(60, 2, 32) + labels[:, None, None]
    return TensorDataset(values, labels), TensorDataset(values[:40], labels[:40])
"""


def test_a_study_of_signals_speaks_of_no_images(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(SIGNALS)
    shape = ["--input-shape", "2,32"]
    assert main(["space", "own_of_tests:network", "-o", "space.yaml", *shape]) == 0
    assert "input 2x32" in Path("space.yaml").read_text()
    workload = {"model": "own_of_tests:network", "data": "own_of_tests:data"}
    settings = [f"workload={json.dumps(workload)}", "strategies=[random]", "estimate.images=20"]
    settings += ["space=space.yaml", "budget.evaluations=3"]
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["search", "sweep.yaml", "-o", "out", *words]) == 0
    written = Path("out/report.md").read_text() + "".join(capsys.readouterr())
    key = re.compile(r'\s*("|\| )(calibration\\?_)?images')  # of a setting
    assert not [x for x in written.lower().splitlines() if "image" in x and not key.match(x)]
    changed = ["--set", "epochs=1", "--set", "augment.flip=true"]
    said = _refused(capsys, "recover", "out", "--pick", "point:1", *changed)
    assert (
        "'augment.flip' changes images (c, h, w) alone, but examples are of shape (2, 32)" in said
    )
    assert main(["export", "out", "--pick", "point:1", "-o", "net.packed"]) == 0
    assert "its input is (n, 2, 32) of float32" in capsys.readouterr().out
