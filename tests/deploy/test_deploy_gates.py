"""Gates in INT8 files: SiLU, Hardswish, squeeze-excitation; on integers where it pays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import conv_bn, head, lively
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from automl_compress.compress import Compressor
from automl_compress.deploy import runtime
from automl_compress.deploy.onnx import OnnxReport, export_onnx
from automl_compress.space import Policy

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)

FLOATS = {"Sigmoid", "HardSigmoid", "HardSwish", "Mul", "GlobalAveragePool"}
"""Operators of gates on floats, as ONNX Runtime names them."""


def conv(inputs: int, outputs: int, activation: nn.Module, groups: int = 1) -> nn.Sequential:
    layers = conv_bn(inputs, outputs, groups=groups)
    layers[2] = activation
    return layers


class Gated(nn.Module):
    """A map that a function of modules gates, between two convolutions."""

    def __init__(self, gate: nn.Module, activation: nn.Module | None = None) -> None:
        super().__init__()
        self.stem = conv(3, 16, activation or nn.ReLU())
        self.gate, self.last, self.head = gate, conv_bn(16, 16), head(16)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.last(self.gate(self.stem(x))))
        return result


class Bottleneck(nn.Module):
    """An inverted residual block with squeeze-excitation (MobileNetV3, EfficientNet)."""

    def __init__(self, activation: Callable[[], nn.Module], squeeze: nn.Module) -> None:
        super().__init__()
        self.expand, self.squeeze = conv(16, 32, activation()), squeeze
        self.depthwise = conv(32, 32, activation(), groups=32)
        self.project = conv(32, 16, nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.project(self.squeeze(self.depthwise(self.expand(x))))
        return result


class LinearSqueeze(nn.Module):
    """Squeeze-excitation whose gate comes from linear layers, which give floats."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(channels, 8), nn.Linear(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(self.down(x.mean((2, 3))).relu()).sigmoid()
        return x * gate[:, :, None, None]


class Halves(nn.Module):
    """A gated linear unit (Dauphin et al. 2017) over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.control = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.control(x).sigmoid()


class Heard(nn.Module):
    """A sigmoid that the network also gives out, and whose input is not only gated by it."""

    def forward(self, x: Tensor) -> Tensor:
        gate = x.sigmoid()
        return x * gate + gate


class Unstored(nn.Module):
    """A gate on integers, for a map of floats that nobody quantizes."""

    def __init__(self) -> None:
        super().__init__()
        self.control = nn.Conv2d(16, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * self.control(x).sigmoid()


def silu_squeeze() -> nn.Module:
    return SqueezeExcitation(32, 8, activation=nn.SiLU)


def hard_squeeze() -> nn.Module:
    return SqueezeExcitation(32, 8, scale_activation=nn.Hardsigmoid)


def residual(activation: Callable[[], nn.Module], squeeze: Callable[[], nn.Module]) -> nn.Module:
    block = Bottleneck(activation, squeeze())
    return nn.Sequential(conv(3, 16, activation()), block, conv_bn(16, 16), head(16))


def drawn(model: nn.Module) -> nn.Module:
    """The network in evaluation mode, with the same random weights at every call."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            bound = layer.weight[0].numel() ** -0.5  # as PyTorch does
            for tensor in layer.parameters():
                nn.init.uniform_(tensor, -bound, bound, generator)
    return lively(model).eval()


def exported(
    model: nn.Module, path: Path, input_bits: int | None = None, skipped: tuple[str, ...] = ()
) -> tuple[OnnxReport, Counter[str]]:
    """The report of a network whose layers have 8 bits, and the operators that run.

    Args:
        model: gets random weights; its outputs are compared to 5 % of the largest.
        path: of the file.
        input_bits: of what layers read.
        skipped: layers that stay floats.
    """
    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    compressor = Compressor(drawn(model), images[:1], images, repair="none")
    layers = [layer.name for layer in compressor.structure.layers if layer.quantizable]
    genes: dict[str, Any] = {f"weight_bits:{n}": 8 for n in layers if n not in skipped}
    if input_bits is not None:
        genes |= {f"activation_bits:{n}": input_bits for n in layers if n not in skipped}
    network = compressor.build(Policy(genes))
    report = export_onnx(network, path, images[:1], images)
    assert report.largest_difference < 0.05 * report.largest_output
    return report, runtime.kernels(path.read_bytes())


