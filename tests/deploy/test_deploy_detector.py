"""Detectors of torchvision, compressed and exported with their post-processing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_detectors
import torch
from boxed_folders import HEIGHT, WIDTH
from torch import Tensor

import automl_compress as ac
from automl_compress.compress import Compressor
from automl_compress.deploy.detector import (
    DetectorFile,
    DetectorReport,
    export_detector,
    matched,
)
from automl_compress.deploy.formats import _agreement
from automl_compress.deploy.onnx import OnnxReport
from automl_compress.space import Policy
from automl_compress.workload import Task, build_model
from automl_compress.workload.torchvision_detectors import SingleStage

pytest.importorskip("onnxruntime")


def images(count: int) -> Tensor:
    return torch.rand(count, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def detector(kind: str) -> Any:
    return tiny_detectors.alive(build_model(f"tiny_detectors:{kind}", {}), boxes=0.03)


def compressed(model: Any, task: Task) -> tuple[Policy, Any]:
    """Three quarters of all channels, and 8 bits before the heads."""
    compressor = Compressor(model, images(1), images(12), repair="none", task=task)
    groups = [group for group in compressor.structure.groups if not group.protected]
    assert len(groups) >= 3
    layers = [layer.name for layer in compressor.structure.layers if layer.quantizable]
    bits = {f"weight_bits:{name}": 8 for name in layers if "head" not in name}
    policy = Policy({**{f"channels:{g.name}": g.channels * 3 // 4 for g in groups}, **bits})
    return policy, compressor.build(policy)


@pytest.mark.parametrize("kind", ["ssd", pytest.param("retinanet", marks=pytest.mark.slow), "fcos"])
def test_detectors_give_their_boxes_from_files(kind: str, tmp_path: Path) -> None:
    model = detector(kind)
    assert isinstance(model, SingleStage)
    task = model.detection(kind, (HEIGHT, WIDTH))
    policy, network = compressed(model, task)
    with torch.no_grad():
        expected = network(images(12))
    assert (task.answers(expected)[..., 5] >= 0).sum() > 50

    packed = tmp_path / "net.packed"
    ac.save_packed(network, packed, policy, architecture=f"tiny_detectors:{kind}", original=model)
    with torch.no_grad():
        loaded = ac.load_packed(packed, f"tiny_detectors:{kind}")
        assert torch.equal(loaded(images(12)), expected)

    path = tmp_path / "net.onnx"
    whole = export_detector(model, task, path, images(1), None, images(4))
    assert whole.detections > 20
    assert whole.agreement > 0.99
    found = DetectorFile(path)(images(12))
    with torch.no_grad():
        same, count = matched(found, task.answers(model(images(12))))
    assert same > 0.99 * count
    assert np.isfinite(found.numpy()).all()


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k != "ssd")) for k in tiny_detectors.KINDS]
)
def test_compressed_detectors_run_on_integers(kind: str, tmp_path: Path) -> None:
    model = detector(kind)
    task = model.detection(kind, (HEIGHT, WIDTH))
    policy, network = compressed(model, task)
    path = tmp_path / "net.onnx"
    report = export_detector(network, task, path, images(1), images(12), images(4), ("a", "b"))
    assert report.onnx.integer_kernels >= len(policy.of_kind("weight_bits"))
    assert report.onnx.differences["scores"] < 0.1


def test_files_of_detectors_that_are_sure_of_nothing_claim_no_agreement(tmp_path: Path) -> None:
    onnx = OnnxReport(tmp_path / "net.onnx", 10, {}, 0, 24, 1.0, 0.1, 1.0, {"scores": 0.05})
    said = _agreement(DetectorReport(onnx, float("nan"), 0))
    assert said.startswith("no detections of score 0.3 or more; largest difference")
