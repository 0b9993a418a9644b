"""Fitting layers to what they gave before compression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_networks import bounds, example, network
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.calibration import INPUTS, Spots, read_inputs, sample_layers
from automl_compress.compress.quantize import choose_scales, quantize_weight, round_compensated
from automl_compress.compress.reconstruct import RIDGE, least_squares
from automl_compress.space import Policy


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(groups: int, count: int, fan_in: int) -> Tensor:
    """Inputs whose values depend on each other, as those of real layers do."""
    mixing = torch.randn(groups, fan_in, fan_in, generator=rng(1))
    return torch.randn(groups, count, fan_in, generator=rng(2)) @ mixing


@pytest.mark.parametrize(("count", "fan_in"), [(50, 6), (6, 50)])
def test_least_squares_meets_the_normal_equations(count: int, fan_in: int) -> None:
    """The gradient of the stated objective vanishes, in both forms of the system."""
    inputs = correlated(2, count, fan_in).double()
    weight = torch.randn(2, 3, fan_in, generator=rng(3)).double()
    outputs = torch.randn(2, count, 3, generator=rng(4)).double()
    torch.set_default_dtype(torch.float64)
    try:
        fitted, moment = least_squares(weight, inputs, outputs)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (moment is None) == (fan_in > count)
    ridge = RIDGE * inputs.pow(2).mean(dim=(1, 2))[:, None, None]
    missed = inputs @ fitted.transpose(1, 2) - outputs
    gradient = missed.transpose(1, 2) @ inputs / count + ridge * (fitted - weight)
    assert float(gradient.abs().max()) < 1e-8


def test_least_squares_keeps_weights_that_are_right() -> None:
    inputs = correlated(1, 40, 8)
    weight = torch.randn(1, 4, 8, generator=rng())
    fitted, _ = least_squares(weight, inputs, inputs @ weight.transpose(1, 2))
    torch.testing.assert_close(fitted, weight, rtol=1e-4, atol=1e-5)


def test_least_squares_survives_inputs_without_any_value() -> None:
    weight = torch.randn(1, 4, 8, generator=rng())
    fitted, _ = least_squares(weight, torch.zeros(1, 40, 8), torch.zeros(1, 40, 4))
    torch.testing.assert_close(fitted, weight)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 5])
def test_compensated_rounding_lies_on_the_grid_and_loses_less(bits: int, groups: int) -> None:
    inputs = correlated(groups, 200, 40)
    weight = torch.randn(groups, 6, 40, generator=rng())
    scales = choose_scales(weight.flatten(0, 1), bits, inputs).reshape(groups, 6)
    moment = inputs.transpose(1, 2) @ inputs / 200
    rounded = round_compensated(weight, scales, bounds(scales, bits), moment)
    integers = rounded / scales[:, :, None]
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
    assert float(integers.abs().max()) <= 2 ** (bits - 1) - 1 + 1e-4
    alone = quantize_weight(weight.flatten(0, 1), scales.flatten(), bits).reshape(weight.shape)

    def loss(other: Tensor) -> float:
        return float((inputs @ (other - weight).transpose(1, 2)).pow(2).sum())

    assert loss(rounded) < loss(alone)


def test_compensated_rounding_equals_the_rule_applied_one_weight_at_a_time() -> None:
    """Optimal brain surgeon's update after every single weight, with explicit inverses."""
    fan_in, bits = 7, 3
    inputs = correlated(1, 60, fan_in).double()
    moment = (inputs.transpose(1, 2) @ inputs / 60)[0]
    order = moment.diagonal().argsort(descending=True)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(fan_in).double()
    weight = torch.randn(fan_in, generator=rng()).double()
    scale = 0.4
    expected = weight.clone()
    for place, column in enumerate(order):
        old = expected[column].clone()
        new = (old / scale).round().clamp(-3, 3) * scale
        rest = order[place:]
        inverse = torch.linalg.inv(damped[rest][:, rest])
        expected[rest] -= (old - new) / inverse[0, 0] * inverse[:, 0]
        expected[column] = new
    steps = torch.tensor([[scale]])
    actual = round_compensated(
        weight.float()[None, None], steps, bounds(steps, bits), moment.float()[None]
    )
    torch.testing.assert_close(actual[0, 0].double(), expected, rtol=1e-4, atol=1e-4)


def test_a_singular_moment_rounds_every_weight_alone() -> None:
    weight = torch.randn(1, 2, 4, generator=rng())
    scales = torch.full((1, 2), 0.3)
    rounded = round_compensated(weight, scales, bounds(scales, 4), torch.full((1, 4, 4), torch.nan))
    assert torch.equal(rounded[0], quantize_weight(weight[0], scales[0], 4))


