"""All methods in one sweep: stages run in turn, are skipped when done, and go on when stopped."""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

import automl_compress as ac
from automl_compress.cli import main
from automl_compress.compress import Compressor
from automl_compress.deploy.state import load_state
from automl_compress.engine.contestant import Standing
from automl_compress.engine.extension import reopen
from automl_compress.errors import InterruptedStudy
from automl_compress.recover import training
from automl_compress.recover.gradual import without_bits
from automl_compress.report import contestant_scores, pick_network
from automl_compress.workload import Workload, build_model

SWEEP = """
study: whole
workload: {model: digits_cnn, train: {epochs: 2}}
estimate: {images: 100, calibration_images: 24}
final_repair: recalibrate
strategies: [scaled-random]
seeds: 1
budget: {evaluations: 10}
finalists: 2
engine: {kind: serial}
pipeline:
  sparsify: {method: bn-scales, strength: 0.01, epochs: 1, batch: 64, device: cpu}
  pick: ["point:1"]
  distill: {epochs: 2, batch: 64, device: cpu}
  quantize: {epochs: 1, batch: 64, device: cpu}
  export: [packed]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, undrawn: Callable[[], AbstractContextManager[None]]
) -> tuple[Path, str]:
    """A folder whose pipeline ran undisturbed, and what it printed."""
    place = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    (place / "sweep.yaml").write_text(SWEEP)
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said), undrawn():
        patch.chdir(place)
        assert _run() == 0
    return place / "out", said.getvalue()


@pytest.fixture
def finished(whole: tuple[Path, str], folder: Path) -> str:
    """A copy of it in the current folder, and what it printed."""
    shutil.copytree(whole[0], folder / "out")
    return whole[1]


def _run(*arguments: str) -> int:
    return main(["pipeline", "sweep.yaml", "--out", "out", *arguments])


def _times(*patterns: str) -> dict[Path, int]:
    return {p: p.stat().st_mtime_ns for pattern in patterns for p in Path("out").glob(pattern)}


STAGES = ("sparse/weights.*", "ledger.sqlite", "recovered/*/*", "exported/*")


@pytest.mark.usefixtures("no_figures")
def test_all_stages_run_once_and_again_only_where_something_changed(
    finished: str, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = ("sparsify ...", "search ...", "distill: finalist 1", "quantize: finalist 1")
    places = [finished.index(title) for title in (*titles, "export packed: finalist 1")]
    assert places == sorted(places)
    picked = pick_network(ac.StudyResult("out"), "point:1")
    place = Path("out/recovered") / picked.policy.key
    names = {path.name for path in place.iterdir()}
    assert names == {"distilled.safetensors", "network.safetensors", "recovered.json"}
    network = load_state(place / "network.safetensors", build_model("digits_cnn", {}))
    packed = ac.load_packed(Path("out/exported") / f"{picked.policy.key}.packed").state_dict()
    assert all(torch.equal(value, packed[n]) for n, value in network.state_dict().items())
    said = json.loads((place / "recovered.json").read_text())
    assert (said["earlier_epochs"], said["settings"]["training"]["epochs"]) == (2, 1)
    assert "Recovered networks" in Path("out/report.md").read_text()
    weights = json.loads(Path("out/run.json").read_text())["config"]["workload"]["weights"]
    assert Path(weights) == Path("out/sparse/weights.safetensors")

    before = _times(*STAGES)
    assert _run() == 0
    assert capsys.readouterr().out.count("done before, from the same inputs") == 5
    assert _times(*STAGES) == before

    assert _run("--set", "pipeline.quantize.epochs=2") == 0
    said = capsys.readouterr().out
    assert said.count("done before") == 3
    kept = ("sparse/*", "ledger.sqlite", "recovered/*/distilled.safetensors")
    assert _times(*kept).items() <= before.items()
    again = _times("recovered/*/network.safetensors", "exported/*")
    assert all(before[path] != time for path, time in again.items())


def test_losses_count_against_the_network_that_was_given(finished: str) -> None:
    given = ac.load_workload(ac.WorkloadConfig.of(model="digits_cnn", train={"epochs": 2}))
    images = given.splits.test
    answers = given.model(images.tensor(given.normalization)).argmax(1).numpy()
    right = float((answers == images.labels).mean())
    manifest = ac.StudyResult("out").manifest
    assert manifest.test_given["accuracy"] == pytest.approx(right)
    assert manifest.test_baseline["accuracy"] != pytest.approx(right)
    front = json.loads(Path("out/front.json").read_text())
    assert front["given_network"]["test_accuracy"] == pytest.approx(right)
    assert front["sparsified_network"]["accuracy"] == manifest.baseline["accuracy"]
    tested = [point for point in front["points"] if point["test_accuracy"] is not None]
    for point in tested:
        assert point["test_accuracy_lost"] == pytest.approx(right - point["test_accuracy"])
    assert tested
    card = json.loads(Path("out/sparse/weights.json").read_text())
    assert card["given"]["accuracy"]["test"] == pytest.approx(right)
    (recovered,) = Path("out").glob("recovered/*/recovered.json")
    said = json.loads(recovered.read_text())
    assert said["given"]["test"]["accuracy"] == pytest.approx(right)
    lost = f"{100 * (right - said['accuracy']['after']['test']):.2f}"
    report = Path("out/report.md").read_text()
    assert f"The given network is right on {100 * right:.2f} %" in report
    (row,) = (r for r in report.splitlines() if "| finalist 1 |" in r and "cpu" in r)
    assert row.split(" | ")[4] == lost.replace("-0.00", "0.00")
    for text in (finished, report):
        assert text.count("given network") >= 2
        assert "sparsified network" in text
    ac.write_report("out")
    for name in ("front_size_bytes", "finalists", "recovered"):
        assert "given network" in Path(f"out/figures/{name}.svg").read_text(), name


def test_sparse_weights_are_searched_on_the_data_of_the_given_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which their card names: other images, and others of them held out from training."""
    train = ["train", "digits_cnn", "--device", "cpu", "--epochs", "1", "--set", "seed=3"]
    assert main([*train, "--set", "augment.flip=false", "-o", "base.safetensors"]) == 0
    given = ac.load_workload(ac.WorkloadConfig.of(model="digits_cnn", weights="base.safetensors"))

    def searched(study: ac.Study, *_: Any) -> None:
        assert not isinstance(study.config.workload, Workload)
        sparse = ac.load_workload(study.config.workload)
        assert sparse.normalization == given.normalization
        for name in ("train", "validation", "test"):
            one, two = (getattr(w.splits, name).content_hash for w in (sparse, given))
            assert one == two
        raise InterruptedStudy("seen")

    monkeypatch.setattr(ac.Study, "run", searched)
    assert _run("--set", "workload={model: digits_cnn, weights: base.safetensors}") == 130


