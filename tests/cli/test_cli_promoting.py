"""Recovering several networks side by side, promoted by ASHA."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pretend_cuda import pretended_cuda

import automl_compress as ac
from automl_compress.cli import main
from automl_compress.engine import asha as asha_module
from automl_compress.finish import promoting
from automl_compress.report import pick_network

QUICK = ["--device", "cpu", "--set", "augment.flip=false", "--set", "batch=64", "--asha"]
PICKS = ["--pick", "point:1", "--pick", "point:2"]


def _keys(study: Path) -> list[str]:
    result = ac.StudyResult(study)
    return [pick_network(result, f"point:{number}").policy.key for number in (1, 2)]


def _document(study: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((study / "recovered" / key / "recovered.json").read_text())
    return found


def _in_turn(
    stop_second_after: int | None,
) -> Callable[..., None]:
    """A scheduler in this process: one training after the other, the second perhaps stopped."""

    class _Stop(Exception):
        pass

    def promote(
        names: tuple[str, ...],
        train: Callable[[str, Callable[[int, float], None]], None],
        epochs: int,
        listener: Callable[[str, int, float, bool], None],
        gpus: int = 0,
    ) -> None:
        for place, name in enumerate(names):

            def report(epoch: int, quality: float, place: int = place, name: str = name) -> None:
                stops = place == 1 and epoch == stop_second_after
                listener(name, epoch, quality, stops)
                if stops:
                    raise _Stop

            with contextlib.suppress(_Stop):
                train(name, report)

    return promote


@pytest.mark.usefixtures("no_figures")
def test_a_stopped_training_stays_so_until_it_is_recovered_alone(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _keys(study)
    command = ["recover", str(study), *QUICK, *PICKS, "--epochs", "2"]
    with monkeypatch.context() as patched:
        patched.setattr(asha_module, "promote_trainings", _in_turn(1))
        assert main(command) == 0
        said = capsys.readouterr().out
        assert "finalist 1, key" in said
        assert "epoch 1 of 2, held-out accuracy" in said
        assert "finished" in said
        assert "stopped, for others do better" in said
        assert (study / "recovered" / first / "network.safetensors").exists()
        left = {path.name for path in (study / "recovered" / second).iterdir()}
        assert left == {"epochs.json", "training.checkpoint"}
        patched.setattr(asha_module, "promote_trainings", _in_turn(None))
        assert main(command) == 0  # told again, but not trained again
        assert "held-out accuracy" not in capsys.readouterr().out
        assert not (study / "recovered" / second / "recovered.json").exists()
    alone = [word for word in command if word != "--asha"]
    assert main(alone) == 0
    whole = study.with_name("whole")
    shutil.copytree(study, whole, ignore=shutil.ignore_patterns("recovered"))
    assert main([*alone[:1], str(whole), *alone[2:]]) == 0
    for key in (first, second):
        assert _document(study, key)["accuracy"] == _document(whole, key)["accuracy"]


@pytest.mark.parametrize(
    ("text", "kept"),
    [("broken", 0), (json.dumps({"settings": {}, "qualities": [1], "stopped": True}), 0)],
)
def test_what_another_training_told_is_not_told_again(tmp_path: Path, text: str, kept: int) -> None:
    (tmp_path / promoting.HISTORY).write_text(text)
    stated: Mapping[str, Any] = {"training": {"epochs": 3}}
    found = promoting.History.read(tmp_path, stated)
    assert len(found.qualities) == kept
    assert not found.stopped


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_figures", "ray_here")
def test_networks_are_promoted_on_ray(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recover", str(study), *QUICK, *PICKS, "--epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert said.count("epoch 1 of 2, held-out accuracy") == 2
    kept = [key for key in _keys(study) if (study / "recovered" / key / "recovered.json").exists()]
    assert 1 <= len(kept) <= 2
    assert all(_document(study, key)["settings"]["training"]["epochs"] == 2 for key in kept)
    assert "Recovered networks" in (study / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_interrupted_on_ray_and_run_again(
    study: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recover", str(study), *QUICK, *PICKS, "--epochs", "8", "--set", "rate=0.01"]
    running = subprocess.Popen(
        [sys.executable, "-m", "automl_compress", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    told = ""
    for line in running.stdout:
        told += line
        if "epoch 2 of 8" in told and told.count("epoch 1 of 8") == 2:  # both have begun
            break
    running.send_signal(signal.SIGINT)
    out, said = running.communicate(timeout=300)
    assert running.returncode == 130, (out, said)
    assert said.count("\n") == 1
    assert "train the same again to go on" in said
    request.getfixturevalue("ray_here")
    capsys.readouterr()
    assert main(command) == 0
    assert "epoch 1 of 8" not in capsys.readouterr().out
    first, second = _keys(study)
    trained = [
        key for key in (first, second) if (study / "recovered" / key / "recovered.json").exists()
    ]
    assert trained
    assert "Recovered networks" in (study / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "held_out=0"], "examples, which is none"),
        (["--set", "held_out=0.0001"], "examples, which is none"),
        (["--pick", "size<=1B"], "nearest"),
    ],
)
def test_bad_input_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(["recover", str(study), *QUICK, *PICKS, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not (study / "recovered").exists()


@pytest.mark.usefixtures("no_figures")
def test_without_ray_one_after_the_other_still_works(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automl_compress.engine.start.find_spec", lambda name: None)
    assert main(["recover", str(study), *QUICK, *PICKS, "--epochs", "1"]) == 2
    assert "leave it out to train" in capsys.readouterr().err
    alone = [word for word in (*QUICK, *PICKS) if word != "--asha"]
    assert main(["recover", str(study), *alone, "--epochs", "1"]) == 0


def test_trainings_share_devices_so_that_all_run_at_once() -> None:
    for trainings, devices in ((1, 1), (1, 4), (3, 2), (4, 2), (5, 2), (6, 1), (7, 3), (9, 8)):
        share = asha_module.device_share(trainings, devices)
        assert 0 < share <= 1
        assert devices * int(1 / share) >= trainings
        assert round(share * 10_000) * (-(-trainings // devices)) <= 10_000
    assert asha_module.device_share(3, 0) == 0


def test_one_device_of_several_is_not_promoted_on(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pretended_cuda(2):
        assert main(["recover", str(study), *PICKS, "--asha", "--device", "cuda:1"]) == 2
    said = capsys.readouterr().err
    assert "but device is 'cuda:1'; give 'cuda', with CUDA_VISIBLE_DEVICES=1" in said
