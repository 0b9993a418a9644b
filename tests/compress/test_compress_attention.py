"""Attention made of layers: it computes the same, and every head can be cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from automl_compress.compress import Compressor
from automl_compress.compress.attention import MultiheadAttention, can_be_layers
from automl_compress.compress.tracing.working_copy import working_copy
from automl_compress.space import Policy

WIDTH, HEADS = 12, 3
CAUSAL = torch.ones(4, 4, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False, False, False, True], [False, False, False, False]])


def attention(**kwargs: Any) -> nn.MultiheadAttention:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.MultiheadAttention(WIDTH, HEADS, **kwargs).eval().requires_grad_(False)
        if module.in_proj_bias is not None:
            nn.init.normal_(module.in_proj_bias)
            nn.init.normal_(module.out_proj.bias)
    return module


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": CAUSAL},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
        {"attn_mask": CAUSAL.float() * -3},
        {"attn_mask": torch.randn(6, 4, 4, generator=torch.Generator().manual_seed(1))},
        {"key_padding_mask": PADDING},
        {"key_padding_mask": PADDING, "attn_mask": CAUSAL},
    ],
)
def test_layers_compute_what_attention_does(
    batch_first: bool, bias: bool, asked: dict[str, Any]
) -> None:
    original = attention(batch_first=batch_first, bias=bias)
    shape = (2, 4) if batch_first else (4, 2)
    inputs = tokens(*shape), tokens(*shape, seed=1), tokens(*shape, seed=2)
    expected = original(*inputs, **asked)
    actual = MultiheadAttention(original)(*inputs, **asked)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_inputs_without_a_batch() -> None:
    original = attention()
    x = tokens(4)
    expected = original(x, x, x, attn_mask=CAUSAL)
    actual = MultiheadAttention(original)(x, x, x, attn_mask=CAUSAL)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    "kwargs", [{"kdim": 5}, {"add_bias_kv": True}, {"add_zero_attn": True}], ids=str
)
def test_other_attention_is_left_alone(kwargs: dict[str, Any]) -> None:
    assert not can_be_layers(attention(**kwargs))
    assert can_be_layers(attention())


@pytest.mark.parametrize("way", ["hook", "hook before", "forward"])
def test_attention_that_does_more_than_its_class_is_left_alone(way: str) -> None:
    model = reader(apart=False)
    attend = model.attend
    if way == "hook":
        attend.register_forward_hook(lambda _, __, output: (output[0] * 8, output[1]))
    elif way == "hook before":
        attend.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 8, *inputs[1:]))
    else:
        attend.forward = lambda q, k, v: (8 * q + v.mean(1, keepdim=True), None)  # type: ignore[assignment]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Compressor(model, x[:1]).build(Policy({}))(x), model(x))


def test_weights_in_one_can_still_be_read() -> None:
    original = attention()
    torch.testing.assert_close(MultiheadAttention(original).in_proj_weight, original.in_proj_weight)


class Reader(nn.Module):
    """Patches read by learnt queries, through a width that the code reshapes by."""

    def __init__(self, apart: bool) -> None:
        super().__init__()
        self.width = WIDTH
        self.patch = nn.Conv2d(3, WIDTH, 4, 4)
        queries = nn.Parameter(torch.randn(1, 5, WIDTH))
        if apart:
            self.tables = nn.ParameterList([queries])
        else:
            self.queries = queries
        self.attend = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        x = x.reshape(len(x), self.width, -1).transpose(1, 2)
        queries = self.tables[0] if hasattr(self, "tables") else self.queries
        queries = queries.expand(len(x), -1, -1)
        y, _ = self.attend(queries, x, x)
        return self.head((queries + y).mean(1))


def reader(apart: bool) -> Reader:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Reader(apart).eval()


def test_a_width_of_two_groups_follows_none() -> None:
    """Cut alike, both would seem right; cut apart, the code's number fits one of them at most."""
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(reader(apart=False), x, repair="none")
    reasons = {g.name: g.protected for g in compressor.structure.groups}
    assert "does not run" in reasons["patch"]
    assert not reasons["attend.out_proj"]
    assert compressor.build(Policy({"channels:attend.out_proj": 5}))(x).shape == (2, 7)


def test_widths_that_code_reshapes_by_follow() -> None:
    model = reader(apart=True)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(model, x, repair="none")
    cuttable = {g.name: g.channels for g in compressor.structure.groups if not g.protected}
    assert cuttable == {"patch": 12, "attend.query": 4, "attend.value": 4, "attend.out_proj": 12}
    built = compressor.build(Policy({"channels:patch": 8, "channels:attend.query": 3}))
    assert vars(built)["width"] == 8
    assert built.get_submodule("attend.query").out_features == 3 * HEADS
    assert built(x).shape == (2, 7)
    assert model.width == WIDTH


def test_a_head_without_some_channels() -> None:
    """The same as zero weights for the channels that go, for the scale stays."""
    original = attention(batch_first=True)
    network = _Attend(original).eval()
    x = tokens(1, 4)
    compressor = Compressor(network, x, repair="none")
    genes = {"channels:attend.query": 2, "channels:attend.value": 3}
    kept = compressor.kept_channels(Policy(genes))
    whole = working_copy(network)
    with torch.no_grad():
        for layer, group in (("query", "query"), ("key", "query"), ("value", "value")):
            gone = np.setdiff1d(np.arange(WIDTH // HEADS), kept[f"attend.{group}"])
            part = whole.get_submodule(f"attend.{layer}")
            part.get_parameter("weight").view(HEADS, -1, WIDTH)[:, gone] = 0
            part.get_parameter("bias").view(HEADS, -1)[:, gone] = 0
        expected = whole(x)
        torch.testing.assert_close(compressor.build(Policy(genes))(x), expected)


class _Attend(nn.Module):
    def __init__(self, attend: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attend(x, x, x, need_weights=False)[0]
        return output


class Chance(nn.Module):
    """A number of patches that is by chance the width of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = 4
        self.first = nn.Conv1d(3, 4, 2, 2)
        self.second = nn.Conv1d(3, 4, 2, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x).unflatten(2, (self.patches, -1)) for layer in (self.first, self.second)]
        return self.head(torch.cat(parts, 1).mean((2, 3)))


def test_a_number_that_is_a_width_by_chance_breaks_no_network() -> None:
    """Cut alike, both layers would change it: one of them stays whole, and the report says why."""
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(Chance().eval(), x, repair="none")
    reasons = {group.name: group.protected for group in compressor.structure.groups}
    cuttable = [name for name, reason in reasons.items() if not reason]
    assert len(cuttable) == 1
    assert any("with other groups" in reason for reason in reasons.values())
    for count in range(1, 4):
        built = compressor.build(Policy({f"channels:{cuttable[0]}": count}))
        assert built(x).shape == (2, 5)
