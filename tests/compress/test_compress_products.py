"""Products of activations that a network's own code writes out: attention of convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import (
    PositionAttention,
    counted_macs,
    example,
    head,
    network,
    shared_compressor,
)
from torch import Tensor, nn

from automl_compress.compress import Compressor, CostModel, space_of_structure
from automl_compress.compress.modules import own_copy
from automl_compress.compress.places import kept_places
from automl_compress.compress.slicing import cut_channels
from automl_compress.space import Policy, SpaceRules


def without(model: nn.Module, group: Any, kept: list[int]) -> nn.Module:
    """The network in which every layer that writes a group's channels gives zeros for some."""
    result = own_copy(model)
    for member in group.members:
        if member.axis == "out":
            layer = result.get_submodule(member.module)
            gone = torch.from_numpy(member.positions[~np.isin(member.channels, kept)])
            layer.weight[gone], layer.bias[gone] = 0, 0  # type: ignore[index, operator]
    return result


@pytest.mark.parametrize(
    ("name", "target"),
    [("non-local", "2.value"), ("position-attention", "2.query")],
)
def test_cut_products_are_those_of_channels_that_are_zero(name: str, target: str) -> None:
    compressor, images = shared_compressor(name), example(name, 4)
    group = compressor.structure.group(target)
    assert group is not None
    kept = [1, 3]
    places = kept_places(compressor.model, compressor.structure.groups, {target: np.array(kept)})
    with torch.no_grad():
        expected = without(compressor.model, group, kept)(images)
        actual = cut_channels(compressor.model, places)(images)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def test_what_a_number_says_of_several_layers_is_cut_together() -> None:
    group = shared_compressor("non-local").structure.group("2.value")
    assert group is not None
    assert group.writers == ("2.value", "2.query", "2.key")
    assert group.channels == 6


def test_products_are_searchable_and_count_what_is_left() -> None:
    model, x = network("non-local"), example("non-local")
    compressor = Compressor(model, x)
    derived = space_of_structure(compressor.model, compressor.structure, SpaceRules())
    assert derived.coverage.macs_share == 1.0
    policy = Policy({"channels:2.value": 2})
    whole, cut = (CostModel(compressor.structure)(p)["macs"] for p in (Policy({}), policy))
    assert cut == counted_macs(compressor.build(policy), x)
    positions = 16
    assert whole - cut == 4 * positions * (4 * 8 + 2 * positions)


class ChannelAttention(nn.Module):
    """DANet's: which channels are alike."""

    def forward(self, x: Tensor) -> Tensor:
        maps = x.flatten(2)
        weights = torch.bmm(maps, maps.transpose(1, 2)).softmax(-1)
        return torch.bmm(weights, maps).view(x.shape) + x


class FixedKeys(PositionAttention):
    """Keys that are no layer's."""

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2)
        fixed = torch.linspace(-1, 1, query.shape[2] * 5).reshape(1, query.shape[2], 5)
        return x + (query @ fixed.expand(len(x), -1, -1)).softmax(-1).mean((1, 2)).view(-1, 1, 1, 1)


class Scaled(PositionAttention):
    """A scale that depends on the width, which a cut network must not change."""

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).flatten(2).transpose(1, 2) / self.query(x).shape[1] ** 0.5
        weights = torch.bmm(query, self.key(x).flatten(2)).softmax(-1)
        mixed = torch.bmm(self.value(x).flatten(2), weights.transpose(1, 2))
        return mixed.view(x.shape) + x


@pytest.mark.parametrize(
    ("middle", "target"),
    [(ChannelAttention(), "0"), (FixedKeys(8), "1.query"), (Scaled(8), "1.query")],
)
def test_products_that_are_no_sums_over_what_stays_protect(middle: nn.Module, target: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), middle, head(8))
    group = Compressor(model, torch.zeros(1, 3, 16, 16)).structure.group(target)
    assert group is not None
    assert group.protected
