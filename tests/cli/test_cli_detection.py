"""A detector from its training to its files, by the commands a user gives."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from boxed_folders import HEIGHT, WIDTH, annotation, drawn_parts, write_coco, write_voc

import automl_compress as ac
from automl_compress.bench.estimate import EstimateTask, LoopBench
from automl_compress.cli import main
from automl_compress.deploy.detector import CLASSES, DETECTIONS, DetectorFile, matched
from automl_compress.deploy.runtime import Runner
from automl_compress.engine import restore_study
from automl_compress.engine.config import read_config
from automl_compress.evaluate.network import EstimateSettings, NetworkEstimator
from automl_compress.recover import DETECTOR_RECOVERY
from automl_compress.report import pick_network
from automl_compress.space import Policy, SpaceRules
from automl_compress.workload import Workload, WorkloadConfig, load_workload

pytestmark = pytest.mark.usefixtures("operators_read_once")

SMALL = "{widths: [8, 8, 16, 16, 16], blocks: [1, 1, 1, 1], neck: 16}"
SWEEP = f"""
study: boxes
workload:
  model: fcos_resnet
  weights: detector.safetensors
  model_args: {SMALL}
  data: {{voc: voc, image_size: [{HEIGHT}, {WIDTH}]}}
estimate: {{images: 8, calibration_images: 8, repair: recalibrate}}
final_repair: recalibrate
strategies: [scaled-random]
seeds: 1
budget: {{evaluations: 8}}
finalists: 2
engine: {{kind: serial}}
"""
TRAINING = (
    *("--epochs", "48", "--device", "cpu", "--set", "batch=8", "--set", "rate=0.05"),
    *("--set", "augment.crop=4", "--set", "augment.flip=false"),
)


def _train(folder: Path) -> int:
    data = f"data.image_size=[{HEIGHT},{WIDTH}]"
    args = "model_args=" + json.dumps(
        {"widths": [8, 8, 16, 16, 16], "blocks": [1, 1, 1, 1], "neck": 16}
    )
    return main([
        "train", "fcos_resnet", "--data", str(folder / "voc"), "--set", data, "--set", args,
        *TRAINING, "-o", str(folder / "detector.safetensors"),
    ])  # fmt: skip


def _card(folder: Path) -> dict[str, Any]:
    card: dict[str, Any] = json.loads((folder / "detector.json").read_text())
    return card


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("detection")
    write_voc(folder / "voc", {"train": 16, "val": 8, "test": 8})
    assert _train(folder) == 0
    data = _card(folder)["workload"]["data"]
    scaling = f"mean: {data['mean']}, std: {data['std']}, image_size"
    (folder / "sweep.yaml").write_text(SWEEP.replace("image_size", scaling))
    assert main(["search", str(folder / "sweep.yaml"), "--out", str(folder / "out")]) == 0
    return folder


def _recovered(folder: Path) -> Path:
    """The folder of a study with a recovered network, not the smallest, which is sure of little."""
    options = [x.replace("48", "8").replace("rate=0.05", "rate=0.003") for x in TRAINING]
    arguments = ["recover", str(folder / "out"), "--pick", "point:2", *options]
    assert main([*arguments, "--set", "calibration_images=8"]) == 0
    return folder / "out"


def test_detectors_of_torchvision_are_trained(tmp_path: Path) -> None:
    """Also towards sparsity; what a sweep must say has no mean, which such networks take off."""
    few = ["--epochs", "1", "--device", "cpu", "--set", "batch=2", "--set", "augment.crop=0"]
    start, sparse = tmp_path / "ssd.safetensors", tmp_path / "sparse.safetensors"
    data = ["--data", str(write_voc(tmp_path / "voc")), "--set", "data.image_size=[64,96]"]
    assert main(["train", "tiny_detectors:ssd", *data, *few, "-o", str(start)]) == 0
    words = ["sparsify", "tiny_detectors:ssd", "--weights", str(start), *few, "-o", str(sparse)]
    assert main(words) == 0
    cards = [json.loads(path.with_suffix(".json").read_text()) for path in (start, sparse)]
    for card in cards:
        assert card["quality"] == "map50"
        assert not {"mean", "std"} & card["workload"]["data"].keys()
    assert cards[1]["penalty"]["after"] < cards[1]["penalty"]["before"]
    said = {**cards[0]["workload"], "weights": str(start)}
    assert load_workload(WorkloadConfig.of(**said)).task.blank


def test_detectors_with_another_form_of_loss_are_not_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(write_voc(tmp_path / "voc")), "--set", "data.image_size=[64,96]"]
    words = ["train", "tiny_detectors:lossless", *data]
    assert main([*words, "-o", str(tmp_path / "never.safetensors")]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "'compute_loss'" in said.err
    assert not said.out


def test_the_card_of_a_detector_names_its_metric(folder: Path) -> None:
    card = _card(folder)
    assert card["quality"] == "map50"
    assert card["map50"]["test"] > 0.5
    assert card["map"]["test"] < card["map50"]["test"]
    assert "accuracy" not in card
    assert card["images"]["train"]["images"] == 16
    assert card["workload"]["data"]["search_validation"] == {"from": "train", "images": 8}


def test_ledger_front_and_report_never_say_accuracy(folder: Path) -> None:
    out = folder / "out"
    result = ac.StudyResult(out)
    baseline = result.manifest.test_baseline
    assert 0.5 < baseline["map50"] <= 1.0
    assert baseline["map50"] == pytest.approx(_card(folder)["map50"]["test"], abs=1e-6)
    assert result.manifest.workload["task"] == "detection"
    front = json.loads((out / "front.json").read_text())
    assert front["objectives"][0] == {"name": "error", "unit": "1", "of": "map50"}
    assert {"map50_se", "test_map50"} <= front["points"][0].keys()
    columns = pd.read_parquet(out / "evaluations.parquet").columns
    assert {"map50", "map50_se"} <= set(columns)
    texts = [(out / "report.md").read_text(), json.dumps(front), (out / "run.json").read_text()]
    texts += [" ".join(columns), *(path.read_text() for path in out.glob("figures/*.svg"))]
    texts += [(out / "report.html").read_text()]
    for text in texts:
        assert "accurac" not in text.lower()
        assert "top-1" not in text.lower()
    assert "mAP50" in texts[0]
    assert "IoU" in texts[0]
    assert result.front()[0].test_accuracy is None


def test_picks_speak_of_the_metric(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = ac.StudyResult(folder / "out")
    assert pick_network(result, "map50>=0").tested
    arguments = ["export", str(folder / "out"), "-o", str(folder / "never")]
    assert main([*arguments, "--pick", "map50>=1,size<=1B"]) == 2
    said = capsys.readouterr().err
    assert "mAP50" in said
    assert main([*arguments, "--pick", "accuracy>=0.5"]) == 2
    assert "judged by map50" in capsys.readouterr().err
    assert main([*arguments, "--pick", "point:1", "--raw"]) == 2
    assert "onnx only" in capsys.readouterr().err


def test_constraints_name_the_metric(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = str(folder / "sweep.yaml")
    out = ["--out", str(folder / "no")]
    assert main(["search", sweep, *out, "--set", "constraints=[accuracy >= 0.5]"]) == 2
    assert "judged by map50" in capsys.readouterr().err
    assert not (folder / "no").exists()


def test_detections_have_no_divergence_to_minimise(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", str(folder / "sweep.yaml"), "--out", str(tmp_path / "out")]
    assert main([*words, "--set", "objectives=[divergence, macs]"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "'objectives' must go by what is measured here, error, size_bytes" in error
    assert "goes by 'divergence'" in error


def test_a_packed_detector_is_the_one_that_was_measured(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "net.packed"
    assert main(["export", str(folder / "out"), "--pick", "point:1", "-o", str(path)]) == 0
    result = ac.StudyResult(folder / "out")
    picked = pick_network(result, "point:1")
    measured = result.test_evaluation(picked.policy)
    assert measured is not None
    printed = capsys.readouterr().out
    assert f"read back, it has {measured.quality:.2%} mAP50 on the 8 test examples" in printed
    restored = restore_study(folder / "out")
    x = restored.some_test_images(3)
    with torch.no_grad():
        assert torch.equal(ac.load_packed(path)(x), restored.build(picked.policy)(x))


def test_a_detector_is_recovered_and_exported_with_its_post_processing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _recovered(folder)
    (document,) = [json.loads(p.read_text()) for p in out.glob("recovered/*/recovered.json")]
    after, before = (document["map50"][state]["test"] for state in ("after", "before"))
    assert after > before - 0.1
    assert set(document["standard_error"]) == {"map50_se"}
    assert "test mAP50" in capsys.readouterr().out
    path = folder / "net.onnx"
    export = ["export", str(out), "--pick", "point:2", "--recovered", "--format", "onnx"]
    assert main([*export, "-o", str(path)]) == 0
    printed = capsys.readouterr().out
    share, count = re.search(r"([\d.]+)% of (\d+) detections", printed).groups()  # type: ignore[union-attr]
    assert float(share) > 90
    assert int(count) > 5
    same, known = _same_detections(folder, [*export[:-1], "packed"], path)
    assert (share, count) == (f"{100 * same / known:.2f}", str(known))
    assert float(re.search(r"read back, it has ([\d.]+)% mAP50", printed)[1]) > 50  # type: ignore[index]
    _check_file(path, restore_study(out), after)
    assert main([*export, "--raw", "-o", str(folder / "raw.onnx")]) == 0
    assert "top-1" not in capsys.readouterr().out
    raw = Runner(folder / "raw.onnx")(restore_study(out).some_test_images(3).numpy())[0]
    assert raw.shape == (3, 2 + 5, 8 * 12 + 4 * 6 + 2 * 3)


def _same_detections(folder: Path, export: list[str], path: Path) -> tuple[int, int]:
    """How many of the network's detections its file gives too, counted anew, and how many."""
    packed = folder / "same.packed"
    assert main([*export, "-o", str(packed)]) == 0
    restored = restore_study(folder / "out")
    x, task = restored.some_test_images(8), restored.workload.task
    with torch.no_grad():
        expected = task.answers(ac.load_packed(packed)(x))  # type: ignore[attr-defined]
    return matched(DetectorFile(path)(x), expected)


