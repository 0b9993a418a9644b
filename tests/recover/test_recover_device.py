"""Training on CUDA devices, pretended ones where there are none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretend_cuda import OnDevice, pretended_cuda
from torch import Tensor, nn

import automl_compress as ac
from automl_compress.compress import Compressor
from automl_compress.engine.trained import BRIEF, TrainedEstimator, TrainSettings
from automl_compress.errors import InputError
from automl_compress.recover import (
    RecoverySettings,
    Standing,
    find_device,
    recover_policy,
    train_network,
)
from automl_compress.recover.settings import TrainingSettings, section_of
from automl_compress.recover.sparsity import SparsitySettings
from automl_compress.space import Policy
from automl_compress.workload import ImageSet, Normalization, Workload
from automl_compress.workload.placement import move

POLICY = Policy(
    {
        "channels:first": 4,
        "weight_bits:second": 4,
        "activation_bits:second": 8,
        "weight_bits:last": 8,
    }
)
QUICK: dict[str, Any] = {"epochs": 2, "batch": 8, "calibration_images": 8, "held_out": 0.2}


class Net(nn.Module):
    """Two convolutions, BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.last = nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.Linear(5, 3)
        self.drop = nn.Dropout(0.2)
        self.kept: Tensor | None = None
        self.factors = [torch.full((1, 5, 1, 1), 1.5)]

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        if self.kept is None:
            self.kept = torch.arange(x.shape[-1], device=x.device) / 4
        y = self.second(x * self.kept).relu() * self.factors[0]
        found: Tensor = self.last(self.drop(y.mean((2, 3))))
        return found


def _network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    inputs = _images().tensor(Normalization.unit(1))
    return Compressor(_network(), inputs[:1], inputs)


def _images(count: int = 20) -> ImageSet:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
    return ImageSet.of(pixels, rng.integers(0, 3, count))


def _workload(network: nn.Module) -> Workload:
    return Workload.of(network, _images(24), _images(12), name="net")


