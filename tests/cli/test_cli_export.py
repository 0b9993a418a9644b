"""Exporting networks of a study, from the folder alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import automl_compress as ac
from automl_compress.cli import main
from automl_compress.deploy.runtime import Runner
from automl_compress.deploy.state import load_state
from automl_compress.engine import restore_study
from automl_compress.finish.export import _input
from automl_compress.report import pick_network
from automl_compress.workload import ImageSet, Normalization, build_model

pytestmark = pytest.mark.usefixtures("operators_read_once")


def test_a_packed_finalist_is_the_one_that_was_measured(
    finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finished), "--pick", "point:1", "-o", "deep/net.packed"]) == 0
    printed = capsys.readouterr().out
    result = ac.StudyResult(finished)
    picked = pick_network(result, "point:1")
    measured = result.test_evaluation(picked.policy)
    assert measured is not None
    accuracy = f"{measured.metrics['accuracy']:.2%}"
    assert f"picked finalist 1, key {picked.policy.key}: {accuracy} accuracy on the test" in printed
    size = Path("deep/net.packed").stat().st_size
    promised = int(measured.metrics["size_bytes"])
    assert f"deep/net.packed: {size:,} bytes on disk, {promised:,} promised" in printed
    assert f"read back, it has {accuracy} accuracy on the" in printed
    assert "its input is (n, 1, 8, 8) of float32" in printed
    loaded = ac.load_packed("deep/net.packed")
    restored = restore_study(finished)
    with torch.no_grad():
        x = restored.example_input()
        assert torch.equal(loaded(x), restored.build(picked.policy)(x))
    assert restored.test_quality(loaded) == measured.metrics["accuracy"]


@pytest.mark.parametrize(
    ("kind", "scaling", "said"),
    [
        (np.uint8, ((0.5,), (0.25,)), "(n, 1, 4, 6) of float32: pixels of 0..255 / 255, minus "),
        (np.uint8, ((0.0,), (1.0,)), "(n, 1, 4, 6) of float32: pixels of 0..255 / 255"),
        (np.float32, ((0.0,), (1.0,)), "(n, 1, 4, 6) of float32, as the data set gives it"),
    ],
)
def test_who_runs_a_file_is_told_what_it_is_fed_with(kind: Any, scaling: Any, said: str) -> None:
    images = ImageSet.of(np.ones((2, 1, 4, 6), kind), [0, 1])
    workload: Any = SimpleNamespace(
        splits=SimpleNamespace(test=images), normalization=Normalization(*scaling)
    )
    ending = "[0.5], over [0.25]" if said.endswith("minus ") else ""
    assert _input(workload) == f"its input is {said}{ending}"


def test_a_torch_file_needs_no_study(finished: Path, folder: Path) -> None:
    arguments = ["export", str(finished), "--pick", "accuracy>=0.1", "--format", "torch"]
    assert main([*arguments, "-o", "net.safetensors"]) == 0
    loaded = load_state("net.safetensors", build_model("digits_cnn", {}))
    assert loaded(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_an_onnx_file_is_compared_and_measured_as_it_runs(
    finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    arguments = ["export", str(finished), "--pick", "point:1", "--format", "onnx"]
    assert main([*arguments, "-o", "deep/net.onnx"]) == 0
    printed = capsys.readouterr().out
    said = r"(\d+) layers hold integers, .* bits on the INT8 grid; .* on (\d+) test examples: "
    agreement = re.search(said + r"top-1 agreement ([\d.]+)%, largest difference", printed)
    assert agreement is not None
    assert int(agreement[1]) > 0
    restored = restore_study(finished)
    assert int(agreement[2]) == len(restored.workload.splits.test)
    assert float(agreement[3]) > 90
    runner = Runner(Path("deep/net.onnx"))
    images = restored.some_test_images(10**9)
    right = runner(images.numpy())[0].argmax(1) == restored.workload.splits.test.labels
    assert f"read back, it has {right.mean():.2%} accuracy" in printed


def test_a_network_outlives_the_file_of_its_search_space(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stated = json.loads((study / "run.json").read_text())
    stated["config"]["space"] = "gone.yaml"
    (study / "run.json").write_text(json.dumps(stated))
    assert main(["export", str(study), "--pick", "point:1", "-o", "net.packed"]) == 0
    capsys.readouterr()
    assert main(["extend", str(study), "--evaluations", "4"]) == 2
    assert "'gone.yaml' is no file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pick", "sizes<=2kB"], "a pick must be 'knee', 'point:ID' or limits"),
        (["--pick", "size<=2B"], "the nearest is"),
        (["--pick", "knee", "--format", "tar"], "a format must be one of onnx, packed, torch"),
        (["--pick", "knee", "-o", "kept"], "give --force to replace it"),
        (["--pick", "knee", "-o", "."], "is a folder"),
        (["--pick", "knee", "-o", "kept/n", "--format", "onnx"], "kept' is none; give another"),
    ],
)
def test_wrong_input_is_refused_in_one_line_and_nothing_is_written(
    arguments: list[str],
    said: str,
    finished: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("kept").write_text("mine")
    assert main(["export", str(finished), "-o", "net", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["kept"]
    assert Path("kept").read_text() == "mine"


def test_a_folder_that_is_no_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "nowhere", "--pick", "knee", "-o", "net"]) == 2
    assert "must hold run.json" in capsys.readouterr().err


def test_force_replaces_a_file(finished: Path, folder: Path) -> None:
    Path("net").write_text("old")
    assert main(["export", str(finished), "--pick", "knee", "-o", "net", "--force"]) == 0
    assert ac.load_packed("net").training is False


def test_a_study_whose_network_has_changed_is_refused(
    finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = folder / "changed"
    ac.StudyResult(finished).save(changed)
    manifest = changed / "run.json"
    manifest.write_text(re.sub(r'"epochs": 2', '"epochs": 1', manifest.read_text()))
    assert main(["export", str(changed), "--pick", "knee", "-o", "net"]) == 2
    assert "have changed; restore them or search again" in capsys.readouterr().err
    assert not Path("net").exists()
