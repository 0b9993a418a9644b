"""The forms in which networks write self-attention out, each as a module made of layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from automl_compress.compress.attention import HeadLayers, divided, in_heads, joined, rows, unread
from automl_compress.compress.kinds import LAST_NORMS
from automl_compress.compress.tracing.window_attention import in_windows, of_windows

Mask = Literal["none", "added", "windows"]
Beside = Literal["", "none", "weights"]


@dataclass(frozen=True)
class Form:
    """How attention is put together from a module's parts.

    Args:
        inputs: the layer of queries, keys and values; that of queries, and that of keys and
            values; or the three.
        output: the layer that reads what was attended to.
        heads: how many heads there are.
        scale: factor of the products of queries and keys.
        order: how outputs of one layer are divided into parts (queries, keys, values), heads and
            channels of a head: their first letters.
        turned: whether heads come after channels where the output layer reads them.
        causal: whether tokens read none that come after them.
        before: a norm of what is attended to, or nothing.
        norms: norms of the queries and of the keys of a head, or none.
        bias: a method that gives what is added to the scores, or nothing.
        arguments: names of what the module is called with, tokens first.
        sizes: how many arguments after the tokens tell the size of the map that they are: its
            height and width, or one pair.
        added: vectors that are added to the outputs of the first layer, end to end; an empty name
            stands for zeros.
        talks: layers across heads before and after the softmax, or none.
        reduced: layers that reduce the map which keys and values read, or none.
        window: side of the windows of the map that are attended to alone; 0 for the whole.
        first: whether only the first token asks.
        across: factors of the heads where channels of queries attend to those of keys, each of
            length 1 over the tokens; or nothing.
        after: a norm of what the output layer reads, or nothing.
        turns: the argument of sines and cosines by which the last tokens' queries and keys are
            turned, and whether in "pairs" of channels or by "halves"; or nothing.
        mask: how a mask is understood: not at all, added to the scores, or as one for each of
            several windows, into which the batch is divided.
        beside: what is given beside the tokens: `None`, or the weights of all heads; or nothing.
    """

    inputs: tuple[str, ...]
    output: str
    heads: int
    scale: float
    order: str
    turned: bool
    causal: bool
    before: str
    norms: tuple[str, ...]
    bias: str
    arguments: tuple[str, ...]
    sizes: int = 0
    added: tuple[str, ...] = ()
    talks: tuple[str, ...] = ()
    reduced: tuple[str, ...] = ()
    window: int = 0
    first: bool = False
    across: str = ""
    after: str = ""
    turns: tuple[str, str] | tuple[()] = ()
    mask: Mask = "none"
    beside: Beside = ""


class SelfAttention(HeadLayers):
    """What a written-out attention computes in evaluation mode, from layers.

    Args:
        original: all parts but the layers of queries, keys and values are shared with it.
        form: how it is put together.
    """

    def __init__(self, original: nn.Module, form: Form) -> None:
        super().__init__(_input_layers(original, form), form.heads, form.scale)
        self._form = form
        self._bias = getattr(type(original), form.bias) if form.bias else None
        for name, value in vars(original).items():
            if not name.startswith("_") and name not in self._modules:
                vars(self).setdefault(name, value)
        used = {*form.inputs, *form.added}
        for kind in ("_modules", "_parameters", "_buffers"):
            parts = getattr(original, kind).items()
            getattr(self, kind).update({name: part for name, part in parts if name not in used})
        self._non_persistent_buffers_set.update(original._non_persistent_buffers_set - used)

    def forward(self, *given: Any, **named: Any) -> Any:
        """Map (..., tokens, channels) to the same; others may follow, as in the original."""
        arguments = {**dict(zip(self._form.arguments, given, strict=False)), **named}
        x, *numbers = (arguments.pop(n) for n in self._form.arguments[: 1 + self._form.sizes])
        size = numbers[0] if self._form.sizes == 1 else numbers
        turns = arguments.pop(self._form.turns[0], None) if self._form.turns else None
        tokens = x if x.dim() == 3 else x.reshape(-1, *x.shape[-2:])
        if self._form.before:
            tokens = self.get_submodule(self._form.before)(tokens)
        weights = None
        if self._form.window:
            mixed = self._in_windows(tokens, size, arguments.values())
        else:
            sources = self._sources(tokens, size)
            mixed, weights = self._attended(tokens, sources, arguments.values(), turns)
        if self._form.after:
            mixed = self.get_submodule(self._form.after)(mixed)
        y = rows(self.get_submodule(self._form.output.partition(".")[0]), mixed)
        y = y if x.dim() == 3 else y.reshape(*x.shape[:-2], *y.shape[-2:])
        return (y, weights if self._form.beside == "weights" else None) if self._form.beside else y

    def _in_windows(self, tokens: Tensor, size: Any, masks: Iterable[Any]) -> Tensor:
        """As `_attended`, for every window alone; zeros fill the last ones."""
        (height, width), side = size, self._form.window
        x = tokens.reshape(-1, height, width, tokens.shape[-1])
        x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
        windows = in_windows(x, side, side)
        y = of_windows(self._attended(windows, windows, masks)[0], side, x)
        return y[:, :height, :width].flatten(1, 2)

    def _sources(self, tokens: Tensor, size: Any) -> Tensor:
        """What keys and values read: (n, sources, channels)."""
        if not self._form.reduced:
            return tokens
        height, width = size
        x = tokens.transpose(1, 2).reshape(-1, tokens.shape[-1], height, width)
        for part in map(self.get_submodule, self._form.reduced):
            last = isinstance(part, LAST_NORMS)
            x = part(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if last else part(x)
        return x.flatten(2).transpose(1, 2)

    def _attended(
        self, tokens: Tensor, sources: Tensor, masks: Iterable[Any], turns: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What is attended to in (n, tokens, channels).

        Returns:
            (n, targets, channels of all heads), and (n, heads, targets, sources) by which weights
            unless they are across channels.
        """
        targets = tokens[:, :1] if self._form.first else tokens
        query = in_heads(self.query, targets, self._form.heads)
        key, value = (in_heads(part, sources, self._form.heads) for part in (self.key, self.value))
        if self._form.norms:
            on_query, on_key = map(self.get_submodule, self._form.norms)
            query, key = on_query(query), on_key(key)
        if turns is not None:
            query, key = self._turned(query, turns), self._turned(key, turns)
        if self._form.across:
            return joined(self._across(query, key, value), self._form.turned), None
        scores = self._talked(self.scores(query, key), 0)
        if self._bias is not None:
            scores = scores + self._bias(self)
        for mask in (self._form.causal, *masks):
            scores = self._masked(scores, mask)
        weights = self._talked(scores.softmax(-1), 1)
        return joined(self.mix(weights, value), self._form.turned), weights

    def _across(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Sums of the channels of values; all are (n, heads, tokens, channels of a head)."""
        factors = self.get_parameter(self._form.across)
        query, key = F.normalize(query, dim=2), F.normalize(key, dim=2)
        weights = (query.transpose(2, 3) @ key * factors).softmax(-1)
        return value @ weights.transpose(2, 3)

    def _turned(self, x: Tensor, turns: Tensor) -> Tensor:
        """Turn the last tokens of x (n, heads, tokens, channels of a head).

        Args:
            x: queries or keys.
            turns: (..., turned tokens, 2 * channels of a head) sines, then cosines.
        """
        sines, cosines = turns.chunk(2, -1)
        unturned = x.shape[2] - turns.shape[-2]
        first, x = x[:, :, :unturned], x[:, :, unturned:]
        if self._form.turns[1:] == ("pairs",):
            crossed = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        else:
            one, other = x.chunk(2, -1)
            crossed = torch.cat([-other, one], -1)
        return torch.cat([first, x * cosines + crossed * sines], 2)

    def _talked(self, scores: Tensor, place: int) -> Tensor:
        """Scores (n, heads, targets, sources) of which each head gets a mixture of all."""
        if not self._form.talks:
            return scores
        last = scores.permute(0, 2, 3, 1)
        talk = self.get_submodule(self._form.talks[place])
        return rows(talk, last.flatten(1, 2)).reshape(last.shape).permute(0, 3, 1, 2)

    def _masked(self, scores: Tensor, mask: Any) -> Tensor:
        """Scores (n, heads, targets, sources) with what an argument adds to them."""
        if mask is None or mask is False:
            return scores
        if mask is True:
            later = scores.new_ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            return scores + unread(later, scores)
        if self._form.mask == "windows":
            windows = scores.view(-1, mask.shape[0], *scores.shape[1:])
            found: Tensor = (windows + mask[:, None]).view(scores.shape)
            return found
        added: Tensor = unread(~mask, scores) if mask.dtype == torch.bool else mask
        return scores + added


def across_heads(module: nn.Module) -> list[nn.Linear]:
    """The layers of a module whose channels are heads, all of which stay."""
    if not isinstance(module, SelfAttention):
        return []
    return [linear(module, name) for name in module._form.talks]


def linear(module: nn.Module, name: str) -> nn.Linear:
    """A part of a module that is a linear layer."""
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _input_layers(module: nn.Module, form: Form) -> list[nn.Linear]:
    """Layers of queries, keys and values, whose outputs are divided into heads first."""
    layers: list[nn.Linear] = []
    width = linear(module, form.output).in_features
    for name in form.inputs:
        layer = linear(module, name)
        parts = layer.out_features // width
        sizes = {"p": parts, "h": form.heads, "d": width // form.heads}
        places = torch.arange(layer.out_features).reshape([sizes[axis] for axis in form.order])
        places = places.permute([form.order.index(axis) for axis in "phd"]).flatten()
        bias = _bias(module, layer, form.added)
        bias = None if bias is None else bias[places]
        layers += divided(layer.weight[places], bias, parts)
    return layers


def _bias(module: nn.Module, layer: nn.Linear, added: tuple[str, ...]) -> Tensor | None:
    """(outputs,) what is added to the outputs of a layer, or nothing."""
    if not added:
        return layer.bias
    zeros = layer.weight.new_zeros(layer.out_features // len(added))
    vectors = torch.cat([getattr(module, name) if name else zeros for name in added])
    return vectors if layer.bias is None else vectors + layer.bias