@pytest.mark.usefixtures("finished")
def test_what_was_given_is_still_known_after_an_extension_and_a_resumption() -> None:
    before = ac.StudyResult("out").manifest
    heard: list[Any] = []
    extended = ac.Study.extend("out", 1, listener=heard.append)
    standings = [told for told in heard if isinstance(told, Standing)]
    told = {standing.contestant: standing.useful for standing in standings}
    assert told == {s.record.name: s.useful[-1] for s in contestant_scores(extended)}
    manifest = extended.manifest
    assert (manifest.given, manifest.test_given) == (before.given, before.test_given)
    assert manifest.given
    reopen(Path("out"), manifest)
    again = ac.Study.resume("out").manifest
    assert (again.given, again.test_given) == (before.given, before.test_given)


@pytest.mark.usefixtures("finished")
def test_distillation_ends_in_the_cut_network_without_grids() -> None:
    policy = pick_network(ac.StudyResult("out"), "point:1").policy
    model = build_model("digits_cnn", {})
    path = Path("out/recovered") / policy.key / "distilled.safetensors"
    found = load_state(path, model)
    expected = Compressor(model, torch.zeros(1, 1, 8, 8), repair="none").build(without_bits(policy))
    shapes = {n: v.shape for n, v in expected.state_dict().items()}
    assert {n: v.shape for n, v in found.state_dict().items()} == shapes


