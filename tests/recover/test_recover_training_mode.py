"""Networks that answer otherwise in training mode: further heads, or nothing that can be used."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import automl_compress as ac
from automl_compress.recover import Augmentation, TrainingSettings
from automl_compress.recover.losses import LabelsLoss
from automl_compress.recover.training import Trainer
from automl_compress.recover.training_mode import (
    resting_modules,
    start_training,
    training_heads,
)
from automl_compress.space import Policy
from automl_compress.workload import ImageSet, Normalization

X = torch.randn(2, 1, 6, 6)


class Answers(NamedTuple):
    answer: Tensor
    further: Tensor


class Auxiliary(nn.Module):
    """A second head that runs in training mode alone."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.further = nn.Linear(8, 3)
        self.drop = nn.Dropout(0.3)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.trunk(x).mean((2, 3))
        answer = self.last(self.drop(x))
        return Answers(answer, self.further(x)) if self.training else answer


class Switching(nn.Module):
    """No layer inside, so there is no part that could stay in evaluation mode."""

    def forward(self, x: Tensor) -> Any:
        return (x, x) if self.training else x


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise ValueError("labels are\nmissing")
        return x


class Boxed(nn.Module):
    """A network in another, whose own code runs a block in training mode otherwise."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Identity(), inner)

    def forward(self, x: Tensor) -> Any:
        return self.block(x)


def _images() -> ImageSet:
    """Three classes that a bright band tells apart by its height."""
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 3
    pixels = rng.integers(0, 40, (48, 1, 6, 6), dtype=np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[0, : 2 * label + 1] += 150
    return ImageSet.of(pixels, labels)


def _trained(network: nn.Module, epochs: int = 1) -> Trainer:
    augment = Augmentation(0, flip=False)
    settings = TrainingSettings(epochs, batch=8, rate=0.05, device="cpu", augment=augment)
    return Trainer(network, _images(), Normalization.unit(1), settings, LabelsLoss(), "one")


@pytest.mark.parametrize("box", [lambda net: net, Boxed, lambda net: Boxed(Boxed(net))])
def test_what_asks_for_the_mode_rests_and_its_layers_do_not(box: Any) -> None:
    torch.manual_seed(0)
    inner = Auxiliary().eval()
    network = box(inner).eval()
    resting = resting_modules(network, X)
    assert resting[-1] is inner
    assert not any(module.training for module in network.modules())
    start_training(network, resting)
    assert not inner.training
    assert all(part.training for part in inner.modules() if part is not inner)
    assert network(X).shape == (2, 3)
    before = torch.get_rng_state()
    (name,) = (name for name, part in network.named_modules() if part is inner.further)
    assert training_heads(network, X[:1]) == {name: 27}
    assert torch.equal(torch.get_rng_state(), before)


def test_usual_networks_train_whole() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    chance = torch.get_rng_state()
    trainer = _trained(network)
    assert trainer._resting == []
    assert training_heads(network, X) == training_heads(Failing(), X) == {}
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(value, before[n]) for n, value in network.state_dict().items())


def test_a_network_with_further_heads_learns_without_them() -> None:
    torch.manual_seed(0)
    network = Auxiliary()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    trainer = _trained(network, epochs=12)
    trainer.run()
    same = {n for n, value in network.state_dict().items() if torch.equal(value, before[n])}
    assert same == {"further.weight", "further.bias"}
    images = _images()
    answers = network(images.tensor(Normalization.unit(1))).argmax(1)
    assert (answers.numpy() == images.labels).mean() > 0.9


@pytest.mark.parametrize("genes", [{"channels:trunk.0": 5}, {"weight_bits:trunk.0": 4}])
def test_a_compressed_network_with_further_heads_is_recovered(genes: dict[str, int]) -> None:
    torch.manual_seed(0)
    network = Auxiliary().eval()
    augment = {"crop": 0, "flip": False}
    found = ac.recover(
        network, Policy(genes), _images(), epochs=2, batch=8, device="cpu", augment=augment
    )
    assert not any(module.training for module in found.modules())
    assert found(X).shape == (2, 3)
    assert torch.equal(found.get_parameter("further.weight"), network.further.weight)


@pytest.mark.parametrize(
    ("last", "said"),
    [
        (Switching(), r"one of shape \(2, 3\), but Sequential gives a tuple"),
        (Failing(), r"gives an error \(ValueError: labels are missing\)"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_is(last: nn.Module, said: str) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), last)
    before = network[1].weight.detach().clone()
    with pytest.raises(ac.InputError, match=said) as refusal:
        _trained(network)
    assert "\n" not in str(refusal.value)
    assert torch.equal(network[1].weight, before)


def test_one_image_a_step_is_refused_where_statistics_need_two() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3))
    trainer = _trained(network)
    with pytest.raises(ac.InputError, match="more than 1 value per channel"):
        Trainer(
            network,
            _images(),
            Normalization.unit(1),
            replace(trainer.settings, batch=1),
            LabelsLoss(),
            "one",
        )


def test_dropout_in_a_resting_module_s_own_code_rests() -> None:
    class Own(Auxiliary):
        def forward(self, x: Tensor) -> Any:
            return super().forward(F.dropout(x, 0.9, self.training))

    network = Own()
    start_training(network, resting_modules(network, X))
    network.drop.p = 0.0
    assert torch.equal(network(X), network(X))