def _equal(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def _on_device(network: nn.Module) -> list[str]:
    """Tensors of a network that are not on the processor."""
    state = [*network.named_parameters(), *network.named_buffers()]
    held = [pair for module in network.modules() for pair in vars(module).items()]
    return [name for name, value in (*state, *held) if isinstance(value, OnDevice)]


@pytest.mark.parametrize(
    "stated",
    [
        {"distill": 0.0, "augment": {"flip": True, "cutout": 3}},
        {"features": 5.0, "average": 0.9},
        {"optimizer": "adamw", "stages": 2, "average": 0.0, "learned_steps": False},
    ],
    ids=["labels", "features", "stages"],
)
def test_a_recovery_on_a_device_computes_what_one_on_the_processor_does(
    compressor: Compressor, stated: dict[str, Any]
) -> None:
    def recovered(device: str) -> nn.Module:
        settings = RecoverySettings.from_section(section_of(**QUICK, **stated, device=device))
        return recover_policy(
            compressor, POLICY, _images(), Normalization.unit(1), settings
        ).network

    with pretended_cuda(2) as cuda:
        found = recovered("cuda:1")
    assert cuda.operations["aten::convolution"]
    assert not _on_device(found)
    assert not _on_device(compressor.model)
    assert _equal(found, recovered("cpu"))


@pytest.mark.parametrize("method", [None, "bn-scales", "group-lasso"])
def test_a_training_on_a_device_computes_what_one_on_the_processor_does(method: Any) -> None:
    workload = _workload(_network())

    def trained(device: str) -> nn.Module:
        sparsity = None if method is None else SparsitySettings(method, 0.01)
        settings = TrainingSettings(epochs=1, batch=8, device=device)
        return train_network(workload, settings, sparsity).network

    with pretended_cuda() as cuda:
        found = trained("cuda:0")
    assert cuda.operations["aten::convolution"]
    assert not _on_device(found)
    assert _equal(found, trained("cpu"))


def test_brief_trainings_on_a_device_leave_the_network_they_start_from_where_it_is(
    compressor: Compressor,
) -> None:
    workload = _workload(_network())
    training = replace(BRIEF.training, batch=8, device="cuda")
    settings = TrainSettings(2, replace(BRIEF, training=training))
    with pretended_cuda():
        estimator = TrainedEstimator(workload, compressor, "", settings)
        for policy in (Policy({}), POLICY):
            assert estimator.estimate(policy).images == len(workload.splits.validation)
            assert not _on_device(compressor.model)


def test_networks_on_a_device_are_compressed_and_written_on_the_processor(tmp_path: Path) -> None:
    network, device = _network(), torch.device("cuda:0")
    with pretended_cuda():
        inputs = torch.rand(4, 1, 8, 8).to(device)
        move(network, device)(inputs)
        smaller = ac.compress(network, POLICY, inputs[:1], inputs)
        trained = ac.recover(network, POLICY, _images(), **QUICK)
        for made in (smaller, trained, _workload(network).model):
            assert not _on_device(made)
            assert made(torch.rand(2, 1, 8, 8)).shape == (2, 3)
        assert ac.save_packed(trained.to(device), tmp_path / "net.packed", POLICY)
        assert isinstance(network(inputs), OnDevice)


def test_the_pretended_device_refuses_what_a_real_one_does() -> None:
    with pretended_cuda(2):
        there, here = torch.ones(3).to("cuda:0"), torch.ones(3)
        assert torch.equal((there + torch.tensor(1.0)).cpu(), here + 1)
        assert torch.equal(there[torch.tensor([0])].cpu(), here[:1])
        mixed = (
            lambda: there + here,
            lambda: there[torch.tensor([0]).to("cuda:1")],
            lambda: here[torch.tensor([0]).to("cuda:0")],
            lambda: torch.cat([there, here]),
            lambda: nn.functional.linear(here, torch.ones(2, 3).to("cuda:0")),
            lambda: there + torch.ones(3, device="cuda:1"),
            lambda: torch.where(there > 0, here, there),
        )
        for operation in mixed:
            with pytest.raises(RuntimeError, match="to be on the same device"):
                operation()
        with pytest.raises(TypeError, match="cuda device type tensor to numpy"):
            there.numpy()


def test_devices_that_are_found_say_their_index() -> None:
    names = {"auto": "cuda:0", "cuda": "cuda:0", "cuda:1": "cuda:1", "cpu": "cpu"}
    with pretended_cuda(2):
        assert {name: str(find_device(name)) for name in names} == names
        with pytest.raises(InputError, match="there are 2 CUDA devices here"):
            find_device("cuda:2")


def test_networks_that_make_tensors_on_the_processor_are_told_so() -> None:
    class Elsewhere(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * torch.ones(8))

    torch.manual_seed(0)
    settings = TrainingSettings(epochs=1, batch=8, device="cuda")
    with pretended_cuda(), pytest.raises(InputError, match="or train with 'device' cpu"):
        train_network(_workload(Elsewhere().eval()), settings)


def test_a_training_names_its_device_and_goes_on_on_another(tmp_path: Path) -> None:
    workload, path = _workload(_network()), tmp_path / "state"
    settings = TrainingSettings(epochs=2, batch=8, average=0.9, optimizer="adamw", device="cpu")

    def stop(standing: Standing) -> None:
        if standing.step < standing.steps:
            raise InterruptedError

    whole = train_network(workload, settings)
    with pytest.raises(InterruptedError):
        train_network(workload, settings, None, path, stop)
    with pretended_cuda():
        found = train_network(workload, replace(settings, device="cuda"), None, path)
    assert found.card["device"] == "cuda:0 (Pretended)"
    assert whole.card["device"] == "cpu"
    assert _equal(whole.network, found.network)
