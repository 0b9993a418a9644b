"""Low-bit grids: what lies on them, and that clips are no worse than none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from compress_networks import conv_bn, example, network
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.calibration import sample_layers
from automl_compress.compress.quantize import (
    CLIPS,
    InputQuantizer,
    affine_grid,
    can_quantize,
    choose_input_quantizer,
    choose_scales,
    is_quantized,
    quantize_weight,
)
from automl_compress.space import Policy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def output_change(weight: Tensor, rounded: Tensor, inputs: Tensor) -> list[float]:
    """Squared change of every output, one sample and one weight at a time."""
    groups, samples, _ = inputs.shape
    outputs = weight.shape[0] // groups
    difference = (rounded - weight).flatten(1)
    return [
        sum(
            float((inputs[row // outputs, s].double() * difference[row].double()).sum()) ** 2
            for s in range(samples)
        )
        for row in range(weight.shape[0])
    ]


@pytest.fixture(scope="module")
def mobile() -> Compressor:
    return Compressor(network("mobile"), example("mobile"), example("mobile", 8))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_lie_on_their_grid(bits: int, mobile: Compressor) -> None:
    built = mobile.build(
        Policy({f"weight_bits:{name}": bits for name in ("0.0", "1.depthwise.0", "4.2")})
    )
    found = [m for m in built.modules() if is_quantized(m)]
    assert len(found) == 3
    for layer in found:
        scales: Any = layer.weight_scale
        assert scales.shape == (layer.weight.shape[0],)
        assert (scales > 0).all()
        per_output = scales.view(-1, *[1] * (layer.weight.dim() - 1))
        integers = (layer.weight / per_output).round()
        assert torch.equal(integers * per_output, layer.weight)
        assert int(integers.abs().max()) <= 2 ** (bits - 1) - 1
        rows = integers.abs().flatten(1).amax(1)
        assert (rows > 0).all()


def test_layers_of_other_classes_are_quantized_if_they_compute_the_same() -> None:
    class Renamed(nn.Conv2d):
        pass

    class Doubled(nn.Conv2d):
        def _conv_forward(self, *args: Any) -> Tensor:
            return 2 * super()._conv_forward(*args)

    class Shifted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    replaced = nn.Linear(2, 2)
    replaced.forward = torch.relu  # type: ignore[method-assign]
    kinds = (
        Renamed(2, 2, 1),
        Doubled(2, 2, 1),
        Shifted(2, 2),
        replaced,
        nn.ConvTranspose2d(2, 2, 1),
    )
    assert [can_quantize(layer) for layer in kinds] == [True, False, False, False, False]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_chosen_clip_changes_the_output_least(bits: int, groups: int) -> None:
    weight = torch.randn(6, 4, 2, 2, generator=generator())
    weight[0] = 0
    inputs = torch.randn(groups, 20, 16, generator=generator(1)).relu()
    scales = choose_scales(weight, bits, inputs)
    chosen = output_change(weight, quantize_weight(weight, scales, bits), inputs)
    largest = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / (2 ** (bits - 1) - 1)
    for clip in CLIPS:
        other = output_change(weight, quantize_weight(weight, largest * clip, bits), inputs)
        assert all(a <= b * (1 + 1e-4) + 1e-9 for a, b in zip(chosen, other, strict=True))


def test_without_inputs_many_bits_are_not_clipped() -> None:
    weight = torch.randn(5, 9, generator=generator())
    largest = weight.abs().amax(1)
    torch.testing.assert_close(choose_scales(weight, 4, None), largest / 7)
    fine = choose_scales(weight, 2, None)
    assert (fine <= largest).all()
    assert (fine < largest).any()


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_inputs_are_rounded_to_levels(bits: int, share: float) -> None:
    zero_point = round(share * (2**bits - 1))
    quantizer = InputQuantizer(0.1, bits, zero_point)
    x = torch.randn(1000, generator=generator()) * 10
    rounded = quantizer(x)
    integers = (rounded / quantizer.scale).round()
    low, high = -zero_point, 2**bits - 1 - zero_point
    assert torch.equal(integers * quantizer.scale, rounded)
    assert (int(integers.min()), int(integers.max())) == (low, high)
    inside = (x > low * 0.1) & (x < high * 0.1)
    assert inside.any()
    assert float((rounded - x)[inside].abs().max()) <= 0.05 + 1e-5
    assert torch.equal(quantizer(rounded), rounded)
    assert float(quantizer(torch.zeros(1))) == 0.0


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "both": lambda x: x**3,
    "positive": lambda x: x.abs() ** 3,
    "negative": lambda x: -(x.abs() ** 3),
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "hardswish": nn.functional.hardswish,
    "zero": torch.zeros_like,
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_input_grid_is_about_the_best_of_all_that_clip_either_side(
    shape: str, bits: int
) -> None:
    inputs = SHAPES[shape](2 * torch.randn(1, 200, 12, generator=generator()))
    weight = torch.randn(4, 12, generator=generator(1))
    quantizer = choose_input_quantizer(weight, bits, inputs)
    low, high = min(0.0, float(inputs.min())), max(0.0, float(inputs.max()))
    assert low < 0 or quantizer.low == 0
    assert high > 0 or shape == "zero" or quantizer.high == 0

    def change(one: InputQuantizer) -> float:
        return float(((one(inputs) - inputs)[0] @ weight.T).pow(2).sum())

    best = min(change(affine_grid(low * a, high * b, bits)) for a in CLIPS for b in CLIPS)
    assert change(quantizer) <= 1.1 * best


@pytest.mark.parametrize("shape", ["silu", "gelu", "hardswish"])
def test_values_on_one_side_have_most_levels(shape: str) -> None:
    inputs = SHAPES[shape](2 * torch.randn(1, 200, 12, generator=generator()))
    weight = torch.randn(4, 12, generator=generator(1))
    change = choose_input_quantizer(weight, 4, inputs)(inputs) - inputs
    step = float(inputs.abs().max()) / 7
    symmetric = (inputs / step).round().clamp(-7, 7) * step - inputs
    assert float((change @ weight.T).pow(2).sum()) < 0.5 * float(
        (symmetric @ weight.T).pow(2).sum()
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 1), dilation=2, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
    ],
)
def test_sampled_inputs_are_patches_the_layer_reads(layer: nn.Conv2d) -> None:
    x = torch.randn(3, 4, 8, 8, generator=generator())
    patches = sample_layers(nn.Sequential(layer), ["0"], x)["0"].inputs
    assert patches.shape[0] == layer.groups
    weight = layer.weight.detach().flatten(1).reshape(layer.groups, -1, patches.shape[2])
    outputs = torch.einsum("gof,gsf->sgo", weight, patches).flatten(1) + layer.bias.detach()
    every = layer(x).detach().permute(0, 2, 3, 1).reshape(-1, layer.out_channels)
    assert float((outputs[:, None] - every).abs().amax(2).amin(1).max()) < 1e-5
    assert len(torch.unique(outputs[:, 0].round(decimals=4))) > 5


def test_sampled_outputs_belong_to_the_sampled_inputs() -> None:
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    x = torch.randn(3, 4, 8, 8, generator=generator())
    sample = sample_layers(nn.Sequential(layer), ["0"], x)["0"]
    weight = layer.weight.detach().flatten(1).reshape(2, 3, -1)
    expected = torch.einsum("gof,gsf->sgo", weight, sample.inputs).flatten(1)
    count = sample.inputs.shape[1]
    torch.testing.assert_close(sample.outputs[:count], expected + layer.bias.detach())


def test_a_layer_used_twice_is_sampled_at_its_first_use() -> None:
    layer = nn.Linear(4, 4)
    x = torch.randn(5, 4, generator=generator())
    sample = sample_layers(nn.Sequential(layer, nn.ReLU(), layer), ["0"], x)["0"]
    assert torch.equal(sample.inputs[0], x)


def test_linear_inputs_are_sampled_whatever_their_shape() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x)

    x = torch.randn(3, 5, 4, generator=generator())
    rows = sample_layers(Named(), ["layer"], x)["layer"].inputs
    assert rows.shape == (1, 15, 4)
    assert all((row == x.flatten(0, 1)).all(dim=1).any() for row in rows[0])


def test_scales_of_a_cut_layer_fit_what_it_still_reads() -> None:
    model, images = network("vgg"), example("vgg", 16)
    compressor = Compressor(model, images[:1], images, repair="none")
    channels = {"channels:features.0.0": 3, "channels:features.2.0": 5}
    plain: Any = compressor.build(Policy(channels))
    policy = Policy({**channels, "weight_bits:features.2.0": 3, "weight_bits:fc1": 3})
    low: Any = compressor.build(policy)
    for name in ("features.2.0", "fc1"):
        before = plain.get_submodule(name).weight.detach()
        after = low.get_submodule(name)
        bound = before.flatten(1).abs().amax(1)
        share = after.weight_scale * 3 / bound
        # Scales are made for the kept inputs and all outputs: the range is one of the clips.
        assert all(min(abs(s - c) for c in CLIPS) < 1e-4 for s in share.tolist())
        assert torch.equal(after.weight, quantize_weight(before, after.weight_scale, 3))


def test_scales_of_a_cut_layer_are_chosen_on_the_inputs_that_stay() -> None:
    images = example("vgg", 16)
    compressor = Compressor(network("vgg"), images[:1], images, repair="none")
    whole: Any = compressor.model
    built: Any = compressor.build(Policy({"channels:features.2.0": 5, "weight_bits:fc1": 2}))
    means = whole.features[2][1].running_mean.tolist()
    kept = [means.index(mean) for mean in built.features[2][1].running_mean.tolist()]
    columns = [channel * 16 + place for channel in kept for place in range(16)]
    layers = [layer.name for layer in compressor.structure.layers]
    inputs = sample_layers(whole, layers, images)["fc1"].inputs
    expected = choose_scales(whole.fc1.weight[:, columns], 2, inputs[:, :, columns])
    assert torch.equal(built.fc1.weight_scale, expected)
    assert not torch.equal(expected, choose_scales(whole.fc1.weight, 2, inputs))


def test_zero_channels_can_be_quantized() -> None:
    model = nn.Sequential(conv_bn(3, 4), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        model[0][0].weight[1] = 0
        model[1].weight.zero_()
    x = torch.zeros(8, 3, 6, 6)
    genes = {"weight_bits:0.0": 2, "weight_bits:1": 8, "activation_bits:1": 4}
    built = Compressor(model.eval(), x[:1], x).build(Policy(genes))
    assert torch.isfinite(built(x)).all()


def test_activations_of_a_fused_transformer_layer_are_rounded() -> None:
    model, images = network("transformer"), example("transformer", 8)
    compressor = Compressor(model, images[:1], images)
    built = compressor.build(Policy({"activation_bits:encoder.linear1": 4}))
    with torch.inference_mode():
        assert not torch.allclose(built(images), model(images), atol=1e-5)


def test_inputs_that_are_no_numbers_have_a_grid() -> None:
    weight = torch.randn(4, 12, generator=generator(1))
    for value in (float("nan"), float("inf"), -float("inf")):
        grid = choose_input_quantizer(weight, 4, torch.full((1, 20, 12), value))
        assert 0 <= grid.zero_point <= 15
