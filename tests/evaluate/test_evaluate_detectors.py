"""Detectors of torchvision in the estimator of searches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny_detectors
import torch
from boxed_folders import HEIGHT, WIDTH, write_voc

from automl_compress.evaluate.network import EstimateSettings, NetworkEstimator
from automl_compress.space import Policy
from automl_compress.workload import WorkloadConfig, load_workload


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_voc(tmp_path_factory.mktemp("boxes") / "voc")


@pytest.mark.parametrize("kind", tiny_detectors.KINDS)
def test_detectors_that_look_once_are_estimated(kind: str, voc: Path) -> None:
    data = {"voc": str(voc), "image_size": [HEIGHT, WIDTH]}
    workload = load_workload(WorkloadConfig.of(model=f"tiny_detectors:{kind}", data=data))
    tiny_detectors.alive(workload.model, boxes=0.03)
    settings = EstimateSettings(4, 6, "recalibrate", "float32", batch=2)
    estimator = NetworkEstimator(workload, settings)
    images, _ = estimator.images_and_labels()
    found = workload.task.answers(workload.model(images))
    kinds = torch.where(found[..., 4] >= 0.3, found[..., 5], -1.0)
    said = torch.cat([found[..., :4], kinds[..., None], torch.zeros_like(kinds)[..., None]], 2)
    estimator._reference = replace(estimator._reference, labels=said)  # by the whole network
    whole = estimator.quality(estimator.compressor.model)
    assert whole > 0.9
    groups = [g for g in estimator.compressor.structure.groups if not g.protected]
    cut = estimator.estimate(Policy({f"channels:{g.name}": g.channels // 2 for g in groups}))
    assert cut.ok, cut.reason
    assert 0 <= cut.metrics["map50"] < whole
    assert cut.metrics["macs"] < estimator.compressor.cost(Policy({}))["macs"]
