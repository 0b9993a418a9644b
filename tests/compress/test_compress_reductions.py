"""Sums, means and extremes over channels: a cut network takes them over the channels it has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.places import kept_places
from automl_compress.compress.slicing import cut_channels

Function = Callable[[Tensor], Any]


class Reducing(nn.Module):
    """Two convolutions, and a function of all channels between them."""

    def __init__(self, function: Function, width: int = 9) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.function = function
        self.last = nn.Conv2d(width, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x))).mean((2, 3))


class WrittenNorm(nn.Module):
    """A layer norm over channels that come first, as ConvNeXt's code has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        spread = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(spread + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def response_norm(x: Tensor) -> Tensor:
    """ConvNeXt V2's: each channel's norm over positions, over the mean of all channels' norms."""
    x = x.permute(0, 2, 3, 1)
    norms = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
    return (x * norms / (norms.mean(-1, keepdim=True) + 1e-6)).permute(0, 3, 1, 2)


def written_group_norm(x: Tensor) -> Tensor:
    parts = x.reshape(len(x), 3, x.shape[1] // 3, *x.shape[2:])
    return (parts - parts.mean((2, 3, 4), keepdim=True)).reshape(x.shape)


def pooled_gate(x: Tensor) -> Tensor:
    """CBAM's: a map of positions from the mean and the greatest of all channels."""
    pooled = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return x * torch.sigmoid(pooled.sum(1, keepdim=True))


REDUCTIONS: dict[str, Function] = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "sum": lambda x: x * torch.sigmoid(x.sum(1, keepdim=True)),
    "sum over a written width": lambda x: x - x.sum(1, keepdim=True) / 9,
    "largest": lambda x: x * torch.sigmoid(x.amax(1, keepdim=True)),
    "smallest, without its axis": lambda x: x - x.min(1)[0][:, None],
    "variance": lambda x: x * torch.rsqrt(x.var(1, keepdim=True) + 0.1),
    "deviation": lambda x: x / (0.1 + x.std(dim=-3, keepdim=True)),
    "norm": lambda x: F.normalize(x, dim=1),
    "absolute norm": lambda x: x / (0.1 + x.norm(p=1, dim=1, keepdim=True)),
    "logsumexp": lambda x: x - x.logsumexp(1, keepdim=True),
    "all values": lambda x: x / (0.1 + x.abs().max()),
    "channels and positions": lambda x: x - x.mean((1, 2, 3), keepdim=True),
    "flattened": lambda x: x / (0.1 + x.flatten(1).norm(dim=1)[:, None, None, None]),
    "two": lambda x: x * torch.sigmoid(x.amin(1, True)) - x.mean(1, keepdim=True),
    "pooled gate": pooled_gate,
    "response norm": response_norm,
}
CHOICES: dict[str, Function] = {
    "argmax": lambda x: x + x.argmax(1, keepdim=True),
    "place of the largest": lambda x: x + x.max(1, keepdim=True)[1],
    "running sum": lambda x: x.cumsum(1),
    "softmax": lambda x: x.softmax(1),
    "sorted": lambda x: x.sort(1)[0],
}


def example(count: int = 1) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def cut_first(compressor: Compressor, kept: list[int]) -> nn.Module:
    groups = compressor.structure.groups
    places = kept_places(compressor.model, groups, {"first": np.array(kept)})
    return cut_channels(compressor.model, places)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("kept", [[0, 1, 2, 4, 5, 8], [3, 7]])
def test_a_cut_network_reduces_the_channels_it_has(name: str, kept: list[int]) -> None:
    torch.manual_seed(0)
    whole = Reducing(REDUCTIONS[name])
    compressor = Compressor(whole, example())
    smaller = Reducing(REDUCTIONS[name], len(kept))
    with torch.no_grad():
        smaller.first.weight.copy_(whole.first.weight[kept])
        smaller.first.bias.copy_(whole.first.bias[kept])
        smaller.last.weight.copy_(whole.last.weight[:, kept])
        smaller.last.bias.copy_(whole.last.bias)
        torch.testing.assert_close(
            cut_first(compressor, kept)(example(4)), smaller(example(4)), rtol=1e-4, atol=1e-5
        )
    assert [group.name for group in compressor.structure.groups if group.protected] == ["last"]


@pytest.mark.parametrize("name", CHOICES)
def test_what_counts_on_the_number_of_a_channel_is_protected(name: str) -> None:
    structure = Compressor(Reducing(CHOICES[name]), example()).structure
    group = structure.group("first")
    assert group is not None
    assert "channels" in group.protected


def test_written_normalizations_are_cut_with_their_parameters() -> None:
    torch.manual_seed(0)
    whole = Reducing(WrittenNorm(9))
    nn.init.normal_(whole.function.weight)
    cut: Any = cut_first(Compressor(whole, example()), [1, 4, 8])
    assert cut.function.weight.tolist() == whole.function.weight[[1, 4, 8]].tolist()
    norm = nn.LayerNorm(3, eps=1e-6)
    norm.weight.data = cut.function.weight
    maps = cut.first(example(2))
    expected = norm(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(cut.function(maps), expected, rtol=1e-4, atol=1e-5)


def test_parts_that_are_reduced_apart_lose_the_same_channels() -> None:
    compressor = Compressor(Reducing(written_group_norm), example())
    group = compressor.structure.group("first")
    assert group is not None
    assert group.protected == ""
    assert group.channels == 3
    built: Any = cut_first(compressor, [0, 2])
    assert built.first.out_channels == 6
    maps = built.first(example(2)).reshape(2, 3, 2, 6, 6)
    expected = (maps - maps.mean((2, 3, 4), keepdim=True)).reshape(2, 6, 6, 6)
    torch.testing.assert_close(built(example(2)), built.last(expected).mean((2, 3)))


def test_a_returned_place_of_the_largest_channel_protects_it() -> None:
    class Largest(Reducing):
        def forward(self, x: Tensor) -> Any:
            maps = self.first(x)
            return self.last(maps), maps.max(1)[1]

    group = Compressor(Largest(lambda x: x), example()).structure.group("first")
    assert group is not None
    assert group.protected