@pytest.mark.parametrize("input_bits", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_hard_gates_are_integers_throughout(input_bits: int | None, tmp_path: Path) -> None:
    model = residual(nn.Hardswish, hard_squeeze)
    _, found = exported(model, tmp_path / "model.onnx", input_bits)
    assert not FLOATS & set(found)
    assert found["QLinearMul"] == 3 + 1
    assert found["QLinearAdd"] == 3 + 1 + 1  # gates are sums
    assert found["QLinearGlobalAveragePool"] == 2


@pytest.mark.parametrize("input_bits", [None, pytest.param(8, marks=pytest.mark.slow)])
def test_silu_is_one_kernel_and_what_it_feeds_is_integers(
    input_bits: int | None, tmp_path: Path
) -> None:
    model = residual(nn.SiLU, silu_squeeze)
    _, found = exported(model, tmp_path / "model.onnx", input_bits)
    assert not FLOATS & set(found)
    assert found["QuickGelu"] == 4
    assert found["QLinearMul"] == found["QLinearSigmoid"] == 1
    assert found["QLinearGlobalAveragePool"] == 2
    # Once each; and what the block adds up too, for a layer that has a grid of its own.
    assert found["DequantizeLinear"] == 4 + (0 if input_bits is None else 1)


@pytest.mark.parametrize(
    ("gate", "wanted"),
    [
        (Halves(), {"QLinearMul": 1, "QLinearSigmoid": 1}),
        (nn.Hardsigmoid(), {"QLinearAdd": 1}),
        (nn.Sigmoid(), {"QLinearSigmoid": 1}),
        (LinearSqueeze(), {"QLinearMul": 1, "Sigmoid": 1}),
        (Heard(), {"QLinearMul": 1, "QLinearSigmoid": 1, "QLinearAdd": 1}),
        (Unstored(), {"Mul": 1, "Sigmoid": 1, "Tanh": 1}),
        (nn.Sequential(nn.Conv2d(16, 16, 1), nn.Hardswish()), {}),  # the convolution applies it
        (nn.Sequential(nn.Conv2d(16, 16, 1), nn.SiLU()), {"QuickGelu": 1}),
    ],
    ids=["halves", "hard", "soft", "linear", "heard", "unstored", "float-hard", "float-silu"],
)
def test_other_gates_are_integers_where_all_they_read_is(
    gate: nn.Module, wanted: dict[str, int], tmp_path: Path
) -> None:
    """In the last two, a convolution stays a float, and so does what follows it."""
    skipped = ("gate.0",) if isinstance(gate, nn.Sequential) else ()
    _, found = exported(Gated(gate), tmp_path / "model.onnx", skipped=skipped)
    kinds = (*FLOATS, "QuickGelu", "Tanh", "QLinearMul", "QLinearSigmoid", "QLinearAdd")
    assert {kind: found[kind] for kind in kinds if found[kind]} == wanted


def test_gates_that_are_given_out_stay_floats(tmp_path: Path) -> None:
    for gate in (nn.Sigmoid(), nn.Hardsigmoid()):
        model = nn.Sequential(conv_bn(3, 16), nn.Conv2d(16, 4, 1), gate)
        report, found = exported(model, tmp_path / "model.onnx")
        assert not {"QLinearSigmoid", "QLinearAdd"} & set(found)
        assert report.integer_kernels == 2


def test_a_gate_that_is_used_and_given_out_is_right(tmp_path: Path) -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.last, self.head = conv(3, 16, nn.ReLU()), conv_bn(16, 16), head(16)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.stem(x)
            gate = nn.functional.hardsigmoid(x)
            return self.head(self.last(x * gate)), gate

    report, _ = exported(Told(), tmp_path / "model.onnx")
    assert report.integer_kernels >= 2


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_hard_gate_ends_where_a_layers_own_grid_does_not(bits: int, tmp_path: Path) -> None:
    """The last convolution's grid of inputs would let a sum of more than 1 through."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.more, self.gate = nn.Conv2d(16, 16, 1), nn.Hardsigmoid()

        def forward(self, x: Tensor) -> Tensor:
            return self.gate(4 * self.more(x))

    images = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = drawn(Gated(Wide()))
    compressor = Compressor(model, images[:1], images, repair="none")
    layers = [layer.name for layer in compressor.structure.layers if layer.quantizable]
    genes = {f"weight_bits:{name}": 8 for name in layers}
    network: Any = compressor.build(Policy({**genes, "activation_bits:last.0": bits}))
    scale = network.last[0].input_quantizer.scale
    for factor in (1.0, 1.5):  # calibrated, and as training might leave it
        network.last[0].input_quantizer.scale = scale * factor
        report = export_onnx(network, tmp_path / "model.onnx", images[:1], images)
        assert report.largest_difference < 0.05 * report.largest_output


def test_float_files_hold_nothing_but_standard_operators(tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = drawn(residual(nn.SiLU, silu_squeeze))
    report = export_onnx(model, path, images[:1], int8=False)
    assert report.largest_difference < 1e-4
    assert [opset.domain for opset in onnx.load(path).opset_import] == [""]


def test_products_that_are_no_gates_of_maps_stay_floats(tmp_path: Path) -> None:
    """Tokens scaled by one value a feature, as transformers do before their linear layers."""

    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
            self.scale, self.last = nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.norm(self.embed(x).flatten(2).transpose(1, 2))
            scale = self.scale(tokens.mean(1, keepdim=True))
            result: Tensor = self.last(tokens * scale).mean(1)
            return result

    _, found = exported(Modulated(), tmp_path / "model.onnx")
    assert found["Mul"] == 1
    assert not found["QLinearMul"]


def test_a_hardswish_computes_what_it_did(tmp_path: Path) -> None:
    """At both of its ends, and between: the file's steps off by no more than a few."""
    images = torch.linspace(-8, 8, 3 * 16 * 16).reshape(1, 3, 16, 16).repeat(4, 1, 1, 1)
    model: Any = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Hardswish(), nn.Conv2d(3, 3, 1)).eval()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.eye(3)[:, :, None, None])
            layer.bias.zero_()
    compressor = Compressor(model, images[:1], images, repair="none")
    network = compressor.build(Policy({"weight_bits:0": 8, "weight_bits:2": 8}))
    path = tmp_path / "model.onnx"
    export_onnx(network, path, images[:1], images)
    assert {"QLinearMul", "QLinearAdd"} <= set(runtime.kernels(path.read_bytes()))
    found = runtime.Runner(path)(images[:1].numpy())[0]
    expected = nn.functional.hardswish(images[:1]).numpy()
    # Rounded to 1/255 of 16 at first, which a slope of up to 1.5 doubles; and twice more.
    assert np.abs(found - expected).max() < 2.5 * 16 / 255
    np.testing.assert_allclose(found[images[:1].numpy() < -3.2], 0, atol=8.4 / 255)
