"""Recovering networks of a study, from the folder alone."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import automl_compress as ac
from automl_compress.cli import main
from automl_compress.deploy.state import load_state
from automl_compress.engine import restore_study
from automl_compress.errors import InputError, InterruptedStudy, StudyError
from automl_compress.finish.folder import finish_writing
from automl_compress.finish.recovering import RecoveryOrder
from automl_compress.finish.task import RecoveryTask
from automl_compress.recover import training
from automl_compress.report import pick_network
from automl_compress.report.recovered import RecoveredNetwork, recovered_networks
from automl_compress.workload import build_model

QUICK = ["--device", "cpu", "--set", "augment.flip=false", "--set", "batch=64"]


def _recover(study: Path, *arguments: str) -> int:
    return main(["recover", str(study), *QUICK, *arguments])


@pytest.fixture(scope="module")
def whole(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose first finalist was recovered undisturbed; must not be changed."""
    folder = Path(shutil.copytree(finished, tmp_path_factory.mktemp("whole") / "out"))
    assert _recover(folder, "--pick", "point:1", "--epochs", "2") == 0
    return folder


def test_picks_are_trained_and_stand_in_folder_and_report(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = ("--pick", "point:1", "--pick", "accuracy>=0.01", "--pick", "point:1")
    assert _recover(study, *rules, "--epochs", "2") == 0
    picked = pick_network(ac.StudyResult(study), "point:1")
    place = study / "recovered" / picked.policy.key
    assert {path.name for path in place.iterdir()} == {"network.safetensors", "recovered.json"}
    said = json.loads((place / "recovered.json").read_text())
    restored = restore_study(study)
    network = load_state(place / "network.safetensors", build_model("digits_cnn", {}))
    assert restored.test_quality(network) == said["accuracy"]["after"]["test"]
    measured = ac.StudyResult(study).test_evaluation(picked.policy)
    assert measured is not None
    assert said["accuracy"]["before"]["test"] == measured.metrics["accuracy"]
    assert said["accuracy"]["after"]["test"] > said["accuracy"]["before"]["test"]
    assert said["settings"]["training"]["epochs"] == 2
    assert said["costs"]["size_bytes"] == measured.metrics["size_bytes"]
    assert torch.isfinite(network(restored.example_input())).all()
    assert main(["export", str(study), "--pick", "point:1", "--recovered", "-o", "n.packed"]) == 0
    packed = ac.load_packed("n.packed").state_dict()
    assert packed.keys() == network.state_dict().keys()
    assert all(torch.equal(value, packed[n]) for n, value in network.state_dict().items())
    report = (study / "report.md").read_text()
    assert "Recovered networks" in report
    assert f"{100 * said['accuracy']['after']['test']:.2f} %" in report
    capsys.readouterr()
    assert _recover(study, "--pick", "point:1", "--epochs", "2") == 0
    assert "recovered already" in capsys.readouterr().out


def test_only_what_was_recovered_can_be_exported_so(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--pick", "point:1", "--recovered", "-o", "n.packed"]
    assert main(["export", str(study), *arguments]) == 2
    assert "recover" in capsys.readouterr().err
    assert not Path("n.packed").exists()


@pytest.mark.usefixtures("no_figures")
def test_other_settings_need_force(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--pick", "point:1", "--set", "held_out=0")
    assert _recover(study, *arguments, "--epochs", "1") == 0
    assert _recover(study, *arguments, "--epochs", "2") == 2
    error = capsys.readouterr().err
    assert "'further' to go on from it (epochs so far: 1)" in error
    assert "'force' to replace it" in error
    assert _recover(study, *arguments, "--epochs", "2", "--force") == 0


def _interrupted(trainer: training.Trainer, checkpoint: Path, *_: object) -> None:
    """In place of a trainer's run: as by Ctrl-C after a few steps."""
    for _step in range(5):
        trainer._one_step()
    trainer._save(checkpoint)
    raise InterruptedStudy("stopped")


@pytest.mark.usefixtures("no_figures")
def test_stopped_and_run_again(
    study: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--pick", "point:1", "--epochs", "2")

    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "run", _interrupted)
        assert _recover(study, *arguments) == 130
    (place,) = (study / "recovered").iterdir()
    assert [path.name for path in place.iterdir()] == ["training.checkpoint"]
    assert _recover(study, *arguments) == 0
    one, other = (
        json.loads((f / "recovered" / place.name / "recovered.json").read_text())
        for f in (study, whole)
    )
    assert one["accuracy"] == other["accuracy"]
    files = [f / "recovered" / place.name / "network.safetensors" for f in (study, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_stop_leaves_those_before_it_in_the_report(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, reported = [], []

    def recover(_: Any, picked: Any, *__: Any) -> None:
        if done:
            raise InterruptedStudy("stopped")
        done.append(picked)

    monkeypatch.setattr(RecoveryTask, "recover", recover)
    monkeypatch.setattr("automl_compress.finish.recovering.write_report", reported.append)
    assert _recover(study, "--pick", "point:1") == 0
    assert _recover(study, "--pick", "point:1") == 130
    assert len(reported) == 1
    done.clear()
    assert _recover(study, "--pick", "point:1", "--pick", "point:2") == 130
    assert len(reported) == 2


def _recovered(study: Path) -> tuple[Path, dict[str, Any]]:
    """The file of the only network that was recovered, and what is said of it."""
    (place,) = (study / "recovered").iterdir()
    return place / "network.safetensors", json.loads((place / "recovered.json").read_text())


def test_networks_in_memory_are_those_that_were_measured(whole: Path) -> None:
    study, said = restore_study(whole), _recovered(whole)[1]["accuracy"]
    tested = {p.policy.key: p.test_accuracy for p in ac.StudyResult(whole).front()}
    key = ac.Policy.from_dict(_recovered(whole)[1]["policy"]).key
    untrained = ac.load_network(whole, f"point:{key}")
    assert study.test_quality(untrained) == tested[key] == said["before"]["test"]
    trained = ac.load_network(whole, f"point:{key}", recovered=True)
    assert study.test_quality(trained) == said["after"]["test"]
    assert all(parameter.requires_grad for parameter in untrained.parameters())
    untrained.requires_grad_(False)
    for parameter in untrained.parameters():
        parameter.zero_()  # its own, no study's
    assert study.test_quality(ac.load_network(whole, f"point:{key}")) == tested[key]
    other = next(name for name in tested if name != key)
    with pytest.raises(StudyError, match="needs a network that was trained"):
        ac.load_network(whole, f"point:{other}", recovered=True)


def test_a_notebook_gives_texts_policies_and_results(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = ac.StudyResult(str(whole))
    rules: list[Any] = []
    policy = ac.Policy.from_dict(_recovered(whole)[1]["policy"])
    assert repr(result) == f"StudyResult('{whole}': study 'tiny', finished)"
    file = str(tmp_path / "k.safetensors")
    ac.export_network(str(whole), policy, "torch", file, recovered=True)
    assert load_file(file).keys() == load_file(_recovered(whole)[0]).keys()
    ac.load_network(result, policy)

    def is_done(_: Any, picked: Any) -> bool:
        rules.append(picked)
        return True

    monkeypatch.setattr(RecoveryOrder, "is_done", is_done)
    monkeypatch.setattr("automl_compress.finish.recovering.write_report", lambda place: place)
    assert ac.recover_networks(str(whole), "knee", epochs=1) == whole
    assert ac.recover_networks(result, [policy, f"point:{policy.key}"], epochs=1) == whole
    assert [picked.policy.key for picked in rules[1:]] == [policy.key]
    with pytest.raises(InputError, match="must be picked by a rule, but are by"):
        ac.recover_networks(whole, [])
    with pytest.raises(StudyError, match="a rule such as 'knee' or a policy, but is 3; correct"):
        ac.load_network(whole, 3)  # type: ignore[arg-type]
    with pytest.raises(StudyError, match="by its path or a StudyResult, but is 3; give"):
        ac.Study.resume(3)  # type: ignore[arg-type]


def test_a_training_that_harms_is_told_of() -> None:
    told: list[str] = []
    nothing: Any = None
    task = RecoveryTask(nothing, Path(), "", nothing, force=False, say=told.append)
    task._tell_harm(0.8, 0.8)
    assert not told
    task._tell_harm(0.9, 0.8)
    assert "before training, 90.00% to 80.00%; give more epochs" in told[0]


@pytest.mark.usefixtures("no_figures")
def test_a_recovered_network_is_trained_further(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What an epoch makes of these few images depends on the processor; here all are kept.
    monkeypatch.setattr("automl_compress.finish.task._quality", lambda *_: 0.0)
    folders = [Path(shutil.copytree(whole, tmp_path / name)) for name in ("still", "on")]
    further = ("--pick", "point:1", "--epochs", "1", "--further")
    assert _recover(folders[0], *further, "--set", "rate=1e-12", "--set", "average=0") == 0
    assert _recover(folders[1], *further) == 0
    before, still, on = (_recovered(folder) for folder in (whole, *folders))
    original = build_model("digits_cnn", {})
    weights = [
        dict(load_state(file, original).named_parameters()) for file, _ in (before, still, on)
    ]
    assert all(torch.allclose(w, weights[1][name], atol=1e-6) for name, w in weights[0].items())
    assert any(not torch.allclose(w, weights[2][name]) for name, w in weights[0].items())
    for file, said in (still, on):
        assert said["settings"]["training"]["epochs"] == 1
        assert said["earlier_epochs"] == 2
        assert said["accuracy"]["before"] == before[1]["accuracy"]["before"]
        restored = restore_study(whole)
        network = load_state(file, original)
        assert restored.test_quality(network) == said["accuracy"]["after"]["test"]
    assert _recover(folders[1], *further) == 0
    assert _recovered(folders[1])[1]["earlier_epochs"] == 3


@pytest.mark.usefixtures("no_figures")
def test_a_further_training_is_kept_if_search_validation_images_prefer_it(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = _recovered(whole)[1]["accuracy"]["after"]["validation"]
    for rate in ("1e-12", "0.01", "0.02"):
        folder = Path(shutil.copytree(whole, tmp_path / rate))
        arguments = ("--pick", "point:1", "--epochs", "1", "--further", "--set", f"rate={rate}")
        assert _recover(folder, *arguments) == 0
        said = _recovered(folder)[1]
        out = capsys.readouterr().out
        left = "it is left so" in out
        worse = said["accuracy"]["before"]["validation"] > said["accuracy"]["after"]["validation"]
        assert ("prefer the network before training" in out) == worse
        assert said.get("earlier_epochs", 0) == (0 if left else 2)
        assert said["accuracy"]["after"]["validation"] >= before


@pytest.mark.usefixtures("no_figures")
def test_a_further_training_that_makes_it_worse_changes_nothing(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path / "out"))
    before = {path: path.read_bytes() for path in (folder / "recovered").rglob("*.*")}
    ruinous = ("--set", "rate=0.5", "--set", "average=0")
    arguments = ("--pick", "point:1", "--epochs", "1", "--further", *ruinous)
    assert _recover(folder, *arguments) == 0
    found = re.search(r"as it was, ([\d.]+)% to ([\d.]+)%; it is left", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) > float(found[2])
    assert {path: path.read_bytes() for path in (folder / "recovered").rglob("*.*")} == before


@pytest.mark.usefixtures("no_figures")
def test_a_further_training_that_was_stopped_goes_on(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [Path(shutil.copytree(whole, tmp_path / name)) for name in ("stopped", "not")]
    arguments = ("--pick", "point:1", "--epochs", "1", "--further")
    began = _recovered(folders[0])[0].read_bytes()

    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "run", _interrupted)
        assert _recover(folders[0], *arguments) == 130
    assert _recovered(folders[0])[0].read_bytes() == began
    for folder in folders:
        assert _recover(folder, *arguments) == 0
    files = [_recovered(folder)[0] for folder in folders]
    assert files[0].read_bytes() == files[1].read_bytes() != began
    assert not files[0].with_name("training.checkpoint").exists()


class _Killed(BaseException):
    """In place of what leaves no time for anything."""


def _reported(folder: Path) -> tuple[RecoveredNetwork, ...]:
    fingerprint = ac.StudyResult(folder).manifest.fingerprint
    return recovered_networks(folder, [fingerprint])


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("at", ["recovered.json.new", "network.safetensors", "recovered.json"])
def test_network_and_document_agree_wherever_it_was_killed(
    whole: Path,
    tmp_path: Path,
    at: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("automl_compress.finish.task._quality", lambda *_: 0.0)
    folder = Path(shutil.copytree(whole, tmp_path / "out"))
    began = _recovered(folder)[0].read_bytes()
    arguments = ("--pick", "point:1", "--epochs", "1", "--further")
    replace = Path.replace

    def replacing(path: Path, target: Path) -> Path:
        if target.name == at:
            raise _Killed
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replacing)
        with pytest.raises(_Killed):
            _recover(folder, *arguments)
    reported = _reported(folder)
    capsys.readouterr()
    assert _recover(folder, *arguments) == 0
    assert ("recovered already" in capsys.readouterr().out) == (at != "recovered.json.new")
    file, said = _recovered(folder)
    if at != "recovered.json.new":  # what had ended was reported before it was put in its place
        assert reported == _reported(folder)
    assert file.read_bytes() != began
    assert said["earlier_epochs"] == 2
    network = load_state(file, build_model("digits_cnn", {}))
    assert restore_study(folder).test_quality(network) == said["accuracy"]["after"]["test"]
    assert {path.name for path in file.parent.iterdir()} == {file.name, "recovered.json"}


@pytest.mark.parametrize("moved", [False, True])
def test_what_was_written_is_put_in_its_place(tmp_path: Path, moved: bool) -> None:
    network = tmp_path / ("network.safetensors" if moved else "network.safetensors.new")
    network.write_text("new")
    for name in ("training.checkpoint", "training.checkpoint.0", "recovered.json"):
        (tmp_path / name).write_text("old")
    assert not finish_writing(tmp_path)
    (tmp_path / "recovered.json.new").write_text("new")
    assert finish_writing(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "network.safetensors": "new",
        "recovered.json": "new",
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pick", "point:1", "--asha"), "leave 'asha' out"),
        (("--pick", "point:1", "--set", "stages=2"), "'stages' is 2; leave it out"),
        (("--pick", "point:1", "--pick", "point:2"), "'further' needs a network that was trained"),
    ],
)
def test_what_cannot_be_trained_further_is_refused(
    whole: Path, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began = {path: path.read_bytes() for path in (whole / "recovered").rglob("*") if path.is_file()}
    assert _recover(whole, *arguments, "--epochs", "2", "--further") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    left = {path: path.read_bytes() for path in (whole / "recovered").rglob("*") if path.is_file()}
    assert left == began


@pytest.mark.usefixtures("no_figures")
def test_a_training_that_other_settings_began_is_given_up_by_force(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--pick", "point:1", "--epochs", "1")

    def interrupted(trainer: training.Trainer, checkpoint: Path, *_: object) -> None:
        trainer._save(checkpoint)
        raise InterruptedStudy("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(training.Trainer, "run", interrupted)
        assert _recover(study, *arguments) == 130
    (checkpoint,) = (study / "recovered").glob("*/training.checkpoint")
    begun = checkpoint.read_bytes()
    other = (*arguments, "--set", "rate=0.002")
    capsys.readouterr()
    assert _recover(study, *other) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'force' to give it up" in error
    assert checkpoint.read_bytes() == begun
    assert _recover(study, *other, "--force") == 0
    assert not checkpoint.exists()


@pytest.mark.usefixtures("no_figures")
def test_a_loss_that_diverges_stops_and_keeps_the_last_good_state(
    study: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--pick", "point:1", "--epochs", "2")
    good = training.learning_rate

    def explode(step: int, steps: int, *rest: float) -> float:
        return good(step, steps, *rest) if step < 0.7 * steps else math.nan

    with monkeypatch.context() as patched:
        patched.setattr(training, "learning_rate", explode)
        capsys.readouterr()
        assert _recover(study, *arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "must stay finite" in error
    (place,) = (study / "recovered").iterdir()
    assert f"the last good state is in '{place / 'training.checkpoint'}'" in error
    assert [path.name for path in place.iterdir()] == ["training.checkpoint"]
    assert _recover(study, *arguments) == 0  # from the end of the first epoch
    files = [f / "recovered" / place.name / "network.safetensors" for f in (study, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_checkpoint_of_another_study_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picked = pick_network(ac.StudyResult(study), "point:1")
    place = study / "recovered" / picked.policy.key
    place.mkdir(parents=True)
    torch.save({"identity": "another study's", "step": 3}, place / "training.checkpoint")
    content = (place / "training.checkpoint").read_bytes()
    assert _recover(study, "--pick", "point:1", "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "is another training's" in error
    assert (place / "training.checkpoint").read_bytes() == content


def test_a_study_whose_data_have_other_classes_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((study / "run.json").read_text())
    manifest["config"]["workload"]["model_args"] = {"num_classes": 7}
    (study / "run.json").write_text(json.dumps(manifest))
    assert _recover(study, "--pick", "point:1", "--epochs", "1") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "one output a class" in error
    assert not (study / "recovered").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pick", "point:77"], "finalist"),
        (["--pick", "size<=1B"], "nearest"),
        (["--pick", "knee", "--epochs", "0"], "at least 1"),
        (["--pick", "knee", "--device", "cuda:77"], "must exist"),
        (["--pick", "knee", "--set", "distil=1"], "did you mean 'distill'"),
        (["--pick", "knee", "--epochs", "2", "--set", "stages=3"], "at most the number of epochs"),
    ],
)
def test_bad_input_is_refused(
    study: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    assert main(["recover", str(study), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert {path: path.read_bytes() for path in study.rglob("*") if path.is_file()} == before
