"""Self-attention that networks write out in their own code, found and made of layers.

Such a module divides the outputs of a layer into heads by numbers in its code, so that nothing of
it can be cut. It is found by the shapes of its layers, and proven by what it computes: a copy with
random weights must give, on random inputs, what layers give that are put together in one of the
ways known here. So neither names nor weights decide.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from automl_compress.compress.attention import HeadLayers, divided, in_heads, joined, rows, unread
from automl_compress.compress.modules import become

_TOKENS: Final = 16
_TOLERANCE: Final = 1e-4
_ORDERS: Final = ("phd", "hpd", "hdp")
"""How outputs of one layer are divided into parts (queries, keys, values), heads and channels."""
_MOST_HEADS: Final = 32

Mask = Literal["none", "added", "windows"]


@dataclass(frozen=True)
class Form:
    """How attention is put together from a module's parts.

    Args:
        inputs: the layer of queries, keys and values; that of queries, and that of keys and
            values; or the three.
        output: the layer that reads what was attended to.
        heads: how many heads there are.
        scale: factor of the products of queries and keys.
        order: one of `_ORDERS`.
        turned: whether heads come after channels where the output layer reads them.
        causal: whether tokens read none that come after them.
        before: a norm of what is attended to, or nothing.
        norms: norms of the queries and of the keys of a head, or none.
        bias: a method that gives what is added to the scores, or nothing.
        arguments: names of what the module is called with, tokens first.
        mask: how a mask is understood: not at all, added to the scores, or as one for each of
            several windows, into which the batch is divided.
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
    mask: Mask = "none"


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
        self._modules.update({n: m for n, m in original._modules.items() if n not in form.inputs})
        self._parameters.update(original._parameters)
        self._buffers.update(original._buffers)
        self._non_persistent_buffers_set.update(original._non_persistent_buffers_set)

    def forward(self, *given: Any, **named: Any) -> Tensor:
        """Map (..., tokens, channels) to the same; a mask may follow, as in the original."""
        arguments = {**dict(zip(self._form.arguments, given, strict=False)), **named}
        x: Tensor = arguments.pop(self._form.arguments[0])
        tokens = x if x.dim() == 3 else x.reshape(-1, *x.shape[-2:])
        if self._form.before:
            tokens = self.get_submodule(self._form.before)(tokens)
        layers = (self.query, self.key, self.value)
        query, key, value = (in_heads(layer, tokens, self._form.heads) for layer in layers)
        if self._form.norms:
            on_query, on_key = map(self.get_submodule, self._form.norms)
            query, key = on_query(query), on_key(key)
        scores = self.scores(query, key)
        if self._bias is not None:
            scores = scores + self._bias(self)
        for mask in (self._form.causal, *arguments.values()):
            scores = self._masked(scores, mask)
        mixed = joined(self.mix(scores.softmax(-1), value), self._form.turned)
        y = rows(self.get_submodule(self._form.output.partition(".")[0]), mixed)
        return y if x.dim() == 3 else y.reshape(*x.shape[:-1], y.shape[-1])

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


def replace_written_attention(model: nn.Module) -> None:
    """Put `SelfAttention` in place of every module that proves to be one, inner modules first.

    Args:
        model: changed in place; its weights decide nothing.
    """
    known: dict[Any, Form | None] = {}
    for module in reversed(list(model.modules())):
        if not _may_be_attention(module):
            continue
        key = _signature(module)
        if key not in known:
            known[key] = _proven_form(module)
        form = known[key]
        if form is not None:
            become(module, SelfAttention(module, form).eval())


def _may_be_attention(module: nn.Module) -> bool:
    """Whether the layers in a module have shapes of attention."""
    if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
        return False
    if any(isinstance(part, HeadLayers | nn.MultiheadAttention) for part in module.modules()):
        return False
    return any(True for _ in _layers(module))