class TwoLayers(nn.Module):
    """The second layer reads pairs of equal channels, so half of them can be spared."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 5, 3, padding=1, stride=2, bias=False)
        self.head = nn.Linear(5 * 4 * 4, 4)
        with torch.no_grad():
            self.first.weight.copy_(self.first.weight[[0, 0, 1, 1, 2, 2, 3, 3]])
            self.first.bias.copy_(self.first.bias[[0, 0, 1, 1, 2, 2, 3, 3]])
            self.first.weight[1::2] *= 0.5
            self.first.bias[1::2] *= 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).flatten(1))


def test_a_cut_that_loses_nothing_is_made_good() -> None:
    """Four of eight channels are multiples of the others; only fitted weights make up for them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoLayers().eval()
    x = torch.randn(60, 3, 8, 8, generator=rng())
    policy = Policy({"channels:first": 4})
    kinds: dict[str, float] = {}
    with torch.no_grad():
        for repair in ("none", "reconstruct"):
            built = Compressor(model, x[:1], x, repair=repair).build(policy)  # type: ignore[arg-type]
            kinds[repair] = float((built(x) - model(x)).pow(2).mean() / model(x).var())
    assert kinds["none"] > 0.01
    assert kinds["reconstruct"] < 1e-4


def test_variance_and_mean_are_what_they_were() -> None:
    model, x = network("vgg"), example("vgg", 40)
    for module in model.modules():  # folded away
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    policy = Policy({"channels:features.0.0": 4, "weight_bits:features.2.0": 2})
    compressor = Compressor(model, x[:1], x, repair="variance")
    built: Any = compressor.build(policy)
    plain: Any = Compressor(model, x[:1], x, repair="none").build(policy)
    name = "fc1"

    def outputs(network: Any) -> Tensor:
        found: list[Tensor] = []
        handle = network.get_submodule(name).register_forward_hook(lambda _, __, y: found.append(y))
        with torch.no_grad():
            network(x)
        handle.remove()
        return found[0]

    whole = outputs(compressor.model)
    for statistic in (lambda y: y.std(dim=0), lambda y: y.mean(dim=0)):
        torch.testing.assert_close(
            statistic(outputs(built)), statistic(whole), rtol=1e-3, atol=1e-4
        )
        assert not torch.allclose(statistic(outputs(plain)), statistic(whole), rtol=1e-2)


def test_bias_correction_moves_biases_only() -> None:
    model, x = network("vgg"), example("vgg", 40)
    policy = Policy({"weight_bits:fc1": 2})
    built: Any = Compressor(model, x[:1], x, repair="bias").build(policy)
    plain: Any = Compressor(model, x[:1], x, repair="none").build(policy)
    compressor: Any = Compressor(model, x[:1], x)
    changed = [
        name
        for name, tensor in built.state_dict().items()
        if not torch.allclose(tensor, plain.state_dict()[name], atol=1e-6)
    ]
    assert "fc1.bias" in changed
    assert all(name.endswith("bias") for name in changed)
    with torch.no_grad():
        features = compressor.model.features(x).flatten(1)
        torch.testing.assert_close(
            built.fc1(features).mean(0), model.fc1(features).mean(0), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, 2, padding=2, groups=2), (4, 9)),
        (nn.Conv1d(4, 6, 4, padding="same", padding_mode="circular"), (4, 9)),
        (nn.Conv2d(4, 6, (2, 3), (1, 2), dilation=(2, 1), padding=(0, 1)), (4, 9, 8)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2), (4, 5, 6)),
        (nn.Conv3d(4, 6, (1, 2, 3), (2, 1, 1), padding=(0, 1, 2)), (4, 5, 6, 7)),
        (nn.Linear(4, 6), (3, 4)),
    ],
)
def test_what_a_layer_reads_gives_what_it_writes(layer: Any, shape: tuple[int, ...]) -> None:
    layer.bias = None
    x = torch.randn(5, *shape)
    sample = sample_layers(nn.Sequential(layer), ["0"], x)["0"]
    read = read_inputs(layer, x, sample.spots)
    weight = layer.weight.detach().reshape(len(read), 6 // len(read), -1)
    given = (read @ weight.transpose(1, 2)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(given, sample.outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(sample.inputs, read[:, :INPUTS])


def test_spots_keep_their_head() -> None:
    spots = Spots(torch.arange(5), (torch.arange(5), torch.arange(1, 6)), (1, 2, 3))
    assert spots.head(2).first.tolist() == [0, 1]
    assert [place.tolist() for place in spots.head(2).places] == [[0, 1], [1, 2]]
    assert spots.head(2).shape == (1, 2, 3)


def test_activation_rounding_is_made_up_for() -> None:
    """Weights are fitted to the rounded inputs, so they lose less than weights that are not."""
    model, x = network("vgg", 1), example("vgg", 64)
    policy = Policy({"activation_bits:fc1": 4, "weight_bits:fc1": 4})
    losses = []
    with torch.no_grad():
        for repair in ("none", "reconstruct"):
            built = Compressor(model, x[:1], x, repair=repair).build(policy)  # type: ignore[arg-type]
            losses.append(float((built(x) - model(x)).pow(2).mean()))
    assert losses[1] < losses[0]
