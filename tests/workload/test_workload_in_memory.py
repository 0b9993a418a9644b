"""A network and data that are at hand in Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.jit import ScriptModule
from torch.utils.data import TensorDataset

from automl_compress.deploy import load_packed, save_packed
from automl_compress.errors import DeployError
from automl_compress.space import Policy
from automl_compress.workload import (
    ImageSet,
    Normalization,
    Workload,
    WorkloadConfig,
    load_workload,
)
from automl_compress.workload.fcos_resnet import FcosResNet

Refused = Callable[..., None]


class Net(nn.Module):
    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten())
        self.linear = nn.Linear(4 * 6 * 6, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.layers(x))


def _images(count: int, seed: int = 0) -> ImageSet:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 1, 8, 8), np.uint8)
    return ImageSet.of(pixels, np.arange(count) % 3)


def test_torch_data_sets_and_arrays_are_alike_and_the_network_is_left_alone() -> None:
    train, test = _images(12), _images(10, seed=1)
    network = Net().train()
    data_set = TensorDataset(torch.from_numpy(train.images), torch.from_numpy(train.labels))
    workload = Workload.of(network, data_set, test, mean=[0.5], std=[0.25])
    assert workload.identity == Workload.of(network, train, test, mean=[0.5], std=[0.25]).identity
    assert workload.name == "Net"
    assert workload.classes == ("0", "1", "2")
    assert (len(workload.splits.validation), len(workload.splits.test)) == (5, 5)
    np.testing.assert_allclose(
        workload.example_input()[0], (train.images[0] / 255.0 - 0.5) / 0.25, atol=1e-6
    )
    assert network.training
    assert network.linear.weight.requires_grad
    network.linear.weight.data.zero_()
    assert workload.model.linear.weight.abs().sum() > 0
    assert workload.identity != Workload.of(network, train, test, mean=[0.5], std=[0.25]).identity


@pytest.mark.parametrize("wrap", [partial(torch.compile, backend="eager"), nn.DataParallel])
def test_wrapped_networks_are_those_inside(wrap: Callable[[nn.Module], nn.Module]) -> None:
    network, train, test = Net(), _images(12), _images(10, seed=1)
    workload = Workload.of(wrap(network), train, test)
    assert type(workload.model) is Net
    assert workload.name == "Net"
    assert workload.identity == Workload.of(network, train, test).identity


class Signals(nn.Module):
    """Of (n, 2, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool1d(1))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.layers(x).flatten(1))


def test_examples_of_two_axes_are_grey_images_to_networks_of_images_alone() -> None:
    values, labels = torch.rand(12, 2, 32), torch.arange(12) % 3
    signals, network = TensorDataset(values, labels), Signals()
    workload = Workload.of(network, signals, signals)
    assert workload.example_input().shape == (1, 2, 32)
    assert workload.identity == Workload.of(network, *[ImageSet.of(values, labels)] * 2).identity
    bare, grey = torch.rand(12, 8, 8), Net()
    images = TensorDataset(bare, labels)
    workload = Workload.of(grey, images, images)
    assert workload.example_input().shape == (1, 1, 8, 8)
    with_axis = TensorDataset(bare[:, None], labels)
    assert workload.identity == Workload.of(grey, with_axis, with_axis).identity


def test_examples_that_a_network_does_not_take_are_refused(refused: Refused) -> None:
    labels = torch.arange(12) % 3
    for shape, said in (((9, 32), "to have 2 channels"), ((2,), "input[1, 1, 2]")):
        data = TensorDataset(torch.rand(12, *shape), labels)
        refused(
            lambda data=data: Workload.of(Signals(), data, data),
            *(f"model 'Signals' on an example {shape} must not fail", said, "correct it"),
        )
    data = TensorDataset(torch.rand(12, 1, 2, 32), labels)
    refused(lambda: Workload.of(Signals(), data, data), "on an image (1, 2, 32)")


def test_held_out_training_images_are_searched_by() -> None:
    train, test, named = _images(12), _images(10, seed=1), ("a", "b", "c")
    workload = Workload.of(
        Net(), train, test, classes=named, validation_from="train", validation_images=4
    )
    splits = workload.splits
    assert [len(one) for one in (splits.train, splits.validation, splits.test)] == [8, 4, 10]
    assert workload.classes == named


