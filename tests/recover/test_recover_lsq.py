from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from automl_compress.compress.memory_order import put_in_order
from automl_compress.compress.modules import become
from automl_compress.compress.quantize import (
    InputQuantizer,
    choose_scales,
    is_quantized,
    levels,
    quantized_layer,
)
from automl_compress.recover import lsq
from automl_compress.recover.lsq import (
    READY,
    Limits,
    RoundToGrid,
    _rounded_weight,
    freeze,
    make_learnable,
    step_gain,
    unquantize,
)
from automl_compress.recover.rounding import RoundedTogether


def _quantized(bits: int = 3) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 9, 4)
    ).eval()
    for place, zero_point in ((0, 5), (4, 0)):
        layer = network[place]
        scales = choose_scales(layer.weight, bits, None)
        grid = InputQuantizer(0.1, 4, zero_point)
        become(layer, quantized_layer(layer, bits, scales, grid))
    return network.requires_grad_(True)


@pytest.mark.parametrize(
    ("value", "step", "low", "high", "of_value", "of_step"),
    [
        (0.8, 0.5, -3, 3, 1.0, 2 - 1.6),  # 1.6 steps: rounds to 2
        (-0.8, 0.5, -3, 3, 1.0, -2 + 1.6),
        (0.6, 0.5, -3, 3, 1.0, 1 - 1.2),
        (9.0, 0.5, -3, 3, 0.0, 3.0),
        (-9.0, 0.5, -3, 3, 0.0, -3.0),
        (-0.2, 0.5, 0, 15, 0.0, 0.0),  # below an unsigned grid
        (3.3, 0.25, 0, 15, 1.0, 13 - 13.2),
        (1.5, 0.5, -3, 3, 1.0, 0.0),  # the grid's ends are inside
        (-1.5, 0.5, -3, 3, 1.0, 0.0),
        (0.0, 0.5, 0, 15, 1.0, 0.0),
    ],
)
def test_gradients_by_hand(
    value: float, step: float, low: int, high: int, of_value: float, of_step: float
) -> None:
    """Esser et al. 2020, equations 3 and 5."""
    x = torch.tensor([value], requires_grad=True)
    s = torch.tensor(step, requires_grad=True)
    (RoundToGrid.apply(x, s, low, high, 1.0) * 2).backward()
    assert x.grad is not None
    assert s.grad is not None
    assert x.grad.item() == pytest.approx(2 * of_value)
    assert s.grad.item() == pytest.approx(2 * of_step, abs=1e-5)