def _layers(module: nn.Module) -> Iterator[tuple[tuple[str, ...], str]]:
    """Names of what may be the layers of queries, keys and values, and of the output."""
    found = {name: part for name, part in module.named_modules() if type(part) is nn.Linear}
    if not 2 <= len(found) <= 4:
        return
    *names, output = found
    width, channels = found[output].in_features, found[names[0]].in_features
    sizes = [found[name].out_features / width for name in names]
    alike = all(found[name].in_features == channels and "." not in name for name in names)
    if alike and sizes in ([3], [1, 2]):
        yield tuple(names), output
    elif alike and sizes == [1, 1, 1]:
        yield from ((order, output) for order in sorted(permutations(names), key=_unlikely))


def _layer(module: nn.Module, name: str) -> nn.Linear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer


def _unlikely(names: tuple[str, ...]) -> int:
    """How many of three names do not say which of queries, keys and values they are of."""
    return sum(letter not in name for letter, name in zip("qkv", names, strict=True))


def _signature(module: nn.Module) -> Any:
    """What modules have in common that are put together alike; else each has its own."""
    parts: list[Any] = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    parts += [(name, _content(buffer)) for name, buffer in module.named_buffers()]
    for name, part in module.named_modules():
        plain = {n: v for n, v in vars(part).items() if not n.startswith("_")}
        parts.append((name, type(part), repr(sorted(plain.items()))))
    return tuple(parts)


def _content(tensor: Tensor) -> bytes:
    content: bytes = tensor.cpu().flatten().view(torch.uint8).numpy().tobytes()
    return content


def _numbers(module: nn.Module) -> dict[str, int | float]:
    return {n: v for n, v in vars(module).items() if type(v) in (int, float)}


def _proven_form(module: nn.Module) -> Form | None:
    """How a module is put together, if layers can compute the same."""
    generator = torch.Generator().manual_seed(0)
    try:
        arguments = _arguments(module)
        if not arguments:
            return None
        with torch.no_grad():
            probe = _random_copy(module, generator)
            examples = _examples(probe, generator)
            for form in _forms(probe, arguments) if examples else ():
                layers = SelfAttention(probe, form)
                if all(_same(layers(x), expected) for x, expected in examples):
                    return _with_mask(probe, form, examples[0][0], generator)
    except Exception:  # code of its own that does not run as attention does
        return None
    return None


