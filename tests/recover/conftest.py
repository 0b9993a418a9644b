from __future__ import annotations

import pytest
import torch

from automl_compress.workload import Workload, WorkloadConfig, load_workload


@pytest.fixture(scope="session")
def digits() -> Workload:
    torch.set_num_threads(1)
    return load_workload(WorkloadConfig.of(model="digits_cnn", train={"epochs": 4}))
