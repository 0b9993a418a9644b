"""Folding BatchNorm into layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compress_networks import NETWORKS, example, network
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.fold import fold_norms, foldable_norms
from automl_compress.compress.kinds import BATCH_NORMS
from automl_compress.compress.modules import share_copy
from automl_compress.space import Policy


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)]


@pytest.mark.parametrize("name", ["resnet8", "vgg", "mobile"])
def test_all_norms_after_layers_are_folded_and_outputs_stay(name: str) -> None:
    model, x = network(name), example(name, 5)
    pairs = foldable_norms(model, x[:1])
    assert set(pairs) == set(norms(model))
    folded = share_copy(model)
    with torch.no_grad():
        before = model(x)
        fold_norms(folded, pairs)
        torch.testing.assert_close(folded(x), before, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(x), before)
    assert not norms(folded)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_only_what_can_be_folded_is(name: str) -> None:
    model, x = network(name), example(name, 2)
    pairs = foldable_norms(model, x)
    folded = share_copy(model)
    with torch.no_grad():
        fold_norms(folded, pairs)
        before, after = model(x), folded(x)
    if isinstance(before, Tensor):
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_a_layer_that_is_read_besides_its_norm_is_left_alone() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) + y

    model = Both().eval()
    model.norm.running_var.fill_(3.0)
    assert foldable_norms(model, torch.randn(1, 3, 4, 4)) == {}


def test_rounded_weights_stay_on_their_grid_with_negative_gains() -> None:
    model, x = network("vgg"), example("vgg", 4)
    norm: Any = model.get_submodule("features.0.1")
    with torch.no_grad():
        norm.weight[::2] *= -1
    compressor = Compressor(model, x[:1])
    bits = {f"weight_bits:{layer.name}": 3 for layer in compressor.structure.layers}
    built = compressor.build(Policy({**bits, "channels:features.0.0": 5}))
    with torch.no_grad():
        before = built(x)
        fold_norms(built, foldable_norms(compressor.model, x[:1]))
        torch.testing.assert_close(built(x), before, rtol=1e-4, atol=1e-5)
    layer: Any = built.get_submodule("features.0.0")
    integers = layer.weight.flatten(1) / layer.weight_scale[:, None]
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
    assert (layer.weight_scale > 0).all()
