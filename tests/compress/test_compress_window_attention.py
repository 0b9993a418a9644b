"""Attention in shifted windows made of layers: it computes the same, and its stream is cut."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import counted_macs, lively
from torch import Tensor, nn
from torchvision.models.swin_transformer import (
    PatchMerging,
    PatchMergingV2,
    ShiftedWindowAttention,
    ShiftedWindowAttentionV2,
    SwinTransformer,
    SwinTransformerBlock,
    SwinTransformerBlockV2,
)

from automl_compress.compress import Compressor
from automl_compress.compress.tracing.window_attention import ShiftedWindows, is_window_attention
from automl_compress.space import Policy

KINDS = [ShiftedWindowAttention, ShiftedWindowAttentionV2]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [[0, 0], [1, 2], [2, 0]])
@pytest.mark.parametrize("size", [(8, 8), (5, 10), (4, 9)])
def test_layers_compute_what_windows_do(kind: Any, shift: list[int], size: tuple[int, int]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        original = kind(12, [4, 4], shift, 3).eval().requires_grad_(False)
        for parameter in original.parameters():
            parameter.copy_(torch.randn(parameter.shape))
        x = torch.randn(2, *size, 12)
    assert is_window_attention(original)
    torch.testing.assert_close(ShiftedWindows(original)(x), original(x))
    assert not is_window_attention(ShiftedWindows(original))


def test_windows_go_where_their_input_is() -> None:
    """On another device than the processor nothing of the processor may come in."""
    original = ShiftedWindowAttention(12, [4, 4], [1, 2], 3).eval()
    windows = ShiftedWindows(original).to("meta")
    assert windows(torch.zeros(2, 5, 10, 12, device="meta")).shape == (2, 5, 10, 12)


def swin(block: Any, merging: Any) -> nn.Module:
    """Two stages of two blocks, whose norms do nothing, so that a cut can be known by zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(
            SwinTransformer(
                [2, 2], 8, [2, 2], [2, 4], [2, 2], 2.0, num_classes=5, block=block,
                downsample_layer=merging, norm_layer=lambda width: nn.Identity(),
            )
        ).eval()  # fmt: skip


def silenced(model: nn.Module, compressor: Compressor, kept: dict[str, Any]) -> nn.Module:
    """The original, in which nothing writes the channels that go."""
    result = copy.deepcopy(model).requires_grad_(False)
    parts = ["query", "key", "value"]
    for group in compressor.structure.groups:
        for member in group.members if group.name in kept else ():
            gone = member.positions[~np.isin(member.channels, kept[group.name])]
            parent, _, last = member.module.rpartition(".")
            if member.axis == "in" or last in ("scores", "mix"):
                continue
            layer: Any = result.get_submodule(f"{parent}.qkv" if last in parts else member.module)
            if last in parts:
                gone = gone + parts.index(last) * len(layer.weight) // 3
            layer.weight[gone] = 0
            if layer.bias is not None:
                layer.bias[gone] = 0
    return result


@pytest.mark.parametrize(
    ("block", "merging"),
    [(SwinTransformerBlock, PatchMerging), (SwinTransformerBlockV2, PatchMergingV2)],
)
def test_a_swin_without_some_channels(block: Any, merging: Any) -> None:
    model = swin(block, merging)
    x: Tensor = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(model, x[:1], repair="none")
    cuttable = {g.name: g.channels for g in compressor.structure.groups if not g.protected}
    streams = {"features.0.0", "features.2.reduction"}
    heads = {
        f"features.{s}.{b}.attn.{n}" for s in (1, 3) for b in (0, 1) for n in ("query", "value")
    }
    assert streams | heads <= cuttable.keys()
    generator = np.random.default_rng(0)
    bias_tables = {name for name in cuttable if "cpb_mlp" in name}
    genes = {f"channels:{n}": int(generator.integers(1, c)) for n, c in cuttable.items()
             if n not in bias_tables}  # fmt: skip
    policy = Policy(genes)
    expected = silenced(model, compressor, compressor.kept_channels(policy))(x)
    built = compressor.build(policy)
    torch.testing.assert_close(built(x), expected)
    assert compressor.cost(policy)["macs"] == counted_macs(built, x[:1])
    assert not torch.allclose(expected, model(x), atol=1e-3)
