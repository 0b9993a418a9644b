"""Repairs: what each does, and how `auto` chooses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from compress_networks import conv_bn, example, head, network, shared_compressor
from torch import Tensor, nn

from automl_compress.compress import REPAIRS, Compressor, Repair
from automl_compress.compress.batchnorm import (
    PairedStatistics,
    measurable_norms,
    recalibrate,
    statistics,
)
from automl_compress.compress.modules import become, share_copy
from automl_compress.compress.places import Places
from automl_compress.compress.quantize import choose_scales, quantized_layer
from automl_compress.compress.repair import HELD_OUT, fitting_images
from automl_compress.compress.slicing import cut_module
from automl_compress.space import Policy


def shifted() -> nn.Module:
    """A network whose statistics are far from what it sees."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(conv_bn(3, 6), conv_bn(6, 6), head(6)).eval()


def images(count: int = 40) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(2)) * 3 + 1


def divergence(network: nn.Module, original: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        targets, answers = original(x).log_softmax(1), network(x).log_softmax(1)
        return float((targets.exp() * (targets - answers)).sum(1).mean())


def test_new_statistics_are_those_of_the_images() -> None:
    model: Any = share_copy(shifted())
    with torch.no_grad():
        recalibrate(model, images())
        first = model[0][0](images())
        second = model[1][0](
            nn.functional.batch_norm(first, None, None, model[0][1].weight, model[0][1].bias, True)
            .relu()
        )  # fmt: skip
    for norm, seen in ((model[0][1], first), (model[1][1], second)):
        torch.testing.assert_close(norm.running_mean, seen.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, seen.var((0, 2, 3)), rtol=1e-3, atol=1e-4)
        assert norm.momentum == 0.1
        assert not norm.training
        assert int(norm.num_batches_tracked) == 0


def test_many_images_are_averaged_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    from automl_compress.compress import batchnorm

    monkeypatch.setattr(batchnorm, "_BATCH_VALUES", 0)
    model: Any = share_copy(shifted())
    batches: list[int] = []
    model.register_forward_hook(lambda _, inputs, __: batches.append(len(inputs[0])))
    with torch.no_grad():
        recalibrate(model, images(64))
        assert batches == [32, 32]
        halves = [model[0][0](half).mean((0, 2, 3)) for half in images(64).split(32)]
    torch.testing.assert_close(model[0][1].running_mean, (halves[0] + halves[1]) / 2)


def test_paired_statistics_are_the_originals_where_nothing_changed() -> None:
    """However few the images are, and however far from the running statistics."""
    start: Any = share_copy(shifted())
    for norm in measurable_norms(start):
        norm.running_mean = torch.linspace(-1, 1, 6)
        norm.running_var = torch.linspace(0.5, 2, 6)
    same = share_copy(start)
    PairedStatistics(start, images(3)).renew(same, {})
    for old, new in zip(measurable_norms(start), measurable_norms(same), strict=True):
        torch.testing.assert_close(new.running_mean, old.running_mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(new.running_var, old.running_var, rtol=1e-4, atol=1e-5)


def test_paired_statistics_follow_a_known_change() -> None:
    """A first layer that gives twice as much, and half its channels, by hand."""
    start: Any = share_copy(shifted())
    recalibrate(start, images(64))
    x = images(8)
    changed: Any = share_copy(start)
    kept = torch.tensor([0, 3, 4])
    changed[0][0] = cut_module(start[0][0], kept, None)
    changed[0][1] = cut_module(start[0][1], kept, None)
    changed[1][0] = cut_module(start[1][0], None, kept)
    changed[0][0].weight = nn.Parameter(changed[0][0].weight * 2, requires_grad=False)
    PairedStatistics(start, x).renew(changed, {"0.1": Places(out=kept)})
    with torch.no_grad():
        seen, twice = start[0][0](x)[:, kept], changed[0][0](x)
    old, new = start[0][1], changed[0][1]
    mean = twice.mean((0, 2, 3)) - seen.mean((0, 2, 3)) + old.running_mean[kept]
    gain = (old.running_var[kept] + old.eps) / (seen.var((0, 2, 3)) + old.eps)
    variance = (twice.var((0, 2, 3)) + old.eps) * gain - old.eps
    torch.testing.assert_close(new.running_mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(new.running_var, variance, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # the second norm reads what the renewed first one gives
        second = changed[1][0](changed[0](x)).mean((0, 2, 3))
        before = start[1][0](start[0](x)).mean((0, 2, 3))
    expected = second - before + start[1][1].running_mean
    torch.testing.assert_close(changed[1][1].running_mean, expected, rtol=1e-4, atol=1e-5)
    assert not changed.training


class Shift(nn.Module):
    """Adds a number."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by


def test_paired_statistics_are_not_rounded_where_networks_compute_in_bfloat16() -> None:
    """A change of what a norm reads by less than bfloat16 resolves at its mean."""
    start = nn.Sequential(Shift(0.0), nn.BatchNorm2d(3)).eval()
    changed: Any = nn.Sequential(Shift(2.0**-7), nn.BatchNorm2d(3)).eval()
    PairedStatistics(start, images(8) + 5, low_precision=True).renew(changed, {})
    expected = torch.full((3,), 2.0**-7)
    torch.testing.assert_close(changed[1].running_mean, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(changed[1].running_var, torch.ones(3), rtol=1e-4, atol=1e-5)


def rounded(model: nn.Module) -> Any:
    """A copy with 3-bit weights, in odd steps."""
    network = share_copy(model)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            scales = choose_scales(module.weight, 3, None) * torch.linspace(0.7, 1.4, 6)
            become(module, quantized_layer(module, 3, scales, None))
    return network


@pytest.mark.parametrize("bias", [False, True])
def test_bfloat16_leaves_rounded_weights_as_they_are(bias: bool) -> None:
    """Sums of small integers are exact in bfloat16; weights rounded to it would show."""
    torch.manual_seed(0)
    start: Any = nn.Sequential(
        *(nn.Conv2d(3, 6, 1, bias=bias), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 6, 3, bias=bias), nn.BatchNorm2d(6)),
    )
    start.eval().requires_grad_(False)
    if bias:
        start[0].bias.zero_()
    x = torch.randint(0, 4, (16, 3, 8, 8)).float()
    recalibrate(start, x)
    followed = {"1": "0", "4": "3"}
    exact, low, plain = (rounded(start) for _ in range(3))
    parameters = low[0].weight, low[3].weight
    PairedStatistics(start, x).renew(exact, {})
    PairedStatistics(start, x, True, followed).renew(low, {})
    PairedStatistics(start, x, True).renew(plain, {})
    assert low[0].weight is parameters[0]
    assert low[3].weight is parameters[1]
    torch.testing.assert_close(low[1].running_mean, exact[1].running_mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(low[1].running_var, exact[1].running_var, rtol=1e-4, atol=1e-5)

    def error(network: Any) -> float:
        wrong = network[4].running_mean - exact[4].running_mean
        return float(wrong.norm() / exact[4].running_var.sqrt().norm())

    assert error(low) < 1e-3
    assert error(low) < error(plain)


def test_few_images_know_the_statistics_better_in_pairs() -> None:
    """Of a slightly changed network, against what very many images say."""
    start = share_copy(shifted())
    many = torch.randn(4096, 3, 8, 8, generator=torch.Generator().manual_seed(5)) * 3 + 1
    recalibrate(start, many)
    changed: Any = share_copy(start)
    noise = torch.randn(changed[0][0].weight.shape, generator=torch.Generator().manual_seed(6))
    changed[0][0].weight = nn.Parameter(changed[0][0].weight + 0.02 * noise, requires_grad=False)
    true, paired, plain = (share_copy(changed) for _ in range(3))
    recalibrate(true, many)
    PairedStatistics(start, images(8)).renew(paired, {})
    recalibrate(plain, images(8))

    def error(network: nn.Module) -> float:
        found = statistics(measurable_norms(network))
        pairs = zip(itertools.chain(*found), itertools.chain(*expected), strict=True)
        return sum(float((a - b).abs().sum()) for a, b in pairs)

    expected = statistics(measurable_norms(true))
    assert error(paired) < 0.5 * error(plain)


def test_repair_none_changes_nothing() -> None:
    model, x = network("resnet8"), example("resnet8", 16)
    policy = Policy({"weight_bits:layer1.0.conv1": 2})
    plain = Compressor(model, x[:1], x, repair="none").build(policy)
    bare = Compressor(model, x[:1]).build(policy)
    before, after = dict(bare.named_buffers()), dict(plain.named_buffers())
    for name in before:
        if "running" in name:
            assert torch.equal(before[name], after[name])


@pytest.mark.parametrize("repair", REPAIRS)
def test_nothing_is_written_into_shared_tensors(repair: Repair) -> None:
    model, x = network("resnet8"), example("resnet8", 24)
    compressor = Compressor(model, x[:1], x, repair=repair)
    before = {name: tensor.clone() for name, tensor in compressor.model.state_dict().items()}
    compressor.build(Policy({"channels:layer1.0.conv1": 2, "weight_bits:layer2.0.conv1": 2}))
    after = compressor.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.mark.parametrize("repair", REPAIRS)
@pytest.mark.parametrize("name", ["mlp", "vgg", "resnet8", "mobile", "dense"])
def test_every_repair_keeps_shapes_grids_and_costs(name: str, repair: Repair) -> None:
    model, x = network(name), example(name, 24)
    compressor = Compressor(model, x[:1], x, repair=repair)
    groups = {g.name: g.channels for g in compressor.structure.groups if not g.protected}
    channels = {f"channels:{n}": max(1, c // 2) for n, c in groups.items()}
    bits = {f"weight_bits:{s.name}": 3 for s in compressor.structure.layers if s.quantizable}
    built = compressor.build(Policy({**channels, **bits}))
    assert torch.isfinite(built(x)).all()
    bare = shared_compressor(name).build(Policy({**channels, **bits}))
    for (n, tensor), (m, expected) in zip(
        built.state_dict().items(), bare.state_dict().items(), strict=True
    ):
        assert n == m
        assert tensor.shape == expected.shape
    for layer in (built.get_submodule(key.split(":")[1]) for key in bits):
        weight, scale = layer.get_parameter("weight"), layer.get_buffer("weight_scale")
        integers = weight.flatten(1) / scale[:, None]
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
        assert float(integers.abs().max()) < 3.001


@pytest.mark.parametrize("count", [1, 3, 4, 9])
@pytest.mark.parametrize("repair", REPAIRS)
def test_few_calibration_images_are_enough(count: int, repair: Repair) -> None:
    compressor = Compressor(network("vgg"), example("vgg"), example("vgg", count), repair=repair)
    built = compressor.build(Policy({"channels:fc1": 4, "weight_bits:fc1": 4}))
    assert torch.isfinite(built(example("vgg", 2))).all()


@pytest.mark.parametrize("name", ["resnet8", "mlp"])
@pytest.mark.parametrize("seed", range(2))
def test_auto_is_never_farther_from_the_original_than_no_repair(name: str, seed: int) -> None:
    model, x = network(name, seed), example(name, 64)
    compressor = Compressor(model, x[:1], fitting_images(x, "auto"), repair="none")
    layers = [layer.name for layer in compressor.structure.layers]
    policy = Policy({f"weight_bits:{layer}": 2 for layer in layers[1:]})
    judges = x[64 - 64 // HELD_OUT :]
    plain = divergence(compressor.build(policy), model, judges)
    auto = Compressor(model, x[:1], x, repair="auto").build(policy)
    assert divergence(auto, model, judges) <= plain + 1e-6


def test_networks_without_batchnorm_are_recalibrated_to_themselves() -> None:
    model, x = network("mlp"), example("mlp", 8)
    policy = Policy({"weight_bits:1": 4})
    built = Compressor(model, x[:1], x, repair="recalibrate").build(policy)
    plain = Compressor(model, x[:1], x, repair="none").build(policy)
    assert torch.equal(built(x), plain(x))


def test_frozen_batchnorm_without_statistics_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    recalibrate(model.eval(), images())
    norm: Any = model[1]
    assert norm.running_mean is None
