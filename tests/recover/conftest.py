from __future__ import annotations

import pytest
import torch

from automl_compress.workload import ImageSet, Workload, WorkloadConfig, load_workload


@pytest.fixture(scope="session")
def digits() -> Workload:
    torch.set_num_threads(1)
    return load_workload(WorkloadConfig.of(model="digits_cnn", train={"epochs": 4}))


@pytest.fixture(scope="session")
def few(digits: Workload) -> ImageSet:
    """Training images where it does not matter how much is learnt from them."""
    return digits.splits.train.draw(256, 0)
