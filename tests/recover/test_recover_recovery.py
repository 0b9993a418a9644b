from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import automl_compress as ac
from automl_compress.compress import Compressor, trace
from automl_compress.compress.quantize import levels
from automl_compress.recover import RecoverySettings, measure, recover_policy, section_of
from automl_compress.recover.fixed import fixed_in
from automl_compress.recover.recovery import _held_out
from automl_compress.space import Policy
from automl_compress.workload import ImageSet, Workload, fixed_parameters

QUICK = {
    "epochs": 3,
    "batch": 64,
    "held_out": 0.1,
    "device": "cpu",
    "augment": {"crop": 1, "flip": False},
}


def _policy(workload: Workload, share: float, bits: int, inputs: int | None = None) -> Policy:
    """A third of the channels, all layers at so many bits."""
    derived = ac.SearchSpace.from_model(workload.model, workload.example_input())
    genes: dict[str, Any] = {}
    for gene in derived.genes:
        if gene.kind == "channels":
            genes[gene.name] = min(gene.values, key=lambda v: abs(v - share * max(gene.values)))
        else:
            genes[gene.name] = bits
            if inputs is not None:
                genes[f"activation_bits:{gene.target}"] = inputs
    return Policy(genes)


def _accuracy(network: nn.Module, workload: Workload) -> float:
    device = torch.device("cpu")
    return measure(network, workload.splits.test, workload.normalization, device).quality


def test_a_harshly_compressed_network_gets_its_accuracy_back(digits: Workload) -> None:
    policy = _policy(digits, 0.35, 2, inputs=4)
    splits, scaling = digits.splits, digits.normalization
    calibration = splits.train.draw(256, 0).tensor(scaling)
    before = ac.compress(digits.model, policy, calibration[:1], calibration)
    after = ac.recover(digits.model, policy, splits.train, scaling, **QUICK)
    assert _accuracy(after, digits) > _accuracy(before, digits) + 0.05
    assert not after.training
    assert after.state_dict().keys() == before.state_dict().keys()
    for name, value in after.state_dict().items():
        assert value.shape == before.state_dict()[name].shape
        assert value.dtype == before.state_dict()[name].dtype
        assert value.stride() == torch.empty(value.shape).stride()
    for module in after.modules():
        scale = getattr(module, "weight_scale", None)
        if scale is not None:
            by_channel = scale.view(-1, *[1] * (module.weight.dim() - 1))
            integers = (module.weight / by_channel).round()
            assert torch.equal(integers * by_channel, module.weight)
            assert int(integers.abs().max()) <= levels(2)


@pytest.mark.parametrize("bits", [None, 3])
def test_kernels_that_a_policy_removes_stay_removed(
    digits: Workload, few: ImageSet, bits: int | None
) -> None:
    genes: dict[str, Any] = {"kernel_sparsity:conv2": 0.5, "kernel_sparsity:block2.conv1": 0.25}
    if bits is not None:
        genes |= {"weight_bits:conv2": bits, "weight_bits:block2.conv1": bits}
    policy = Policy(genes)
    settings = {**QUICK, "epochs": 1}
    network = ac.recover(digits.model, policy, few, digits.normalization, **settings)
    for name, share in (("conv2", 0.5), ("block2.conv1", 0.25)):
        weight = network.get_submodule(name).get_parameter("weight")
        assert not torch.equal(weight, digits.model.get_submodule(name).get_parameter("weight"))
        removed = weight.eq(0).flatten(2).all(2).float().mean()
        assert removed >= share - 0.01


def test_the_same_twice_and_the_original_is_not_changed(digits: Workload, few: ImageSet) -> None:
    before = copy.deepcopy(digits.model.state_dict())
    settings = {**QUICK, "epochs": 1, "features": 1.0}
    policy = _policy(digits, 0.35, 3)
    first, second = (
        ac.recover(digits.model, policy, few, digits.normalization, **settings) for _ in range(2)
    )
    assert all(torch.equal(v, second.state_dict()[n]) for n, v in first.state_dict().items())
    assert all(torch.equal(v, before[n]) for n, v in digits.model.state_dict().items())
    assert not any(p.requires_grad for p in digits.model.parameters())


@pytest.mark.parametrize("bits", [None, 3])
def test_what_is_frozen_is_not_trained(digits: Workload, few: ImageSet, bits: int | None) -> None:
    genes: dict[str, Any] = {"channels:conv2": 8}
    if bits is not None:
        genes |= {"weight_bits:conv1": bits, "weight_bits:conv2": bits}
    model = copy.deepcopy(digits.model).requires_grad_(True)
    model.get_submodule("conv1").requires_grad_(False)
    settings = {**QUICK, "epochs": 1, "learned_steps": False, "calibration_images": 16}
    calibration = few.draw(16, 0).tensor(digits.normalization)
    before = ac.compress(model, Policy(genes), calibration[:1], calibration).state_dict()
    after = ac.recover(model, Policy(genes), few, digits.normalization, **settings).state_dict()
    assert torch.equal(after["conv1.weight"], before["conv1.weight"])
    assert not torch.equal(after["conv2.weight"], before["conv2.weight"])


