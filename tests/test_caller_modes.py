"""What a caller of PyTorch has set changes no result, and stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import automl_compress as ac

MODES = {
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "device": lambda: torch.device("meta"),
    "types": lambda: default_type(torch.float64),
}


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _modes() -> list[object]:
    return [
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    ]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.relu(self.conv(x)).mean((2, 3)))


def _made(network: nn.Module) -> dict[str, object]:
    """Hashes of what the public functions make."""
    rng = np.random.default_rng(0)
    images = ac.ImageSet.of(rng.integers(0, 256, (12, 1, 8, 8), np.uint8), np.arange(12) % 3)
    workload = ac.Workload.of(network, images, images)
    x, train = workload.example_input(), workload.splits.train
    policy = ac.Policy({"channels:conv": 3, "weight_bits:conv": 4})
    inputs = train.tensor(workload.normalization)
    made = {
        "compressed": ac.compress(network, policy, x, inputs),
        "recovered": ac.recover(network, policy, train, epochs=1, batch=8),
    }
    return {
        "workload": workload.identity,
        "cost": ac.cost(network, policy, x),
        "space": repr(ac.SearchSpace.from_model(network, x)),
        **{name: [p.tolist() for p in network.parameters()] for name, network in made.items()},
    }


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net()


@pytest.fixture(scope="module")
def usual(network: nn.Module) -> dict[str, object]:
    return _made(network)


@pytest.mark.parametrize("name", MODES)
def test_results_are_those_of_no_mode(
    name: str, network: nn.Module, usual: dict[str, object]
) -> None:
    mode: AbstractContextManager[object] = MODES[name]()
    with mode:
        before = _modes()
        found = _made(network)
        assert _modes() == before
    assert found == usual


def test_shipped_networks_are_float32_under_another_default_type() -> None:
    config = ac.WorkloadConfig.of(model="digits_cnn", train={"epochs": 1})
    with default_type(torch.float64):
        workload = ac.load_workload(config)
        assert torch.get_default_dtype() is torch.float64
    assert {p.dtype for p in workload.model.parameters()} == {torch.float32}
