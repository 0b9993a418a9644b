"""Attention that networks write out: found by what it computes, and every head can be cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compress_networks import counted_macs, lively, random_policy
from torch import Tensor, nn

from automl_compress.compress import Compressor, trace
from automl_compress.compress.tracing.attention_forms import SelfAttention
from automl_compress.compress.tracing.working_copy import working_copy
from automl_compress.deploy import load_packed, save_packed
from automl_compress.deploy.onnx import onnx_content
from automl_compress.deploy.runtime import Runner
from automl_compress.errors import TraceError
from automl_compress.space import Policy

pytestmark = pytest.mark.usefixtures("operators_read_once")

WIDTH, HEADS, TOKENS = 12, 3, 24
SIZE = (4, 6)
DEPTH = WIDTH // HEADS


class Written(nn.Module):
    """What all have: a width, heads, and a layer at the end."""

    size: tuple[Any, ...] = ()
    """What it is called with after the tokens."""

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


class Reduced(Written):
    """Keys and values read a smaller map; their layers are apart."""

    size = (SIZE,)

    def __init__(self) -> None:
        super().__init__({"query": 1, "key": 1, "value": 1})
        self.shrink, self.norm = nn.Conv2d(WIDTH, WIDTH, 2, 2), nn.LayerNorm(WIDTH)

    def sources(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        grid = x.transpose(1, 2).reshape(len(x), WIDTH, *size)
        found: Tensor = self.norm(self.shrink(grid).flatten(2).transpose(1, 2))
        return found

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        small = self.sources(x, size)
        k, v = (self.split(layer(small)) for layer in (self.key, self.value))
        return self.close(self.attend(self.split(self.query(x)), k, v))


class Pooled(Reduced):
    """The map is pooled before, and goes through a curve after; height and width are apart."""

    size = SIZE

    def __init__(self) -> None:
        super().__init__()
        del self.shrink, self.norm
        self.pool, self.blend = nn.AdaptiveAvgPool2d((2, 3)), nn.Conv2d(WIDTH, WIDTH, 1)
        self.norm, self.act = nn.LayerNorm(WIDTH), nn.GELU()

    def shrink(self, x: Tensor) -> Tensor:
        found: Tensor = self.blend(self.pool(x))
        return found

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:  # type: ignore[override]
        small = self.act(self.sources(x, (height, width)))
        k, v = (self.split(layer(small)) for layer in (self.key, self.value))
        return self.close(self.attend(self.split(self.query(x)), k, v))


class Windows(Written):
    """Windows of the map are attended to alone; the last ones are filled up."""

    size = (SIZE,)

    def __init__(self) -> None:
        super().__init__({"qkv": 3})
        self.side = 4

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        (height, width), side, n = size, self.side, len(x)
        x = F.pad(x.view(n, *size, WIDTH), (0, 0, 0, -width % side, 0, -height % side))
        down, right = x.shape[1] // side, x.shape[2] // side
        x = x.reshape(n, down, side, right, side, WIDTH).transpose(2, 3)
        qkv = self.qkv(x).reshape(n, down * right, side**2, 3, HEADS, DEPTH)
        y = self.attend(*qkv.permute(3, 0, 1, 4, 2, 5)).transpose(2, 3)
        y = y.reshape(n, down, right, side, side, WIDTH).transpose(2, 3)
        y = y.reshape(n, down * side, right * side, WIDTH)[:, :height, :width]
        found: Tensor = self.proj(y.reshape(n, -1, WIDTH))
        return found


class Vectors(Written):
    """What is added to queries and values is kept apart; scores get a table, and what is given."""

    def __init__(self) -> None:
        super().__init__({"qkv": 3}, bias=False)
        self.on_q, self.on_v = (nn.Parameter(torch.randn(WIDTH)) for _ in "qv")
        self.table = nn.Parameter(torch.randn(HEADS, TOKENS, TOKENS))

    def bias(self) -> Tensor:
        return self.table

    def forward(self, x: Tensor, shared_bias: Tensor | None = None) -> Tensor:
        added = torch.cat([self.on_q, torch.zeros(WIDTH), self.on_v])
        qkv = F.linear(x, self.qkv.weight, added).reshape(*x.shape[:2], 3, HEADS, DEPTH)
        bias = self.bias() if shared_bias is None else self.bias() + shared_bias
        return self.close(self.attend(*qkv.permute(2, 0, 3, 1, 4), bias))


class FirstAsks(Written):
    """Only the first token attends, as in class attention."""

    def __init__(self) -> None:
        super().__init__({"query": 1, "key": 1, "value": 1})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        return self.close(self.attend(q[:, :, :1], k, v))


class Talking(Joint):
    """Heads are mixed before and after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.after, self.before = nn.Linear(HEADS, HEADS), nn.Linear(HEADS, HEADS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Any = 0.0) -> Tensor:
        scores = (q * DEPTH**-0.5 @ k.transpose(-2, -1)).permute(0, 2, 3, 1)
        weights = self.before(scores).softmax(2)
        return self.after(weights).permute(0, 3, 1, 2) @ v

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, DEPTH)
        return self.close(self.attend(*qkv.permute(2, 0, 3, 1, 4)))


