"""Self-attention that networks write out in their own code, found and made of layers.

Such a module divides the outputs of a layer into heads by numbers in its code, so that nothing of
it can be cut. It is found by the shapes of its layers, and proven by what it computes: a copy with
random weights must give, on random inputs, what layers give that are put together in one of the
ways known here. So neither names nor weights decide.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import permutations, product
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.compress.attention import HeadLayers
from automl_compress.compress.kinds import CONVOLUTIONS
from automl_compress.compress.modules import become, own_copy, runs_its_class
from automl_compress.compress.tracing.attention_forms import (
    Beside,
    Form,
    SelfAttention,
    linear,
)

_TOKENS: Final = 16
_MANY_TOKENS: Final = 1025
"""As many as large images have: masks and choices may begin only after some."""
_TOLERANCE: Final = 1e-4
_ORDERS: Final = ("phd", "hpd", "hdp")
"""How outputs of one layer are divided into parts (queries, keys, values), heads and channels."""
_MOST_HEADS: Final = 32
_WIDEST_WINDOW: Final = 8
"""Where a module's numbers are small enough, its examples hold several windows."""


@dataclass(frozen=True)
class _Call:
    """How a module is called: with tokens, the size of their map, turns of them, and masks."""

    names: tuple[str, ...]
    sizes: tuple[str, ...]
    turns: tuple[str, ...]
    masks: tuple[str, ...]


_Given = Tensor | tuple[Tensor, Tensor | None]
"""What a module gives: tokens, alone or with something beside them."""
_Example = tuple[tuple[Any, ...], _Given]
"""What a module is called with, and what it gives."""


@dataclass(frozen=True)
class _Layers:
    """Names of what may be the layers of an attention; see `Form`."""

    inputs: tuple[str, ...]
    output: str
    talks: tuple[str, ...]


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
    if not runs_its_class(module):
        return False
    if any(isinstance(part, HeadLayers | nn.MultiheadAttention) for part in module.modules()):
        return False
    return any(True for _ in _layers(module))


def _layers(module: nn.Module) -> Iterator[_Layers]:
    """What may be the layers of queries, keys and values, and of the output."""
    found = {name: part for name, part in module.named_modules() if type(part) is nn.Linear}
    if not 2 <= len(found) <= 6:
        return
    talks = _talks(found)
    *names, output = (name for name in found if name not in talks)
    if not 1 <= len(names) <= 3:
        return
    width, channels = found[output].in_features, found[names[0]].in_features
    sizes = [found[name].out_features / width for name in names]
    alike = all(found[name].in_features == channels and "." not in name for name in names)
    orders = [talks, talks[::-1]] if talks else [()]
    if alike and sizes in ([3], [1, 2]):
        yield from (_Layers(tuple(names), output, order) for order in orders)
    elif alike and sizes == [1, 1, 1]:
        ways = product(sorted(permutations(names), key=_unlikely), orders)
        yield from (_Layers(inputs, output, order) for inputs, order in ways)


def _talks(found: dict[str, nn.Linear]) -> tuple[str, ...]:
    """Names of two layers that may mix heads, of which there are fewer than other channels."""
    heads = min(part.in_features for part in found.values())
    few = {name: part for name, part in found.items() if part.in_features == heads}
    square = all(part.out_features == heads for part in few.values())
    return tuple(few) if square and len(few) == 2 and len(found) > 3 else ()


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


def _counts(module: nn.Module) -> list[tuple[str, int]]:
    """A module's own positive whole numbers and their names."""
    return [(n, v) for n, v in _numbers(module).items() if isinstance(v, int) and v > 0]


def _proven_form(module: nn.Module) -> Form | None:
    """How a module is put together, if layers can compute the same."""
    generator = torch.Generator().manual_seed(0)
    try:
        call = _call(module)
        if call is None:
            return None
        with torch.no_grad():
            probe = _random_copy(module, generator)
            examples = _examples(probe, call, generator)
            for form in _forms(probe, call, examples[0]) if examples else ():
                layers = SelfAttention(probe, form)
                if all(_same(layers(*given), expected) for given, expected in examples):
                    turned = _with_turns(probe, form, call, examples[0][0], generator)
                    given = examples[0][0]
                    return turned and _with_mask(probe, turned, call, given, generator)
    except Exception:  # code of its own that does not run as attention does
        return None
    return None