def _check_file(path: Path, restored: object, expected: float) -> None:
    import onnx

    model = onnx.load(path)
    assert [output.name for output in model.graph.output] == [DETECTIONS]
    assert json.loads({p.key: p.value for p in model.metadata_props}[CLASSES]) == ["bar", "cell"]
    assert any(node.op_type == "QuantizeLinear" for node in model.graph.node)
    found = restored.test_quality_of_answers(DetectorFile(path))  # type: ignore[attr-defined]
    assert found == pytest.approx(expected, abs=0.1)


def test_matched_detections_by_hand() -> None:
    expected = torch.tensor(
        [[[0, 0, 10, 10, 0.9, 0], [20, 0, 30, 10, 0.8, 1], [0, 0, 9, 9, 0.1, 0]]]
    )
    found = torch.tensor([[[0, 0, 10, 9.5, 0.7, 0], [20, 0, 30, 10, 0.8, 0], [0, 0, 0, 0, 0, -1]]])
    assert matched(found, expected) == (1, 2)
    assert matched(expected, expected) == (2, 2)


@pytest.fixture(scope="module")
def workload(folder: Path) -> Workload:
    loaded = read_config(folder / "sweep.yaml").workload
    return loaded if isinstance(loaded, Workload) else load_workload(loaded)