class Across(Written):
    """Channels attend to channels, as in cross-covariance attention."""

    def __init__(self) -> None:
        super().__init__({"qkv": 3})
        self.factors = nn.Parameter(torch.randn(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, DEPTH).permute(2, 0, 3, 4, 1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = (q @ k.transpose(-2, -1) * self.factors).softmax(-1) @ v
        return self.close(y.transpose(2, 3))


class Turned(Written):
    """All tokens but the first may be turned by their places; a norm comes after."""

    def __init__(self) -> None:
        super().__init__({"qkv": 3})
        self.prefix, self.norm = 1, nn.LayerNorm(WIDTH)

    def turned(self, x: Tensor, rope: Tensor) -> Tensor:
        sines, cosines = rope.chunk(2, -1)
        last = x[:, :, self.prefix :]
        crossed = torch.stack([-last[..., 1::2], last[..., ::2]], -1).reshape(last.shape)
        return torch.cat([x[:, :, : self.prefix], last * cosines + crossed * sines], 2)

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, DEPTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if rope is not None:
            q, k = self.turned(q, rope), self.turned(k, rope)
        y = self.attend(q, k, v).transpose(1, 2).reshape(x.shape)
        found: Tensor = self.proj(self.norm(y))
        return found


class Halves(Turned):
    """The other half of a head's channels is what they are turned with; nothing stays."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix = 0

    def turned(self, x: Tensor, rope: Tensor) -> Tensor:
        sines, cosines = rope.chunk(2, -1)
        one, other = x.chunk(2, -1)
        return x * cosines + torch.cat([-other, one], -1) * sines


KINDS: list[type[Written]] = [
    *(Joint, Interleaved, Causal, Normed, Biased, Reduced, Pooled, Windows, Vectors, FirstAsks),
    *(Talking, Across, Turned, Halves),
]


class Residual(nn.Module):
    """Attention in a network of tokens."""

    def __init__(self, kind: Callable[[], Written]) -> None:
        super().__init__()
        self.patch = nn.Conv1d(3, WIDTH, 2, 2)
        self.attend = kind()
        self.size = self.attend.size
        self.named: dict[str, Tensor] = {}
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).transpose(1, 2)
        found: Tensor = self.head((x + self.attend(x, *self.size, **self.named)).mean(1))
        return found


def network(kind: Callable[[], Written]) -> nn.Module:
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
    if issubclass(kind, Turned):
        turned = TOKENS - (kind is Turned)
        return [{}, {"rope": torch.randn(turned, 2 * DEPTH, generator=generator)}]
    if kind is Vectors:
        return [{}, {"shared_bias": given[0]}]
    return [{}, {"mask": given}] if kind is Biased else [{}]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_compute_what_the_code_does(kind: type[Written]) -> None:
    original = network(kind)
    found = working_copy(original).get_submodule("attend")
    assert type(found) is SelfAttention
    x = torch.randn(4, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
    for mask in masks(kind):
        expected = original.get_submodule("attend")(x, *kind.size, **mask)
        torch.testing.assert_close(found(x, *kind.size, **mask), expected)
        again = working_copy(working_copy(original)).get_submodule("attend")
        assert torch.equal(again(x, *kind.size, **mask), found(x, *kind.size, **mask))


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
    if isinstance(attend, Vectors):
        vectors = [] if part == "k" else [(getattr(attend, f"on_{part}"), slice(None))]
        return [(attend.qkv.weight.chunk(3)["qkv".index(part)], slice(None)), *vectors]
    if isinstance(attend, Joint | Biased | Windows):
        weights = attend.qkv.weight.chunk(3), attend.qkv.bias.chunk(3)
        return [(chunks["qkv".index(part)], slice(None)) for chunks in weights]
    layer = getattr(attend, {"q": "query", "k": "key", "v": "value"}[part])
    return [(layer.weight, slice(None)), (layer.bias, slice(None))]


UNEVEN = (Normed, Across, Turned, Halves)
"""Whose heads stay, or are normalized: a mean of fewer channels is another."""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in UNEVEN])
def test_heads_without_some_channels(kind: type[Written]) -> None:
    model, x = network(kind), signals(4)
    compressor = Compressor(model, x[:1], repair="none")
    genes = {"channels:attend.query": 2, "channels:attend.value": 3}
    cuttable = {g.name for g in compressor.structure.groups if not g.protected}
    between = {Reduced: {"attend.shrink"}, Pooled: {"attend.blend"}}.get(kind, set())
    assert cuttable == {"patch", "attend.query", "attend.value"} | between
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


@pytest.mark.parametrize("kind", [Turned, Halves])
def test_turned_queries_stay_and_values_are_cut(kind: type[Written]) -> None:
    model, x = network(kind), signals(4)
    vars(model)["named"] = masks(kind)[1]
    compressor = Compressor(model, x[:1], repair="none")
    cuttable = {g.name for g in compressor.structure.groups if not g.protected}
    assert cuttable == {"patch", "attend.value"}
    policy = Policy({"channels:attend.value": 2, "channels:patch": 5})
    built = compressor.build(policy)
    assert compressor.cost(policy)["macs"] == counted_macs(built, x[:1])
    torch.testing.assert_close(compressor.build(Policy({}))(x), model(x))
    found = torch.from_numpy(Runner(onnx_content(built, x[:1], x))(x.numpy())[0])
    torch.testing.assert_close(found, built(x), atol=1e-4, rtol=1e-4)


# Those whose layers another kind has, too, or that are exported above.
ALIKE = (Interleaved, Causal, Pooled, Across, Turned, Halves)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind in ALIKE)) for kind in KINDS]
)
def test_random_cuts_are_counted_packed_and_exported(kind: type[Written], tmp_path: Path) -> None:
    model, x = network(kind), signals(4)
    compressor = Compressor(model, x[:1], x)
    policy = random_policy(compressor.structure, np.random.default_rng(1), activations=True)
    built = compressor.build(policy)
    cost = compressor.cost(policy)
    assert cost["macs"] == counted_macs(built, x[:1])
    assert cost["params"] == sum(p.numel() for p in built.parameters())
    save_packed(built, tmp_path / "net.packed", policy)
    again = load_packed(tmp_path / "net.packed", model)
    assert torch.equal(again(x), built(x))
    cut = compressor.build(Policy({n: v for n, v in policy.items() if n.startswith("channels:")}))
    found = torch.from_numpy(Runner(onnx_content(cut, x[:1], x))(x.numpy())[0])
    torch.testing.assert_close(found, cut(x), atol=1e-4, rtol=1e-4)


class Mixing(Joint):
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


class Grown(Reduced):
    """What keys and values read is enlarged."""

    def sources(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return super().sources(x, size) * 1.5


class Gated(Windows):
    """What was attended to passes a gate."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return super().forward(x, size) * x.sigmoid()


class Shifted(Windows):
    """Windows begin elsewhere."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return super().forward(x.roll(1, 1), size).roll(-1, 1)


class Twice(Vectors):
    """What is added to queries counts twice."""

    def forward(self, x: Tensor, shared_bias: Tensor | None = None) -> Tensor:
        added = torch.cat([2 * self.on_q, torch.zeros(WIDTH), self.on_v])
        qkv = F.linear(x, self.qkv.weight, added).reshape(*x.shape[:2], 3, HEADS, DEPTH)
        return self.close(self.attend(*qkv.permute(2, 0, 3, 1, 4), self.bias()))


class MeanAsks(FirstAsks):
    """The mean of all tokens attends, not the first."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        return self.close(self.attend(q.mean(2, keepdim=True), k, v))


class Shouting(Talking):
    """Heads are mixed only after the softmax, twice."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Any = 0.0) -> Tensor:
        weights = (q * DEPTH**-0.5 @ k.transpose(-2, -1)).softmax(-1).permute(0, 2, 3, 1)
        return self.after(self.before(weights)).permute(0, 3, 1, 2) @ v


class Long(Across):
    """Channels of queries keep their lengths."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, DEPTH).permute(2, 0, 3, 4, 1)
        y = (q @ F.normalize(k, dim=-1).transpose(-2, -1) * self.factors).softmax(-1) @ v
        return self.close(y.transpose(2, 3))


class KeysStay(Turned):
    """Only queries are turned."""

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, HEADS, DEPTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        q = q if rope is None else self.turned(q, rope)
        found: Tensor = self.proj(self.norm(self.attend(q, k, v).transpose(1, 2).reshape(x.shape)))
        return found


class Near(Written):
    """Tokens that are far from each other do not see each other."""

    def __init__(self) -> None:
        super().__init__({"query": 1, "key": 1, "value": 1})

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        far = (places[:, None] - places).abs() > 20
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        return self.close(self.attend(q, k, v, torch.zeros(far.shape).masked_fill(far, -1e9)))


class Thinned(Near):
    """Of many keys, one in two is read."""

    many = 20

    def forward(self, x: Tensor) -> Tensor:
        read = x[:, ::2] if x.shape[1] > self.many else x
        k, v = (self.split(layer(read)) for layer in (self.key, self.value))
        return self.close(self.attend(self.split(self.query(x)), k, v))


class ThinnedLate(Thinned):
    """Only of very many."""

    many = 2_000


class Beside(Near):
    """The weights, or `None`, are given beside what was attended to."""

    def __init__(self, shown: bool) -> None:
        super().__init__()
        self.shown = shown

    def forward(self, x: Tensor) -> Any:
        q, k, v = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        weights = (q @ k.transpose(-2, -1) * DEPTH**-0.5).softmax(-1)
        return self.close(weights @ v), weights if self.shown else None


class Shows(Residual):
    """What is given beside is read, if it is anything."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).transpose(1, 2)
        y, weights = self.attend(x)
        found: Tensor = self.head((x + y).mean(1))
        return found if weights is None else found + weights.flatten(1)[:, :5]


@pytest.mark.parametrize("shown", [False, True])
def test_weights_may_be_given_beside_what_is_attended_to(shown: bool) -> None:
    model, x = lively(Shows(lambda: Beside(shown))).eval().requires_grad_(False), signals(4)
    compressor = Compressor(model, x[:1], repair="none")
    assert type(compressor.model.get_submodule("attend")) is SelfAttention
    torch.testing.assert_close(compressor.model(x), model(x))
    genes = Policy({"channels:attend.query": 2, "channels:attend.value": 3})
    built = compressor.build(genes)
    expected = silenced(model, compressor, compressor.kept_channels(genes))(x)
    torch.testing.assert_close(built(x), expected)
    assert compressor.cost(genes)["macs"] == counted_macs(built, x[:1])


OTHERS = [
    *(Mixing, Inside, Scaled, Grown, Gated, Shifted, Twice, MeanAsks, Shouting, Long),
    *(KeysStay, Near, Thinned),
]


@pytest.mark.parametrize("kind", OTHERS)
def test_other_attention_is_left_alone(kind: type[Written]) -> None:
    model, x = network(kind), signals(2)
    compressor = Compressor(model, x[:1], repair="none")
    assert not any(isinstance(part, SelfAttention) for part in compressor.model.modules())
    reasons = {group.name: group.protected for group in compressor.structure.groups}
    assert all(reasons.get(f"attend.{name}", "not a layer") for name in ("query", "qkv"))
    torch.testing.assert_close(compressor.build(Policy({}))(x), model(x))


def test_what_inputs_show_to_be_something_else_is_refused() -> None:
    model = network(ThinnedLate)
    trace(model, signals(1))
    many = torch.randn(1, 3, 2 * 2_001, generator=torch.Generator().manual_seed(0))
    with pytest.raises(TraceError, match=r"but 'attend' differs by .* register a forward hook"):
        trace(model, many)
    model.get_submodule("attend").register_forward_hook(lambda *_: None)
    found, _ = trace(model, many)
    torch.testing.assert_close(found(many), model(many))