def _stop_in_training(place: str) -> None:
    """Run until five steps of the next training are made, which is in a folder of this name."""

    def interrupted(trainer: Any, checkpoint: Path, *_: Any) -> None:
        assert place in checkpoint.parts
        for _step in range(5):
            trainer._one_step()
        trainer._save(checkpoint)
        raise InterruptedStudy("stopped; run the same command to go on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Trainer, "run", interrupted)
        assert _run() == 130
    assert len(list(Path("out").rglob("training.checkpoint"))) == 1


def test_sparsity_training_that_was_stopped_goes_on(
    whole: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends in the same weights, which is all that the search is given."""

    def searched(*_: Any) -> None:
        raise InterruptedStudy("seen")

    _stop_in_training("sparse")
    monkeypatch.setattr(ac.Study, "run", searched)
    assert _run() == 130
    assert not list(Path("out").rglob("*.checkpoint"))
    weights = Path("sparse/weights.safetensors")
    assert ("out" / weights).read_bytes() == (whole[0] / weights).read_bytes()


@pytest.mark.usefixtures("finished", "no_figures")
def test_distillation_that_was_stopped_goes_on(whole: tuple[Path, str]) -> None:
    for stage in ("recovered", "exported"):
        shutil.rmtree(Path("out") / stage)
    _stop_in_training("recovered")
    assert _run() == 0
    assert not list(Path("out").rglob("*.checkpoint"))
    (file,) = whole[0].rglob("*.packed")
    assert (Path("out/exported") / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pipeline", "sweep.yaml", "--set", "pipeline.distil={}"], "did you mean 'distill'"),
        (["pipeline", "sweep.yaml", "--set", "pipeline.export=[onx]"], "did you mean 'onnx'"),
        (["pipeline", "sweep.yaml", "--set", "pipeline.sparsify.method=l0"], "bn-scales"),
        (["pipeline", "sweep.yaml", "--set", "pipeline.quantize.epochs=0"], "at least 1"),
        (["search", "sweep.yaml"], "run 'pipeline sweep.yaml'"),
        (["pipeline", "plain.yaml"], "must have the key 'pipeline'"),
    ],
)
def test_bad_input_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (folder / "plain.yaml").write_text(SWEEP.partition("pipeline:")[0])
    assert main([*arguments, "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert not (folder / "out").exists()


def test_a_folder_that_another_process_is_in_stays_as_it_is(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "out").mkdir()
    with (folder / "out" / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert _run() == 2
    captured = capsys.readouterr()
    assert "but another process runs 'out'; wait for it or stop it" in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert [path.name for path in (folder / "out").iterdir()] == [".lock"]


@pytest.mark.usefixtures("finished")
def test_another_search_needs_another_folder(capsys: pytest.CaptureFixture[str]) -> None:
    before = _times("**/*")
    for change in ("budget.evaluations=11", "pipeline.sparsify.epochs=2"):
        capsys.readouterr()
        assert _run("--set", change) == 2
        assert "choose another folder" in capsys.readouterr().err
    assert _times("**/*") == before


@pytest.mark.usefixtures("finished", "no_figures")
def test_a_network_that_was_trained_since_is_not_exported(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = _times("exported/*")
    settings = ("--epochs", "1", "--set", "batch=64", "--set", "device=cpu")
    assert main(["recover", "out", "--pick", "point:1", "--force", *settings]) == 0
    capsys.readouterr()
    assert _run() == 2
    said = capsys.readouterr().err
    assert "must be what it made" in said
    assert "export it with 'recovered'" in said
    assert _times("exported/*") == before


@pytest.mark.parametrize("rule", ["accuracy>=0.99x", "error<=1.2x", "size<<3"])
def test_a_pick_that_is_none_is_refused_before_any_training(
    rule: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("--set", f"pipeline.pick=[{json.dumps(rule)}]") == 2
    assert "a pick must be" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["sweep.yaml"]


@pytest.mark.usefixtures("finished", "no_figures")
def test_stopping_an_export_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("automl_compress.finish.pipeline.export_network", stop)
    for path in Path("out/exported").iterdir():
        path.unlink()
    assert _run() == 130
    assert "run the same pipeline to go on" in capsys.readouterr().err


@pytest.mark.usefixtures("finished")
def test_recover_waits_for_who_writes_to_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    before = _times("recovered/*/*")
    with Path("out/.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["recover", "out", "--pick", "point:1", "--force"]) == 2
    assert "but another process runs 'out'; wait for it or stop it" in capsys.readouterr().err
    assert _times("recovered/*/*") == before
