"""Training images are mirrored where the network that is known to be good knows such."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.recover import (
    BASELINE,
    Augmentation,
    RecoverySettings,
    SparsitySettings,
    recover_policy,
    section_of,
    train_network,
)
from automl_compress.recover.mirroring import knows_mirrored
from automl_compress.space import Policy
from automl_compress.workload import CLASSIFICATION, ImageSet, Normalization, Workload

QUICK = ("epochs=1", "batch=64", "device=cpu")


class Brightness(nn.Module):
    """Right on every image, from either side."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], 1)


def _bright(count: int) -> ImageSet:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    pixels = rng.integers(0, 100, (count, 1, 6, 6)) + 150 * labels[:, None, None, None]
    return ImageSet.of(pixels.astype(np.uint8), labels)


def test_mirrored_images_are_known_or_not(digits: Workload) -> None:
    assert knows_mirrored(Brightness(), _bright(40), Normalization.unit(1), CLASSIFICATION)
    train = digits.splits.train
    assert not knows_mirrored(digits.model, train, digits.normalization, digits.task)


class Signals(nn.Module):
    """Of (n, 2, 6), right from either side."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten())
        self.linear = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((1, 2))
        return 0 * self.linear(self.layers(x)) + torch.stack([0.5 - mean, mean - 0.5], 1)


def test_examples_that_are_no_images_are_never_mirrored() -> None:
    signals = ImageSet.of(np.tile(np.float32([[[0.0]], [[1.0]]]), (10, 2, 6)), [0, 1] * 10)
    workload = Workload.of(Signals(), signals, signals)
    assert not knows_mirrored(workload.model, signals, workload.normalization, workload.task)
    settings = RecoverySettings.from_section(section_of(QUICK)).training
    for sparsity in (None, SparsitySettings()):
        card = train_network(workload, settings, sparsity).card
        assert card["training"]["augment"]["flip"] is False


def test_what_is_stated_is_done() -> None:
    for flip in (False, True):
        stated = RecoverySettings.from_section(section_of([f"augment.flip={flip}".lower()]))
        assert stated.training.mirroring(pytest.fail).augment.flip is flip
    assert BASELINE.augment == Augmentation(flip=None)
    assert BASELINE.mirroring(lambda: True).augment == Augmentation(flip=True)


def test_recovery_and_sparsity_training_do_not_mirror_digits_but_training_does(
    digits: Workload, few: ImageSet
) -> None:
    compressor = Compressor(digits.model, digits.example_input())
    settings = RecoverySettings.from_section(section_of(QUICK))
    recovered = recover_policy(compressor, Policy({}), few, digits.normalization, settings)
    assert not recovered.mirrored
    workload = replace(digits, splits=replace(digits.splits, train=few))
    brief = replace(settings.training, rate=0.001)
    sparse = train_network(workload, brief, SparsitySettings(method="bn-scales"))
    assert sparse.card["training"]["augment"]["flip"] is False
    assert train_network(workload, brief).card["training"]["augment"]["flip"] is True