BASE = EstimateSettings(8, 8, "recalibrate", "float32")


@pytest.fixture(scope="module")
def plain(workload: Workload) -> NetworkEstimator:
    return NetworkEstimator(workload, BASE)


@pytest.mark.parametrize(
    ("changes", "policy"),
    [
        ({"criterion": "taylor"}, {"channels:stage8.0.conv1": 4}),
        pytest.param(
            {"kernel_criterion": "variational"},
            {"kernel_sparsity:stage8.0.conv1": 0.5},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_criteria_that_learn_from_answers_work_for_detectors(
    workload: Workload, plain: NetworkEstimator, changes: dict[str, Any], policy: dict[str, Any]
) -> None:
    """They choose others than the size of weights does."""
    estimator = NetworkEstimator(workload, replace(BASE, **changes))
    chosen, other = (e.compressor.build(Policy(policy)) for e in (estimator, plain))
    assert estimator.estimate(Policy(policy)).ok
    weights = [network.get_submodule("stage8.0.conv1").weight for network in (chosen, other)]
    assert weights[0].shape == weights[1].shape
    assert not torch.equal(*weights)


def test_repairs_of_a_detector_are_measured(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automl_compress.bench.repair.REPAIRS", ("none", "recalibrate"))
    sweep, output = str(folder / "sweep.yaml"), folder / "rows.json"
    words = ["bench", "repair", sweep, "-o", str(folder / "pages"), "--json", str(output)]
    assert main(words) == 0
    rows = json.loads(output.read_text())
    best = max(row["quality"] for row in rows if row["repair"] == "recalibrate")
    assert max(row["quality"] for row in rows if row["repair"] == "none") <= best
    assert 0.3 < best <= rows[0]["baseline"] + 0.1
    (page,) = [path.read_text() for path in (folder / "pages").iterdir()]
    assert f"The mAP50 of the uncompressed network: {rows[0]['baseline']:.2%}" in page
    assert "ccurac" not in page + capsys.readouterr().out


def test_estimates_of_a_detector_agree_with_the_naive_loop(workload: Workload) -> None:
    pytest.importorskip("torch_pruning")
    settings = EstimateSettings(8, 8, "recalibrate", "float32", batch=8)
    bench = LoopBench(EstimateTask(workload, settings, SpaceRules()))
    policies = bench.policies(4, 0)
    assert len(bench.groups) > 3
    assert bench.largest_difference(policies) < 0.02
    bench.naive._labels = bench.naive._labels.flip(0)  # and more would be noticed
    assert bench.largest_difference([Policy({})]) > 0.1


@pytest.mark.usefixtures("blank_figures")
def test_the_audit_of_a_detector_names_its_metric(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(folder / "out", out)
    words = ["audit", str(out), "--policies", "8", "--steps", "1", "--device", "cpu"]
    assert main([*words, "--json", str(tmp_path / "audit.json")]) == 0
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "audit.json").read_text())
    assert document["quality"] == "map50"
    assert document["settings"]["train"]["training"]["batch"] == DETECTOR_RECOVERY.training.batch
    assert all("map50" in row for row in document["policies"])
    assert "mAP50 after training" in printed
    report = (out / "report.md").read_text() + (out / "report.html").read_text()
    assert "mAP50 after training" in report
    for text in (printed, report, json.dumps(document)):
        assert "accurac" not in text.lower()


@pytest.mark.parametrize("kind", ["image", "outside", "class", "weights"])
def test_bad_data_is_one_line(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    voc = write_voc(tmp_path / "voc")
    boxes = {"outside": ("cell", 0, 0, 200, 20), "class": ("dust", 0, 0, 20, 20)}
    if kind == "image":
        (voc / "JPEGImages" / "val0.png").unlink()
    elif kind == "weights":
        write_coco(tmp_path / "coco")
        for path in (tmp_path / "coco" / "annotations").iterdir():
            document = json.loads(path.read_text())
            document["categories"].append({"id": 99, "name": "dust"})
            path.write_text(json.dumps(document))
    else:
        image = drawn_parts()["val"][0]
        (voc / "Annotations" / "val0.xml").write_text(annotation(image, [boxes[kind]]))
    data = f"coco: {tmp_path / 'coco'}" if kind == "weights" else f"voc: {voc}"
    sweep = SWEEP.replace("voc: voc", data).replace("images: 8,", "images: 4,", 1)
    (folder / "bad.yaml").write_text(sweep)
    assert main(["search", str(folder / "bad.yaml"), "--out", str(tmp_path / "no")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    words = {"image": "val0", "outside": "outside", "class": "'dust'", "weights": "shape"}
    assert words[kind] in said
