"""Shipped networks with published weights on all 10,000 test images of CIFAR-10."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from automl_compress.workload import DataConfig, Workload, WorkloadConfig, load_workload
from automl_compress.workload.folder import FolderSource

pytestmark = pytest.mark.cifar


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One cache for all tests here, so that the images are decoded once."""
    folder = tmp_path_factory.getbasetemp() / "cifar"
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(folder))


def _workload(name: str) -> Workload:
    root = os.environ.get("AUTOML_COMPRESS_TEST_CIFAR10")
    weights = os.environ.get("AUTOML_COMPRESS_TEST_WEIGHTS")
    if not root or not weights:
        pytest.skip("AUTOML_COMPRESS_TEST_CIFAR10 and AUTOML_COMPRESS_TEST_WEIGHTS are not set")
    data = DataConfig(FolderSource(Path(root)), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    path = Path(weights) / f"{name}_cifar10.safetensors"
    return load_workload(WorkloadConfig(name, data, weights=path))


@pytest.mark.parametrize(
    ("name", "accuracy"),
    [("resnet20", 0.9173), ("resnet32", 0.9263), ("resnet44", 0.9310), ("resnet56", 0.9339)],
)
def test_accuracy(name: str, accuracy: float) -> None:
    workload = _workload(name)
    splits, correct = workload.splits, 0
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [50_000, 5000, 5000]
    with torch.no_grad():
        for images in (splits.validation, splits.test):
            for start in range(0, len(images), 500):
                batch = images.tensor(workload.normalization, start, start + 500)
                best = workload.model(batch).argmax(1).numpy()
                correct += int((best == images.labels[start : start + 500]).sum())
    assert correct / 10_000 == pytest.approx(accuracy, abs=0.0002)


def test_the_three_splits_share_no_image() -> None:
    splits = _workload("resnet20").splits
    parts = [
        {image.tobytes() for image in one.images}
        for one in (splits.train, splits.validation, splits.test)
    ]
    assert not parts[0] & parts[1]
    assert not parts[0] & parts[2]
    assert not parts[1] & parts[2]
