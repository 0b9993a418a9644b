"""Training from the command line, on the digits network."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from automl_compress.cli import main
from automl_compress.workload import WorkloadConfig, load_workload

QUICK = ["--set", "augment.flip=false", "--set", "batch=64", "--set", "rate=0.05"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _train(*arguments: str) -> int:
    return main(["train", "digits_cnn", "--device", "cpu", *QUICK, *arguments])


def test_weights_and_card_are_what_a_search_needs(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train("-o", "w/base.safetensors", "--epochs", "4") == 0
    printed = capsys.readouterr().out
    assert "held-out accuracy" in printed
    assert {path.name for path in (folder / "w").iterdir()} == {"base.safetensors", "base.json"}
    card = json.loads((folder / "w/base.json").read_text())
    stated = yaml.safe_load(printed.strip().splitlines()[-1])["workload"]
    assert stated == {**card["workload"], "weights": "w/base.safetensors"}
    workload = load_workload(WorkloadConfig.of(**stated))
    splits = workload.splits
    for name, part in (("train", splits.train), ("held_out", splits.validation)):
        assert card["images"][name] == {"images": len(part), "content_hash": part.content_hash}
    images = splits.validation.tensor(workload.normalization)
    right = workload.model(images).argmax(1).numpy() == splits.validation.labels
    assert card["accuracy"]["held_out"] == pytest.approx(np.mean(right))
    assert card["accuracy"]["held_out"] > 0.5
    mean = np.mean(splits.train.images) / 255
    assert card["workload"]["data"]["mean"] == [pytest.approx(mean, abs=0.01)]


def test_held_out_images_are_not_trained_on() -> None:
    """Other held-out images give other weights only through the training images they leave."""
    assert _train("-o", "a.safetensors", "--epochs", "1") == 0
    assert _train("-o", "b.safetensors", "--epochs", "1",
                  "--set", "data.search_validation.images=200") == 0  # fmt: skip
    cards = [json.loads(Path(name).read_text()) for name in ("a.json", "b.json")]
    counts = [(c["images"]["train"]["images"], c["images"]["held_out"]["images"]) for c in cards]
    assert counts == [(898 - 89, 89), (898 - 200, 200)]


def test_sparsity_training_shrinks_the_scales_and_takes_the_data_from_the_card() -> None:
    assert _train("-o", "base.safetensors", "--epochs", "2") == 0
    sums = []
    for strength in ("0", "0.05"):
        output = f"sparse{strength}.safetensors"
        arguments = ["sparsify", "digits_cnn", "--weights", "base.safetensors", "-o", output]
        options = ["--epochs", "2", "--device", "cpu", *QUICK, "--set", f"strength={strength}"]
        assert main([*arguments, *options]) == 0
        weights = load_file(output)
        sums.append(sum(float(v.abs().sum()) for n, v in weights.items()
                        if "bn" in n and n.endswith("weight")))  # fmt: skip
    assert sums[1] < 0.9 * sums[0]
    base, sparse = (json.loads(Path(n).read_text()) for n in ("base.json", "sparse0.05.json"))
    assert sparse["images"] == base["images"]
    assert sparse["sparsity"] == {"method": "bn-scales", "strength": 0.05}
    assert sparse["penalty"]["after"] < sparse["penalty"]["before"]


def test_group_lasso_from_the_command_line() -> None:
    assert _train("-o", "base.safetensors", "--epochs", "1") == 0
    arguments = ["sparsify", "digits_cnn", "--weights", "base.safetensors", "-o", "s.safetensors"]
    options = ["--epochs", "1", "--device", "cpu", *QUICK, "--set", "method=group-lasso"]
    assert main([*arguments, *options, "--set", "strength=0.01"]) == 0
    card = json.loads(Path("s.json").read_text())
    assert card["penalty"]["after"] < card["penalty"]["before"]


@pytest.mark.slow
def test_stopped_and_run_again_is_undisturbed(folder: Path) -> None:
    command = [
        *(sys.executable, "-m", "automl_compress", "train", "digits_cnn", "--device", "cpu"),
        *(*QUICK, "--epochs", "6", "-o", "w.safetensors"),
    ]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if "epoch" in line:
            break
    time.sleep(0.05)
    os.kill(running.pid, signal.SIGINT)
    _, said = running.communicate(timeout=300)
    assert running.returncode == 130, said
    assert "state is saved" in said
    assert [path.name for path in folder.iterdir()] == ["w.safetensors.checkpoint"]
    assert _train("-o", "w.safetensors", "--epochs", "6") == 0
    assert _train("-o", "whole.safetensors", "--epochs", "6") == 0
    one, other = load_file("w.safetensors"), load_file("whole.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert not list(folder.glob("*.checkpoint"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "resnet20", "-o", "w.safetensors"], "--data"),
        (["train", "resnet20", "--data", "nowhere", "-o", "w.safetensors"], "no folder 'nowhere'"),
        (["train", "fcos_resnet", "--data", "nowhere", "--set", "data.bad_boxes=drop",
          "-o", "w.safetensors"], "no folder 'nowhere'"),
        (["train", "resnet57", "--data", "digits", "-o", "w.safetensors"], "resnet56"),
        (["train", "digits_cnn", "-o", "w.pt"], ".safetensors"),
        (["train", "digits_cnn", "-o", "w.safetensors", "--epochs", "0"], "at least 1"),
        (["train", "digits_cnn", "-o", "w.safetensors", "--device", "cuda:77"], "must exist"),
        (["train", "digits_cnn", "-o", "w.safetensors", "--set", "rte=1"], "rate"),
        (["train", "digits_cnn", "-o", "w.safetensors",
          "--set", "data.search_validation.from=test"], "must be train"),
        (["train", "digits_cnn", "-o", "w.safetensors", "--set", "data.search_validation=3"],
         "a mapping"),
        (["train", "digits_cnn", "-o", "w.safetensors", "--set", "model_args.num_classes=7"],
         "one output a class"),
        (["sparsify", "digits_cnn", "--weights", "none.safetensors", "-o", "w.safetensors"],
         "none.safetensors"),
        (["sparsify", "digits_cnn", "--weights", "none.safetensors", "-o", "w.safetensors",
          "--set", "method=l0"], "bn-scales"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not list(folder.iterdir())


def test_what_cannot_be_trained_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["from torch import nn", "class Last(nn.Module):"]
    lines += ["    def forward(self, x):", "        return (x, x) if self.training else x"]
    lines += ["def net():", "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Last())"]
    (folder / "pairs_of_answers.py").write_text("\n".join(lines))
    command = ["train", "pairs_of_answers:net", "--data", "digits", "--device", "cpu"]
    assert main([*command, "-o", "w.safetensors", "--epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "must give one tensor in training mode" in error
    assert not list(folder.glob("w.*"))


def test_weights_of_another_number_of_classes_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    assert _train("-o", "ten.safetensors", "--epochs", "1") == 0
    rng = np.random.default_rng(0)
    for half in ("train", "test"):
        for name in ("one", "two", "three"):
            (folder / "photos" / half / name).mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "photos" / half / name / f"{number}.png")
    capsys.readouterr()
    command = ["sparsify", "digits_cnn", "--weights", "ten.safetensors", "--data", "photos"]
    assert main([*command, "-o", "three.safetensors", "--epochs", "1", "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "ten.safetensors" in error
    assert not (folder / "three.safetensors").exists()


def test_an_output_that_exists_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "w.safetensors").write_bytes(b"mine")
    assert _train("-o", "w.safetensors") == 2
    assert "--force" in capsys.readouterr().err
    assert (folder / "w.safetensors").read_bytes() == b"mine"


@pytest.mark.parametrize("command", [["train"], ["sparsify", "--weights", "base.safetensors"]])
def test_a_file_where_the_card_would_lie_is_kept(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (folder / "w.json").write_text("mine")
    assert main([*command, "digits_cnn", "-o", "w.safetensors", "--epochs", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "but 'w.json' does; choose another name or give --force" in error
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]


def test_force_replaces_weights_and_card(folder: Path) -> None:
    for name in ("w.safetensors", "w.json"):
        (folder / name).write_text("mine")
    assert _train("-o", "w.safetensors", "--epochs", "1", "--force") == 0
    assert json.loads((folder / "w.json").read_text())["model"] == "digits_cnn"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("folder.safetensors", "is a folder; add a name"),
        ("file/w.safetensors", "-o must lie in a folder that can be written"),
        ("file/new/w.safetensors", "but '{folder}/file' is none"),
        ("card.safetensors", "but 'card.json' does; choose another name"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_trained(
    folder: Path, capsys: pytest.CaptureFixture[str], output: str, said: str
) -> None:
    for name in ("folder.safetensors", "card.json"):
        (folder / name).mkdir()
    (folder / "file").touch()
    assert _train("-o", output, "--epochs", "1", "--force") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said.format(folder=folder) in error
    assert {path.name for path in folder.iterdir()} == {"folder.safetensors", "card.json", "file"}


def test_another_training_s_checkpoint_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "w.safetensors.checkpoint").write_bytes(b"broken")
    assert _train("-o", "w.safetensors", "--epochs", "1") == 2
    assert "remove it" in capsys.readouterr().err
