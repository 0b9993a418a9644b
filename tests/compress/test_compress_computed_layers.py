"""Layers whose weights a network's own code computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compress_networks import example, network
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.tracing.working_copy import working_copy
from automl_compress.space import Policy


class Own(nn.Conv2d):
    """A convolution whose code is a function."""

    def __init__(self, function: Callable[[nn.Conv2d, Tensor], Tensor]) -> None:
        super().__init__(4, 6, 3, stride=2, padding=1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Transposed(nn.Module):
    """As decoders of generative networks scale the weights of what is no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 2, 3))
        self.groups = 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(
            x, self.weight * 0.1, stride=2, output_padding=1, groups=self.groups
        )


def strided(layer: nn.Conv2d, x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


PLAIN: dict[str, Callable[[], nn.Module]] = {
    "scaled": lambda: Own(lambda layer, x: strided(layer, x, layer.weight / 7)),
    "masked": lambda: Own(lambda layer, x: strided(layer, x, layer.weight.tril())),
    "as it is": lambda: Own(lambda layer, x: nn.Conv2d.forward(layer, x)),
    "named": lambda: Own(lambda layer, x: F.conv2d(bias=None, weight=layer.weight, input=x)),
    "transposed": Transposed,
}
OTHER: dict[str, Callable[[], nn.Module]] = {
    "weights of the input": lambda: Own(
        lambda layer, x: strided(layer, x, layer.weight * x.mean().sigmoid())
    ),
    "another input": lambda: Own(lambda layer, x: strided(layer, x.relu(), layer.weight / 7)),
    "another output": lambda: Own(lambda layer, x: strided(layer, x, layer.weight / 7).relu()),
    "two calls": lambda: Own(
        lambda layer, x: strided(layer, x, layer.weight) - strided(layer, x, layer.weight / 7)
    ),
    "settings of the input": lambda: Own(
        lambda layer, x: F.conv2d(x, layer.weight / 7, None, 1, 1, 1 + x.shape[-1] % 2)
    ),
}


def working_layer(layer: nn.Module) -> nn.Module:
    return working_copy(nn.Sequential(layer, nn.ReLU()))[0]  # type: ignore[index]


@pytest.mark.parametrize("name", PLAIN)
def test_what_computes_as_a_layer_becomes_one(name: str) -> None:
    torch.manual_seed(0)
    module = PLAIN[name]().eval()
    layer = working_layer(module)
    assert type(layer) in (nn.Conv2d, nn.ConvTranspose2d)
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(layer(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", OTHER)
def test_what_does_anything_else_stays(name: str) -> None:
    assert type(working_layer(OTHER[name]())) is Own


def test_hooked_layers_stay() -> None:
    layer = PLAIN["scaled"]()
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    assert type(working_layer(layer)) is Own


@pytest.mark.parametrize("name", ["standardised", "bare"])
def test_computed_weights_are_cut_and_quantized(name: str) -> None:
    structure = Compressor(network(name), example(name)).structure
    assert [g.protected for g in structure.groups if g.protected] == [
        "its channels are the network's output"
    ]
    assert all(layer.quantizable for layer in structure.layers)


def test_cut_weights_stay_as_they_were() -> None:
    """Standardised anew over fewer inputs they would be others."""
    whole: Any = network("standardised")
    compressor = Compressor(whole, example("standardised"))
    built: Any = compressor.build(Policy({"channels:0": 3}))
    kept = compressor.kept_channels(Policy({"channels:0": 3}))["0"]
    computed: Any = compressor.model
    assert torch.equal(built[5].weight, computed[5].weight[:, kept])


def test_layers_that_stay_say_why() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), OTHER["weights of the input"](), nn.Conv2d(6, 5, 3))
    groups = {g.name: g for g in Compressor(model, torch.zeros(1, 3, 16, 16)).structure.groups}
    assert groups["1"].protected == "its own code computes its weights, or more than a layer does"
    assert groups["0"].protected == (
        "its channels are read by 'conv2d' in the network's own code, not by a layer"
    )