def _call(module: nn.Module) -> _Call | None:
    """How a module is called, if with no more than tokens, the size of their map and masks."""
    first, *others = inspect.signature(module.forward).parameters.values()
    needed = [other.name for other in others if other.default is other.empty]
    optional = [other for other in others if other.default is not other.empty]
    turns = [other.name for other in optional if _is_named(other.name, "rope", "rot")]
    masks = [other.name for other in optional if _is_named(other.name, "mask", "causal", "bias")]
    if any(other.default not in (None, False) for other in optional):
        return None
    if len(needed) > 2 or len(turns) > 1 or len(optional) > len(turns + masks):
        return None
    if sum("causal" not in mask for mask in masks) > 1:
        return None
    names = tuple(other.name for other in (first, *others))
    return _Call(names, tuple(needed), tuple(turns), tuple(masks))


def _is_named(name: str, *words: str) -> bool:
    return any(word in name for word in words)


def _examples(probe: nn.Module, call: _Call, generator: torch.Generator) -> list[_Example]:
    """Inputs of the shapes that a module takes, and what it gives."""
    channels = linear(probe, next(_layers(probe)).inputs[0]).in_features
    bias, _ = next(_biases(probe), ("", 0))
    tokens = getattr(probe, bias)().shape[-1] if bias else _TOKENS
    shapes: list[tuple[int, ...]] = [(4, tokens), (2, 2, tokens)]
    shapes += [] if bias else [(1, _MANY_TOKENS)]
    size: tuple[Any, ...] = ()
    if call.sizes:
        sides = _sides(probe)
        shapes, size = [(2, sides[0] * sides[1])], sides if len(call.sizes) == 2 else (sides,)
    inputs = [torch.randn(*shape, channels, generator=generator) * 1.5 for shape in shapes]
    given = [(x, *size) for x in inputs]
    return [(g, expected) for g in given if (expected := _tried(probe, *g)) is not None]


def _sides(module: nn.Module) -> tuple[int, int]:
    """Height and width of a map that strides and windows of a module divide into several."""
    strides = [max(part.stride) for part in module.modules() if isinstance(part, CONVOLUTIONS)]
    own = [n for _, n in _counts(module) if n <= _WIDEST_WINDOW]
    side = max(strides or own or [1])
    return 2 * side + 1, side + 1