def test_a_detector_is_given_images_with_boxes() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 3, 32, 32), np.uint8)
    boxes = np.tile(np.float32([2, 2, 20, 20, 1, 0]), (8, 1, 1))
    images = ImageSet.of(pixels, boxes)
    workload = Workload.of(FcosResNet(num_classes=2), images, images, classes=("cat", "dog"))
    assert workload.task.name == "detection"
    assert workload.classes == ("cat", "dog")


def test_what_does_not_fit_is_refused(refused: Refused) -> None:
    train, test = _images(12), _images(10, seed=1)

    def given(network: Any = None, first: Any = train, **settings: Any) -> Callable[[], Workload]:
        return lambda: Workload.of(network or Net(), first, test, **settings)

    refused(given(name="resnet20"), "called 'resnet20'", "another name")
    refused(given(name="a.b:c"), "called 'a.b:c'", "another name")
    refused(given(Net(2)), "2 outputs for 3 classes")
    refused(given(lambda x: x), "'function' must return a torch.nn.Module")
    refused(given(Net().to("meta")), "must have values, but 'layers.0.weight' is on the device")
    scripted = ScriptModule()
    refused(given(scripted), "'ScriptModule' must return a torch.nn.Module that runs its own")
    refused(given(classes=("a", "b")), "labels of the given data must be in 0..1, but reach to 2")
    refused(given(first=[]), "the train set of the given data must hold examples")
    refused(given(first=iter([])), "the train set of the given data must have a length")
    refused(given(mean=[0.5, 0.5]), "data.mean must hold one number a channel, but holds 2 for 1")
    refused(given(validation_from="val"), "from test or train, but are to be from 'val'")
    refused(given(validation_images=0), "at least 1, but are 0")
    refused(given(validation_images=10), "must leave some of the test half")
    refused(given(validation_images=2.5), "'validation_images' must be an integer, but is 2.5")
    refused(given(seed=None), "'seed' must be an integer, but is nothing")
    refused(given(seed=-1), "'seed' must be at least 0 and at most 4294967295, but is -1")
    refused(given(mean=0.5), "'mean' must be a list, but is 0.5")
    refused(given(std="a"), "'std' must be a list, but is 'a'")
    refused(given(name=3), "'name' must be a text, but is 3")
    floats = np.ones((12, 1, 8, 8), np.float32)
    floats[3] = np.nan
    refused(given(first=ImageSet.of(floats, train.labels)), "the train set of", "hold NaN")


def test_a_network_or_a_name_is_no_configuration(refused: Refused) -> None:
    for wrong in ("digits_cnn", {"model": "digits_cnn"}, Net()):
        refused(lambda given=wrong: load_workload(given), "from a WorkloadConfig", "Workload.of")
    missing = Path("nowhere") / "w.safetensors"
    config = WorkloadConfig.of(model="resnet20", weights=missing, data="digits")
    assert config.weights is not None
    assert config.weights.name == "w.safetensors"


def test_arrays_that_are_changed_afterwards_change_no_workload() -> None:
    pixels = np.array(_images(12).images)
    labels = torch.arange(12) % 3
    given = ImageSet.of(torch.from_numpy(pixels), labels)
    assert given.content_hash == _images(12).content_hash
    mean, std = torch.tensor([0.5]), np.array([0.25])
    workload = Workload.of(Net(), given, _images(10, seed=1), mean=mean, std=std)
    before = workload.splits.train.tensor(workload.normalization)
    assert workload.normalization == Normalization((0.5,), (0.25,))
    pixels[:] = 0
    labels[:] = 0
    assert torch.equal(workload.splits.train.tensor(workload.normalization), before)
    assert list(workload.splits.train.labels) == [0, 1, 2] * 4


def test_a_file_of_such_a_network_asks_for_the_network(tmp_path: Path) -> None:
    network = Net().eval()
    save_packed(network, tmp_path / "net", Policy({}), architecture="Net")
    with pytest.raises(DeployError, match="only names 'Net'; pass model=NETWORK"):
        load_packed(tmp_path / "net")
    x = torch.ones(1, 1, 8, 8)
    assert load_packed(tmp_path / "net", network)(x).shape == (1, 3)