def test_held_out_images_are_never_trained_on(digits: Workload) -> None:
    settings = RecoverySettings.from_section(section_of(**QUICK))
    images = digits.splits.train
    fitted, judges = _held_out(images, settings)
    assert judges is not None
    assert (len(fitted), len(judges)) == (len(images) - len(images) // 10, len(images) // 10)
    rows = np.concatenate([fitted.images, judges.images]).reshape(len(images), -1)
    whole = np.array(images.images).reshape(len(images), -1)
    assert sorted(map(bytes, rows)) == sorted(map(bytes, whole))


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_statistics_are_renewed_only_where_held_out_images_say_so(
    digits: Workload, few: ImageSet, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from automl_compress.recover import recovery

    def ruin(model: nn.Module, _: torch.Tensor) -> None:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.add_(100.0)

    monkeypatch.setattr(recovery, "recalibrate", ruin)
    settings = RecoverySettings.from_section(
        section_of(**{**QUICK, "epochs": 1, "held_out": share})
    )
    calibration = digits.splits.train.draw(64, 0).tensor(digits.normalization)
    compressor = Compressor(digits.model, calibration[:1], calibration)
    policy = _policy(digits, 0.5, 4)
    got = recover_policy(compressor, policy, few, digits.normalization, settings)
    assert got.chosen in ("averaged", "last")
    assert got.steps == len(few) * (1 - share) // 64


def test_wrong_settings_are_refused_before_anything_is_built(digits: Workload) -> None:
    with pytest.raises(ac.InputError, match="did you mean 'epochs'"):
        ac.recover(digits.model, Policy({}), digits.splits.train, epoch=3)
    wrong: Any = digits.splits.train.images
    with pytest.raises(ac.InputError, match=r"must be an ImageSet, but are .* splits.train"):
        ac.recover(digits.model, Policy({}), wrong)
    with pytest.raises(ac.InputError, match=r"must be a Normalization, but is \(0, 1\); make one"):
        ac.recover(digits.model, Policy({}), digits.splits.train, (0, 1))  # type: ignore[arg-type]
    with pytest.raises(ac.InputError, match="compressed by a Policy, but was given a dict"):
        ac.recover(digits.model, {}, digits.splits.train)  # type: ignore[arg-type]


class _Attentive(nn.Module):
    """Two attentions over the rows of an image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.MultiheadAttention(8, 2, batch_first=True)
        self.second = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, 1, 8, 8) to (n, classes)."""
        x = x.squeeze(1)
        x = x + self.first(x, x, x, need_weights=False)[0]
        x = x + self.second(x, x, x, need_weights=False)[0]
        logits: torch.Tensor = self.head(x.mean(1))
        return logits


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_is_frozen_in_attention_is_not_trained(
    digits: Workload, few: ImageSet, wrapped: bool
) -> None:
    torch.manual_seed(0)
    model = _Attentive(10)
    model.first.requires_grad_(False)
    assert model.second.in_proj_weight is not None
    model.second.in_proj_weight.requires_grad_(False)
    given = nn.DataParallel(model) if wrapped else model
    calibration = few.draw(16, 0).tensor(digits.normalization)
    before = ac.compress(model, Policy({}), calibration[:1], calibration).state_dict()
    settings = {**QUICK, "epochs": 1, "calibration_images": 16}
    after = ac.recover(given, Policy({}), few, digits.normalization, **settings).state_dict()
    kept = {name for name, value in after.items() if torch.equal(value, before[name])}
    layers = ("query", "key", "value")
    assert kept == {
        *(f"first.{layer}.{of}" for layer in (*layers, "out_proj") for of in ("weight", "bias")),
        *(f"second.{layer}.weight" for layer in layers),
    }


def test_fixed_parameters_have_the_names_of_the_network_that_was_followed() -> None:
    model = nn.Sequential(weight_norm(nn.Conv2d(1, 4, 3)), nn.Conv2d(4, 4, 3), nn.Flatten())
    model[0].requires_grad_(False)
    given = nn.DataParallel(model)
    network, _ = trace(given, torch.zeros(1, 1, 8, 8))
    fixed = fixed_parameters(given)
    assert fixed_in(network, given, fixed) == {"0.weight", "0.bias"}
    assert fixed_in(network, given, ()) == set()


@pytest.mark.parametrize(
    ("last", "labels", "said"),
    [
        (nn.Unflatten(1, (1, 5)), 5, "must return logits of shape .* but .* returned .1, 1, 5."),
        (nn.Identity(), 9, "has 5 outputs for 9 classes"),
    ],
)
def test_networks_without_a_logit_for_every_class_are_refused(
    last: nn.Module, labels: int, said: str
) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5), last)
    pixels = np.random.default_rng(0).integers(0, 256, (18, 3, 8, 8), dtype=np.uint8)
    images = ImageSet.of(pixels, np.arange(18) % labels)
    with pytest.raises(ac.InputError, match=said):
        ac.recover(network, Policy({"channels:0": 3}), images, epochs=1, batch=8)