def _random_copy(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with weights that make all scores differ."""
    probe = own_copy(module).cpu()
    for parameter in probe.parameters():
        scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return probe


def _forms(module: nn.Module, call: _Call, example: _Example) -> Iterator[Form]:
    """What a module may be, likely ways first."""
    bias, heads = next(_biases(module), ("", 0))
    tokens, *others = _parts(example[1])
    assert tokens is not None
    first = tokens.shape[-2] == 1
    beside: Beside = "" if not others else "none" if others[0] is None else "weights"
    for layers in _layers(module):
        channels = linear(module, layers.inputs[0]).in_features
        width = linear(module, layers.output).in_features
        if layers.talks:
            heads = linear(module, layers.talks[0]).in_features
        for count in [heads] if heads else _head_counts(module, width):
            ways = product(
                (False, True),
                (False, True),
                _maps(module, channels) if call.sizes else [((), 0)],
                _added(module, layers.inputs, width),
                _befores(module, channels),
                _befores(module, width),
                _norms(module, width // count),
                _ORDERS[: 4 - len(layers.inputs)],
                _factors(module, count),
                _scales(module, width // count, width, channels),
            )
            for causal, turned, of_map, added, before, after, norms, order, across, scale in ways:
                yield Form(
                    layers.inputs, layers.output, count, scale, order, turned, causal, before,
                    norms, bias, call.names, len(call.sizes), added, layers.talks, *of_map, first,
                    across, after, beside=beside,
                )  # fmt: skip


def _maps(module: nn.Module, channels: int) -> list[tuple[tuple[str, ...], int]]:
    """Layers that may reduce a map, and sides of windows that it may be divided into."""
    others = tuple(name for name, part in module.named_children() if _reduces(part, channels))
    own = dict.fromkeys(n for _, n in _counts(module) if 1 < n < max(_sides(module)))
    return [*([(others, 0)] if others else []), ((), 0), *(((), side) for side in own)]


def _reduces(part: nn.Module, channels: int) -> bool:
    """Whether a layer keeps the channels of a map, and does something in evaluation mode."""
    idle = isinstance(part, nn.Dropout | nn.Identity | nn.Linear)
    tensors = [*part.parameters()]
    return not idle and all(len(tensor) == channels for tensor in tensors)


def _added(module: nn.Module, inputs: tuple[str, ...], width: int) -> list[tuple[str, ...]]:
    """Vectors that may be added to queries, keys and values of one layer."""
    if len(inputs) > 1:
        return [()]
    own = [
        name
        for name, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and tensor.shape == (width,)
    ]
    if len(own) == 3:
        return [*sorted(permutations(own), key=_unlikely), ()]
    return [*((one, "", other) for one, other in permutations(own, 2)), ()]


def _factors(module: nn.Module, heads: int) -> list[str]:
    """Factors of attention across channels; where there are some, they are used."""
    own = module.named_parameters(recurse=False)
    return [name for name, tensor in own if tensor.shape == (heads, 1, 1)] or [""]


def _head_counts(module: nn.Module, width: int) -> list[int]:
    """Numbers of heads that a module's own numbers suggest, else all that divide the width."""
    likely = sorted(_counts(module), key=lambda count: "heads" not in count[0])
    own = [n for _, n in likely if width % n == 0]
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
    """Norms of so many channels of tokens, none first."""
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


def _with_turns(
    probe: nn.Module, form: Form, call: _Call, given: tuple[Any, ...], generator: torch.Generator
) -> Form | None:
    """The form that turns queries and keys as the module does, if it is given how."""
    if not call.turns:
        return form
    tokens, channels = given[0].shape[-2], linear(probe, form.output).in_features // form.heads
    for count in [tokens, *(tokens - n for _, n in _counts(probe) if n < tokens)]:
        shapes = (count, 2 * channels), (form.heads, count, 2 * channels)
        turns = [{call.turns[0]: torch.randn(shape, generator=generator)} for shape in shapes]
        expected = [_tried(probe, *given, **turn) for turn in turns]
        for kind in ("pairs", "halves") if expected[0] is not None else ():
            turned = replace(form, turns=(call.turns[0], kind))
            layers = SelfAttention(probe, turned)
            if all(
                there is None or _same(layers(*given, **turn), there)
                for turn, there in zip(turns, expected, strict=True)
            ):
                return turned
    return None


def _with_mask(
    probe: nn.Module, form: Form, call: _Call, given: tuple[Any, ...], generator: torch.Generator
) -> Form | None:
    """The form that understands the module's other arguments as the module does."""
    tokens = given[0].shape[-2]
    masks = torch.randn(2, tokens, tokens, generator=generator) * 2
    for name in call.masks:
        if "causal" in name:
            values: list[Any] = [True]
        elif _tried(probe, *given, **{name: masks[0]}) is not None:
            form, values = replace(form, mask="added"), [masks[0]]
            if "mask" in name:
                values.append(masks[0] > -1)
        else:
            form, values = replace(form, mask="windows"), [masks]
        layers = SelfAttention(probe, form)
        for value in values:
            expected = _tried(probe, *given, **{name: value})
            if expected is None or not _same(layers(*given, **{name: value}), expected):
                return None
    return form


def _tried(module: nn.Module, *given: Any, **named: Any) -> _Given | None:
    """What a module gives, or None where it takes no such input or gives something else."""
    try:
        found = module(given[0].clone(), *given[1:], **named)
    except Exception:
        return None
    if isinstance(found, Tensor):
        return found
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[0], Tensor):
        return None
    return found if found[1] is None or isinstance(found[1], Tensor) else None


def _parts(given: _Given) -> tuple[Tensor | None, ...]:
    return given if isinstance(given, tuple) else (given,)


def _same(one: _Given, other: _Given) -> bool:
    """Whether two results differ by rounding alone."""
    ones, others = _parts(one), _parts(other)
    return len(ones) == len(others) and all(map(_alike, ones, others))


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    if one.shape != other.shape:
        return False
    return float((one - other).abs().max()) <= _TOLERANCE * float(other.abs().max())