def test_a_channel_s_step_gets_the_sum_of_its_own_values_times_the_gain() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    steps = torch.tensor([0.2, 0.5, 1.0]).view(3, 1).requires_grad_(True)
    RoundToGrid.apply(x, steps, -1, 1, 0.25).sum().backward()
    for row, step, got in zip(x.detach(), (0.2, 0.5, 1.0), steps.grad.flatten(), strict=True):
        want = 0.0
        for scaled in (row / step).tolist():
            want += round(scaled) - scaled if -1 <= scaled <= 1 else (1 if scaled > 0 else -1)
        assert got.item() == pytest.approx(0.25 * want, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_values_are_rounded_piece_by_piece_and_alike(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(7, 3, 4, 4, generator=drawn).to(dtype, memory_format=torch.channels_last)
    above = torch.randn(7, 3, 4, 4, generator=drawn)

    def rounded() -> tuple[Tensor, Tensor, Tensor]:
        values, step = x.clone().requires_grad_(True), torch.tensor([0.3], requires_grad=True)
        found = RoundToGrid.apply(values, step, 0, 5, 0.5)
        found.backward(above)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert values.grad is not None
        assert step.grad is not None
        return found, values.grad, step.grad

    whole = rounded()
    pieces: list[int] = []
    plain = lsq._rounded

    def noticing(values: Tensor, *rest: Any) -> Tensor:
        pieces.append(len(values))
        return plain(values, *rest)

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(lsq, "_PIECE", 2 * 48)
    monkeypatch.setattr(lsq, "_FEWEST_PIECES", 1)
    monkeypatch.setattr(lsq, "_rounded", noticing)
    again = rounded()
    assert pieces == [2, 2, 2, 1]
    for one, other in zip(whole[:2], again[:2], strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(again[2], whole[2], rtol=1e-5, atol=1e-6)


def test_the_gain_is_the_paper_s() -> None:
    assert step_gain(64, 7) == pytest.approx((64 * 7) ** -0.5)


def test_the_trainable_form_computes_the_same_and_comes_back_the_same() -> None:
    plain = _quantized()
    x = torch.randn(5, 2, 5, 5)
    trained = copy.deepcopy(plain)
    make_learnable(trained, {})
    assert torch.equal(trained(x), plain(x))
    names = {n for n, _ in trained.named_parameters()}
    assert {"0.weight_scale", "4.weight_scale", "0.input_quantizer.scale"} <= names
    freeze(trained)
    assert [type(m) for m in trained.modules()] == [type(m) for m in plain.modules()]
    assert trained.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(v, plain.state_dict()[n]) for n, v in trained.state_dict().items())


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_after_training_weights_are_integers_times_scale(bits: int) -> None:
    network = _quantized(bits)
    weights = {"0": network[0].weight + 0.01 * torch.randn_like(network[0].weight)}
    make_learnable(network, weights)
    before = {n: p.detach().clone() for n, p in network.named_parameters()}
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(3):
        optimizer.zero_grad()
        network(torch.randn(8, 2, 5, 5)).pow(2).mean().backward()
        optimizer.step()
    assert not any(torch.equal(p, before[n]) for n, p in network.named_parameters())
    x = torch.randn(5, 2, 5, 5)
    wanted = network(x)
    freeze(network)
    assert torch.equal(network(x), wanted)
    for layer in (network[0], network[4]):
        assert is_quantized(layer)
        scale = layer.weight_scale.view(-1, *[1] * (layer.weight.dim() - 1))
        integers = (layer.weight / scale).round()
        assert int(integers.abs().max()) <= levels(bits)
        assert torch.equal(integers * scale, layer.weight)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv1d(2, 4, 3), (2, 9)), (nn.Conv3d(2, 4, (1, 2, 3), groups=2), (2, 3, 5, 5))],
)
def test_layers_of_signals_and_volumes_learn_too(layer: Any, shape: tuple[int, ...]) -> None:
    with torch.no_grad():
        layer.weight[1, 0] = 0.0
    scales = choose_scales(layer.weight, 3, None)
    network = nn.Sequential(quantized_layer(layer, 3, scales, InputQuantizer(0.1, 8, 128)))
    x = torch.randn(6, *shape)
    before = network(x)
    make_learnable(network, {})
    limits = Limits(network)
    torch.testing.assert_close(network(x), before)
    optimizer = torch.optim.SGD(network.parameters(), 0.05)
    network(x).pow(2).mean().backward()
    optimizer.step()
    limits()
    learned = network(x)
    assert not torch.equal(learned, before)
    freeze(network)
    assert torch.equal(network(x), learned)
    assert not network[0].get_parameter("weight")[1, 0].any()
    make_learnable(network, {})
    unquantize(network)
    assert type(network[0]) is type(layer)


def test_steps_that_are_not_learned_stay() -> None:
    network = _quantized()
    make_learnable(network, {}, learned_steps=False)
    network(torch.randn(3, 2, 5, 5)).sum().backward()
    assert network[0].weight_scale.grad is None
    assert network[0].weight.grad is not None


def test_kernels_that_are_zero_stay_zero_and_steps_positive() -> None:
    network = _quantized()
    with torch.no_grad():
        network[0].weight[1, 0] = 0.0
        network[0].weight[4] = 0.0
    make_learnable(network, {})
    limits = Limits(network)

    def step() -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.sub_(1.0)

    first: Tensor = network[0].weight_scale.detach().clone()
    step()
    limits()
    zero = network[0].weight.detach().eq(0).flatten(2).all(2)
    wanted = torch.zeros(6, 2, dtype=torch.bool)
    wanted[1, 0] = wanted[4] = True
    assert torch.equal(zero, wanted)
    assert torch.allclose(network[0].weight_scale, 0.01 * first)


def test_weights_rounded_together_are_those_of_each_layer() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.Conv1d(1, 4, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Linear(9, 5)]
    network = nn.Sequential(
        *(
            quantized_layer(layer, bits, choose_scales(layer.weight, bits, None), None)
            for layer, bits in zip(layers, (4, 8, 4, 2), strict=True)
        )
    )
    network.append(quantized_layer(nn.Linear(5, 3), None, None, InputQuantizer(0.1, 8, 128)))
    make_learnable(
        network, {name: torch.randn_like(m.weight) for name, m in network.named_children()}
    )
    put_in_order(network, torch.channels_last)
    wanted = [torch.randn_like(layer.weight) for layer in network]
    found = []

    def loss(network: nn.Module, *_: Tensor) -> Tensor:
        weights: list[Tensor] = [_rounded_weight(layer) for layer in network.children()]
        found.append([weight.detach() for weight in weights])
        return torch.stack([(w * x).sum() for w, x in zip(weights, wanted, strict=True)]).sum()

    gradients = []
    for each in (loss, RoundedTogether(loss, network)):
        network.zero_grad()
        each(network, wanted[0], wanted[0]).backward()
        gradients.append([p.grad for p in network.parameters() if p.grad is not None])
    assert [torch.equal(one, other) for one, other in zip(*found, strict=True)] == [True] * 5
    assert len(gradients[0]) == 9
    torch.testing.assert_close(*gradients)
    assert not any(READY in vars(layer) for layer in network)