def _examples(probe: nn.Module, generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    """Inputs of the shapes that a module takes, and what it gives."""
    channels = _layer(probe, next(_layers(probe))[0][0]).in_features
    bias, _ = next(_biases(probe), ("", 0))
    tokens = getattr(probe, bias)().shape[-1] if bias else _TOKENS
    inputs = (
        torch.randn(*batch, tokens, channels, generator=generator) * 1.5 for batch in ((4,), (2, 2))
    )
    return [(x, expected) for x in inputs if (expected := _tried(probe, x)) is not None]


def _arguments(module: nn.Module) -> tuple[str, ...]:
    """Names of what a module is called with; none where it is more than tokens and a mask."""
    first, *others = inspect.signature(module.forward).parameters.values()
    for other in others:
        optional = other.default in (None, False)
        if not optional or not ("mask" in other.name or "causal" in other.name):
            return ()
    if sum("mask" in other.name for other in others) > 1:
        return ()
    return first.name, *(other.name for other in others)


def _random_copy(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with weights that make all scores differ."""
    probe = copy.deepcopy(module).cpu()
    for parameter in probe.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return probe


def _forms(module: nn.Module, arguments: tuple[str, ...]) -> Iterator[Form]:
    """What a module may be, likely ways first."""
    bias, heads = next(_biases(module), ("", 0))
    for inputs, output in _layers(module):
        channels = _layer(module, inputs[0]).in_features
        width = _layer(module, output).in_features
        for count in [heads] if heads else _head_counts(module, width):
            ways = product(
                (False, True),
                (False, True),
                _befores(module, channels),
                _norms(module, width // count),
                _ORDERS[: 4 - len(inputs)],
                _scales(module, width // count, width, channels),
            )
            for causal, turned, before, norms, order, scale in ways:
                yield Form(
                    inputs, output, count, scale, order, turned, causal, before, norms, bias,
                    arguments,
                )  # fmt: skip


def _head_counts(module: nn.Module, width: int) -> list[int]:
    """Numbers of heads that a module's own numbers suggest, else all that divide the width."""
    own = [n for n in _numbers(module).values() if isinstance(n, int) and n > 0]
    own = [n for n in own if width % n == 0]
    return [*dict.fromkeys((*own, *(width // n for n in own)))] or [
        n for n in range(1, _MOST_HEADS + 1) if width % n == 0
    ]


def _scales(module: nn.Module, *widths: int) -> list[float]:
    """Factors of products: by widths, or those a module keeps."""
    by_width = [width**-0.5 for width in widths]
    own = [number for number in _numbers(module).values() if isinstance(number, float)]
    return [*dict.fromkeys((by_width[0], *own, *by_width[1:], 1.0))]


def _biases(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Methods that give (1, heads, tokens, tokens) or (heads, ...) to add to scores."""
    for name, method in inspect.getmembers(type(module), inspect.isfunction):
        if "bias" not in name or len(inspect.signature(method).parameters) != 1:
            continue
        found = method(module)
        if (
            isinstance(found, Tensor)
            and found.dim() in (3, 4)
            and found.shape[-1] == found.shape[-2]
        ):
            yield name, found.shape[-3]


def _befores(module: nn.Module, channels: int) -> list[str]:
    """Norms of the tokens themselves, none first."""
    return ["", *_norms_of_width(module, channels)]


def _norms(module: nn.Module, width: int) -> list[tuple[str, ...]]:
    """Norms of the queries and keys of a head; where there are two, they are used."""
    found = _norms_of_width(module, width)
    return [*permutations(found)] if len(found) == 2 else [()]


def _norms_of_width(module: nn.Module, width: int) -> list[str]:
    return [
        name
        for name, part in module.named_children()
        if isinstance(part, nn.LayerNorm | nn.RMSNorm) and tuple(part.normalized_shape) == (width,)
    ]


def _with_mask(probe: nn.Module, form: Form, x: Tensor, generator: torch.Generator) -> Form | None:
    """The form that understands the module's other arguments as the module does."""
    tokens = x.shape[-2]
    given = torch.randn(2, tokens, tokens, generator=generator) * 2
    for name in form.arguments[1:]:
        if "causal" in name:
            values: list[Any] = [True]
        elif _tried(probe, x, **{name: given[0]}) is not None:
            form, values = replace(form, mask="added"), [given[0], given[0] > -1]
        else:
            form, values = replace(form, mask="windows"), [given]
        layers = SelfAttention(probe, form)
        for value in values:
            expected = _tried(probe, x, **{name: value})
            if expected is None or not _same(layers(x, **{name: value}), expected):
                return None
    return form


def _tried(module: nn.Module, x: Tensor, **named: Any) -> Tensor | None:
    """What a module gives, or None where it takes no such input."""
    try:
        found = module(x.clone(), **named)
    except Exception:
        return None
    return found if isinstance(found, Tensor) else None


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two results differ by rounding alone."""
    if one.shape != other.shape:
        return False
    return float((one - other).abs().max()) <= _TOLERANCE * float(other.abs().max())


def _input_layers(module: nn.Module, form: Form) -> list[nn.Linear]:
    """Layers of queries, keys and values, whose outputs are divided into heads first."""
    layers: list[nn.Linear] = []
    width = _layer(module, form.output).in_features
    for name in form.inputs:
        layer = _layer(module, name)
        parts = layer.out_features // width
        sizes = {"p": parts, "h": form.heads, "d": width // form.heads}
        places = torch.arange(layer.out_features).reshape([sizes[axis] for axis in form.order])
        places = places.permute([form.order.index(axis) for axis in "phd"]).flatten()
        bias = None if layer.bias is None else layer.bias[places]
        layers += divided(layer.weight[places], bias, parts)
    return layers
