"""Bad input: one line with rule, value and remedy, exit code 2, nothing written."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from automl_compress.cli import commands, main
from automl_compress.workload import build_model

GOOD = """
study: tiny
workload: {model: digits_cnn, train: {epochs: 1}}
estimate: {images: 50, calibration_images: 16}
strategies: [scaled-random]
seeds: 1
budget: {evaluations: 2}
engine: {kind: serial}
"""


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    before = set(Path().rglob("*"))
    code = main(list(arguments))
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    after = {path for path in Path().rglob("*") if "__pycache__" not in path.parts}
    assert after == before
    return captured.err


def _sweep(text: str) -> str:
    Path("sweep.yaml").write_text(text)
    return "sweep.yaml"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("stratgies: [random]", "did you mean 'strategies'"),
        ("strategies: [randm]", "did you mean 'random'"),
        ("strategies: []", "at least one strategy"),
        ("strategies: random", "must be a list"),
        ("seeds: 0", "count above 0"),
        ("seeds: [1, 1]", "different seeds"),
        ("budget: {evaluations: 0}", "at least 1"),
        ("budget: {evaluations: 1.5}", "an integer"),
        ("budget: {}", "must be given"),
        ("objectives: [accuracy, macs]", "error"),
        ("objectives: [error]", "a cost"),
        ("objectives: [error, speed]", "must be among"),
        ("constraints: ['size_bytes >= 3']", "bounded by <="),
        ("constraints: ['size_bytes < 3']", "a constraint must be like"),
        ("constraints: ['weight <= 3']", "must bound one of"),
        ("estimate: {images: 0}", "at least 1"),
        ("estimate: {images: 100000}", "lower estimate.images"),
        ("estimate: {repair: maybe}", "must be one of"),
        ("space: nowhere.yaml", "no file"),
        ("study: ../up", "letters, digits"),
        (f"study: {'x' * 300}", "at most 100 characters, but has 300"),
        ("seeds: 99999999999999999999", "at most 1000"),
        ("seeds: [99999999999999999999]", "up to 4294967295"),
        ("estimate: {seed: 99999999999999999999}", "at most 4294967295"),
        ("engine: {threads: 100000}", "'auto' or at most 1024"),
        ("engine: {kind: cloud}", "must be one of"),
        ("engine: {workers: none}", "auto"),
        ("workload: {model: resnet57}", "resnet56"),
        ("workload: {model: RESNET_56}", "did you mean 'resnet56'?"),
        ("workload: {model: resnet20, data: digits}", "weights"),
        ("workload: {model: digits_cnn, data: {root: nowhere}}", "nowhere"),
        ("workload: {model: 'no_such_package:build', data: digits}", "no_such_package"),
        ("workload: {model: digits_cnn, weights: missing.safetensors}", "missing.safetensors"),
    ],
)
def test_a_wrong_sweep(
    change: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = change.partition(":")[0]
    kept = "".join(line for line in GOOD.splitlines(True) if not line.startswith(f"{key}:"))
    assert said in _refused(capsys, "search", _sweep(f"{kept}{change}\n"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "mapping"),
        ("- a\n- b\n", "mapping"),
        ("study: [", "invalid YAML"),
        ("study: !!python/object/apply:os.getcwd []\n", "YAML"),
        (GOOD + "study: twice\n", "repeated"),
    ],
)
def test_a_file_that_is_no_sweep(
    text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in _refused(capsys, "search", _sweep(text))


def test_a_missing_sweep(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "missing.yaml" in _refused(capsys, "search", "missing.yaml")


def test_what_cannot_be_read_is_refused_before_torch_is_loaded(folder: Path) -> None:
    code = "import sys; from automl_compress.cli import main; "
    code += "print([main(line.split()) for line in sys.argv[1:]], 'torch' in sys.modules)"
    commands = ["search no.yaml", "pipeline no.yaml", "resume nowhere", "report nowhere", "--help"]
    command = [sys.executable, "-c", code, *commands]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[2, 2, 2, 2, 0] False\n")


@pytest.mark.parametrize("override", ["budget", "budget.evaluations=many", "=3", "study.x=1"])
def test_a_wrong_override(override: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--set" in _refused(capsys, "search", _sweep(GOOD), "--set", override)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("weight_bits: [2, 16]\n", "space.yaml, line 1"),
        ("channels: {ratios: [0.5, 1.5]}\n", "(0, 1]"),
        ("protect: [nothing]\n", "matches none"),
        ("chanels: {}\n", "did you mean 'channels'"),
        ("protect: ['*']\n", "something to compress"),
    ],
)
def test_a_wrong_space(
    text: str, said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("space.yaml").write_text(text)
    assert said in _refused(capsys, "search", _sweep(f"{GOOD}space: space.yaml\n"))


def _images(*classes: str) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            place = Path("images", split, name)
            place.mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


FOLDER = GOOD.replace(
    "{model: digits_cnn, train: {epochs: 1}}", "{model: 'own:net', data: {root: images}}"
)


def test_an_image_folder_with_one_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _images("a")
    Path("own.py").write_text("from torch import nn\ndef net(): return nn.Flatten()\n")
    assert "class" in _refused(capsys, "search", _sweep(FOLDER))


def test_a_broken_image(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _images("a", "b")
    Path("own.py").write_text("from torch import nn\ndef net(): return nn.Flatten()\n")
    Path("images/train/a/1.png").write_bytes(b"not an image")
    assert "1.png" in _refused(capsys, "search", _sweep(FOLDER))


def test_a_factory_that_raises(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("raising.py").write_text("def net(): raise RuntimeError('no memory\\nleft')\n")
    text = GOOD.replace(
        "{model: digits_cnn, train: {epochs: 1}}", "{model: 'raising:net', data: digits}"
    )
    assert "no memory left" in _refused(capsys, "search", _sweep(text))


def test_weights_that_do_not_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(build_model("resnet20", {}).state_dict(), "weights.pt")
    text = GOOD.replace(
        "{model: digits_cnn, train: {epochs: 1}}", "{model: digits_cnn, weights: weights.pt}"
    )
    assert "weights.pt" in _refused(capsys, "search", _sweep(text))


def test_weights_that_would_run_code(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"weight": os.getcwd}, "weights.pt")
    text = GOOD.replace(
        "{model: digits_cnn, train: {epochs: 1}}", "{model: digits_cnn, weights: weights.pt}"
    )
    assert "weights.pt" in _refused(capsys, "search", _sweep(text))


@pytest.mark.usefixtures("no_figures")
def test_out_that_holds_another_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", _sweep(GOOD), "--out", "taken"]) == 0
    capsys.readouterr()
    assert "report taken" in _refused(capsys, "search", "sweep.yaml", "--out", "taken")
    other = _sweep(GOOD.replace("study: tiny", "study: other"))
    assert "holds 'tiny'" in _refused(capsys, "search", other, "--out", "taken")
    assert "is a file" in _refused(capsys, "search", other, "--out", "sweep.yaml")
    assert "is a file" in _refused(capsys, "search", other, "--out", "sweep.yaml/below/it")


def test_a_full_disk_names_the_studys_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(commands, "resume", fill)
    assert main(["resume", "some/study"]) == 1
    said = capsys.readouterr().err
    assert "No space left on device: 'some/study'; free space" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("out", ["/proc/none", "x" * 300])
def test_out_that_cannot_be_made(
    out: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = _refused(capsys, "search", _sweep(GOOD), "--out", out)
    assert f"a study's folder must be one that can be written, but '{out}' is not (" in said


@pytest.mark.usefixtures("no_figures")
def test_streams_that_are_closed_or_know_few_letters(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert main(["search", _sweep(GOOD), "--out", "closed"]) == 0
        sys.stdout.close()
    bare = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", bare)
    assert main(["search", "sweep.yaml", "--out", "ascii"]) == 0
    bare.flush()
    assert b"report: ascii/report.html" in bare.buffer.getvalue()  # type: ignore[attr-defined]


def test_a_full_disk_is_told_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "front.json")

    monkeypatch.setattr(commands, "doctor", fail)
    assert main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert "No space left on device: 'front.json'; free space" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["resume", "report"])
def test_a_folder_without_a_study(
    command: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "run.json" in _refused(capsys, command, "nowhere")


@pytest.mark.parametrize(
    "arguments",
    [[], ["serch"], ["search"], ["search", "x.yaml", "--wokers", "2"], ["space", "resnet20"]],
)
def test_wrong_arguments(
    arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--help" in _refused(capsys, *arguments)


def test_workers_below_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--workers" in _refused(capsys, "search", _sweep(GOOD), "--workers", "0")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet57", "-o", "s.yaml"], "resnet56"),
        (["resnet20", "-o", "s.yaml", "--input-shape", "3,x"], "--input-shape"),
        (["resnet20", "-o", "s.yaml", "--input-shape", "3,²"], "must be like 3,32,32"),
        (["resnet20", "-o", "s.yaml", "--input-shape", "3,100000,100000"], "one input"),
        (["resnet20", "-o", ".", "--force"], "is a folder; add a name"),
        (["torch.nn:Identity", "-o", "s.yaml"], "--input-shape"),
        (["torch.nn:Identity", "-o", "s.yaml", "--input-shape", "3,8,8"], "compress"),
    ],
)
def test_wrong_arguments_of_space(
    arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in _refused(capsys, "space", *arguments)


def test_space_does_not_replace_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("kept.yaml").write_text("mine\n")
    assert "--force" in _refused(capsys, "space", "resnet20", "-o", "kept.yaml")
    assert Path("kept.yaml").read_text() == "mine\n"


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_stops_as_ctrl_c_does(
    interrupt: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where Ctrl-C is ignored, as in what a shell starts in the background."""
    monkeypatch.setattr(commands, "doctor", lambda: signal.raise_signal(signal.SIGTERM))
    handlers = signal.signal(signal.SIGINT, interrupt), signal.getsignal(signal.SIGTERM)
    try:
        assert main(["doctor"]) == 130
    finally:
        signal.signal(signal.SIGINT, handlers[0])
    assert signal.getsignal(signal.SIGTERM) == handlers[1]
    assert "stopped before anything was written" in capsys.readouterr().err
