"""Attention that networks write out: found by what it computes, and every head can be cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compress_networks import counted_macs, lively
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.tracing import working_copy
from automl_compress.compress.written_attention import SelfAttention
from automl_compress.space import Policy

WIDTH, HEADS, TOKENS = 12, 3, 6
DEPTH = WIDTH // HEADS


class Written(nn.Module):
    """What all have: a width, heads, and a layer at the end."""

    def __init__(self, layers: dict[str, int], bias: bool = True) -> None:
        super().__init__()
        self.heads = HEADS
        for name, parts in layers.items():
            self.add_module(name, nn.Linear(WIDTH, parts * WIDTH, bias))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Any = 0.0) -> Tensor:
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias).softmax(-1)
        return weights @ v

    def close(self, y: Tensor) -> Tensor:
        n, _, tokens, _ = y.shape
        found: Tensor = self.proj(y.transpose(1, 2).reshape(n, tokens, WIDTH))
        return found

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, DEPTH).transpose(1, 2)


class Joint(Written):
    """As timm writes it; a mask may be added."""

    def __init__(self) -> None:
        super().__init__({"qkv": 3})

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask)
        return self.close(y)


class Interleaved(Written):
    """Every head has its queries, keys and values side by side; einsum; heads come last."""

    def __init__(self) -> None:
        super().__init__({"qkv": 3}, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], HEADS, 3 * DEPTH).chunk(3, -1)
        weights = (torch.einsum("bihd,bjhd->bhij", q, k) * WIDTH**-0.5).softmax(-1)
        y = torch.einsum("bhij,bjhd->bidh", weights, v)
        found: Tensor = self.proj(y.reshape(*x.shape[:2], WIDTH))
        return found


class Causal(Written):
    """As small language models have it, the norm inside."""

    def __init__(self) -> None:
        super().__init__({"key": 1, "query": 1, "value": 1})
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("seen", torch.ones(32, 32).tril())

    def forward(self, x: Tensor) -> Tensor:
        x, tokens = self.norm(x), x.shape[1]
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        unseen = torch.zeros(tokens, tokens).masked_fill(
            self.seen[:tokens, :tokens] == 0, float("-inf")
        )
        return self.close(self.attend(q, k, v, unseen))


class Normed(Written):
    """Queries and keys of a head are normalized; keys and values share a layer."""

    def __init__(self) -> None:
        super().__init__({"q": 1, "kv": 2})
        self.q_norm, self.k_norm = nn.LayerNorm(DEPTH), nn.LayerNorm(DEPTH)

    def forward(self, x: Tensor) -> Tensor:
        k, v = map(self.split, self.kv(x).chunk(2, -1))
        q, k = self.q_norm(self.split(self.q(x))), self.k_norm(k)
        return self.close(self.attend(q, k, v))


class Biased(Written):
    """Scores get a table, and a mask for each of the windows in the batch."""

    def __init__(self) -> None:
        super().__init__({"qkv": 3})
        self.table = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS))

    def position_bias(self) -> Tensor:
        return self.table[None]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * DEPTH**-0.5 + self.position_bias()
        if mask is not None:
            scores = scores.view(-1, len(mask), HEADS, tokens, tokens) + mask[None, :, None]
            scores = scores.view(n, HEADS, tokens, tokens)
        return self.close(scores.softmax(-1) @ v)


KINDS: list[type[Written]] = [Joint, Interleaved, Causal, Normed, Biased]


class Residual(nn.Module):
    """Attention in a network of tokens."""

    def __init__(self, kind: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.patch = nn.Conv1d(3, WIDTH, 2, 2)
        self.attend = kind()
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).transpose(1, 2)
        found: Tensor = self.head((x + self.attend(x)).mean(1))
        return found


def network(kind: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(Residual(kind)).eval().requires_grad_(False)


def signals(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, 2 * TOKENS, generator=generator)


def masks(kind: type[Written]) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(2, TOKENS, TOKENS, generator=generator)
    if kind is Joint:
        return [{}, {"attn_mask": given[0]}, {"attn_mask": given[0] > -1}]
    return [{}, {"mask": given}] if kind is Biased else [{}]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_compute_what_the_code_does(kind: type[Written]) -> None:
    original = network(kind)
    found = working_copy(original).get_submodule("attend")
    assert type(found) is SelfAttention
    x = torch.randn(4, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
    for mask in masks(kind):
        expected = original.get_submodule("attend")(x, **mask)
        torch.testing.assert_close(found(x, **mask), expected)
        again = working_copy(working_copy(original)).get_submodule("attend")
        assert torch.equal(again(x, **mask), found(x, **mask))


def silenced(model: nn.Module, compressor: Compressor, kept: dict[str, Any]) -> nn.Module:
    """The original, in which nothing writes the channels of heads that go."""
    result = copy.deepcopy(model)
    attend: Any = result.get_submodule("attend")
    for group, parts in (("query", "qk"), ("value", "v")):
        gone = np.setdiff1d(np.arange(DEPTH), kept[f"attend.{group}"])
        for tensor, part in (entry for p in parts for entry in rows_of(attend, p)):
            tensor.view(HEADS, -1, *tensor.shape[1:])[:, part][:, gone] = 0
    return result


def rows_of(attend: Any, part: str) -> list[tuple[Tensor, slice]]:
    """Tensors that write queries, keys or values, and where these lie in a head."""
    if isinstance(attend, Interleaved):
        place = "qkv".index(part) * DEPTH
        return [(attend.qkv.weight, slice(place, place + DEPTH))]
    if isinstance(attend, Joint | Biased):
        weights = attend.qkv.weight.chunk(3), attend.qkv.bias.chunk(3)
        return [(chunks["qkv".index(part)], slice(None)) for chunks in weights]
    layer = getattr(attend, {"q": "query", "k": "key", "v": "value"}[part])
    return [(layer.weight, slice(None)), (layer.bias, slice(None))]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not Normed])
def test_heads_without_some_channels(kind: type[Written]) -> None:
    model, x = network(kind), signals(4)
    compressor = Compressor(model, x[:1], repair="none")
    genes = {"channels:attend.query": 2, "channels:attend.value": 3}
    cuttable = {g.name for g in compressor.structure.groups if not g.protected}
    assert cuttable == {"patch", "attend.query", "attend.value"}
    expected = silenced(model, compressor, compressor.kept_channels(Policy(genes)))(x)
    built = compressor.build(Policy(genes))
    torch.testing.assert_close(built(x), expected)
    assert not torch.allclose(expected, model(x), atol=1e-3)
    assert compressor.cost(Policy(genes))["macs"] == counted_macs(built, x[:1])


def test_norms_of_heads_are_cut_with_them() -> None:
    x = signals(2)
    compressor = Compressor(network(Normed), x[:1], repair="none")
    group = compressor.structure.group("attend.query")
    assert group is not None
    assert {"attend.q_norm", "attend.k_norm"} <= {member.module for member in group.members}
    built = compressor.build(Policy({"channels:attend.query": 2, "channels:patch": 7}))
    assert built.get_submodule("attend.q_norm").get_parameter("weight").shape == (2,)
    assert built(x).shape == (2, 5)


class Talking(Joint):
    """Scores of all heads are mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.talk = nn.Parameter(torch.randn(HEADS, HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Any = 0.0) -> Tensor:
        scores = torch.einsum("gh,bhij->bgij", self.talk, q @ k.transpose(-2, -1))
        return (scores * DEPTH**-0.5 + bias).softmax(-1) @ v

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, HEADS, DEPTH).permute(2, 0, 3, 1, 4).unbind(0)
        return self.close(self.attend(q, k, v))


class Inside(Joint):
    """The residual sum is inside."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        return x + super().forward(x, attn_mask)


class Scaled(Joint):
    """Another argument decides what is computed."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, times: Any = None) -> Tensor:
        return super().forward(x, attn_mask) * (1 if times is None else times)


@pytest.mark.parametrize("kind", [Talking, Inside, Scaled])
def test_other_attention_is_left_alone(kind: type[Written]) -> None:
    model, x = network(kind), signals(2)
    compressor = Compressor(model, x[:1], repair="none")
    assert not any(isinstance(part, SelfAttention) for part in compressor.model.modules())
    reasons = {group.name: group.protected for group in compressor.structure.groups}
    assert reasons["attend.qkv"]
    torch.testing.assert_close(compressor.build(Policy({}))(x), model(x))
