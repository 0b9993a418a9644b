"""Layouts in few bytes: what the original network tells is not said again.

Whoever reads a packed file has the original network, so names, kernel sizes and types need not
stand in it. What is left are numbers: of every axis its size, where it is not what the last axis
of the same original size became; bits; and of the policy which layers and groups it names, whose
values the network itself shows. They stand in columns, one kind after the other, and deflate
makes little of them: 50 to 300 bytes, where names alone would take up to 1.6 kB.

Whatever does not fit this form (other strides, say) is seen when the numbers are read back at
once, and the whole layout is written instead.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from typing import Any, Final

from automl_compress.compress.quantize import SCALE
from automl_compress.deploy.layout import QUANTIZER, Layout, StoredTensor, input_grid, network_name
from automl_compress.space import Policy, Value

_WHOLE: Final = 0
_RELATIVE: Final = 1
_COLUMNS: Final = (
    *("presence", "sizes", "bits", "inputs", "kernels"),
    *("channels", "weight_bits", "activation_bits", "kernel_sparsity"),
)
_GRIDS: Final = 16
"""A rounded input's bits, and this times its zero point, are one number."""
_LONGEST: Final = 2**24
"""Bytes of a layout before it is deflated, at most: those of 100,000 tensors and more."""
_AS_USUAL: Final = 0
_ABSENT: Final = 1
_WITH_BIAS: Final = 2
"""Kinds of presence: a folded BatchNorm is absent, and leaves its layer a bias."""
_PHRASES: Final = (
    b'"tensors":{"sources":{"dtype":"int16","shape":[],"bare":{"sparsities":[0.25,0.5,0.75],'
    b'"genes":{"channels:layer"maps":{"layer2.0.shortcut":[]},"policy":true}'
    b'{"architecture":"resnet","arguments":{"num_classes":10},"policy":true}'
)
"""What deflate may point back to. It belongs to the format: readers need the same."""

Columns = dict[str, list[int]]
Buffer = bytes | memoryview


def written(layout: Layout, original: Layout | None) -> bytes:
    """A layout as bytes.

    Args:
        layout: in the order of `in_order` where there is an original.
        original: the layout of the original network; without it, everything is written out.
    """
    relative = None if original is None else _relative(layout, original)
    return _deflated(relative or bytes([_WHOLE]) + _text(layout.to_dict()))


def _relative(layout: Layout, original: Layout) -> bytes | None:
    """The columns and words of a layout; None where they do not tell it."""
    try:
        columns, words = _columns(layout, original), _words(layout, original)
        told = _told(columns, words, original)
    except (ValueError, KeyError, IndexError):  # it is no form of this original
        return None
    if told != layout or list(told.flat()) != list(layout.flat()):
        return None
    numbers = b"".join(_numbers(columns[name]) for name in _COLUMNS)
    return bytes([_RELATIVE]) + _check(original).to_bytes(2, "little") + numbers + _text(words)


class Written:
    """A layout's bytes, read as far as that goes without the original network.

    Args:
        content: what `written` gave.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, IndexError, zlib.error: it is something
            else.
    """

    def __init__(self, content: Buffer) -> None:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS, zdict=_PHRASES)
        data = unpacker.decompress(content, _LONGEST)
        if not unpacker.eof:
            raise ValueError(f"a layout ends before its {_LONGEST + 1:,}th byte, but this does not")
        self._relative = data[0] == _RELATIVE
        self._columns: Columns = {}
        self._check = int.from_bytes(data[1:3], "little")
        place = 3 if self._relative else 1
        for name in _COLUMNS if self._relative else ():
            self._columns[name], place = _read_numbers(data, place)
        self._words: dict[str, Any] = json.loads(data[place:])
        self.architecture = network_name(self._words)
        self.arguments: dict[str, Any] = dict(self._words.get("arguments", {}))

    @property
    def relative(self) -> bool:
        """Whether the original network is needed."""
        return self._relative

    def fits(self, original: Layout) -> bool:
        """Whether a network is the one the layout was written for."""
        return not self._relative or self._check == _check(original)

    def layout(self, original: Layout | None) -> Layout:
        """The layout.

        Args:
            original: the layout of the original network, where it is `relative`.
        """
        if not self._relative:
            return Layout.from_dict(self._words)
        assert original is not None
        return _told(self._columns, self._words, original)


def in_order(layout: Layout, original: Layout) -> Layout:
    """The same layout, modules and tensors in the original network's order, others after them."""
    ranks = {name: rank for rank, name in enumerate(original.tensors)}

    def rank(name: str) -> tuple[int, str]:
        return ranks.get(name.removesuffix(f".{QUANTIZER}"), len(ranks)), name

    tensors = {}
    for name in sorted(layout.tensors, key=rank):
        own = list(original.tensors.get(name, ()))
        held = layout.tensors[name]
        lasts = sorted(held, key=lambda last: (own.index(last) if last in own else len(own), last))
        tensors[name] = {last: held[last] for last in lasts}
    return Layout(**{**vars(layout), "tensors": tensors})


def _check(original: Layout) -> int:
    """Two bytes that tell one original network from another."""
    text = json.dumps(original.to_dict().get("tensors", {}), separators=(",", ":"))
    return zlib.crc32(text.encode()) & 0xFFFF


class _Sizes:
    """Guesses sizes of axes that are cut: as the last axis of the same original size."""

    def __init__(self) -> None:
        self._latest: dict[int, int] = {}

    def guess(self, axis: int, original: int) -> int:
        return self._latest.get(original, original) if axis < 2 else original

    def learn(self, axis: int, original: int, size: int) -> None:
        if axis < 2:
            self._latest[original] = size


def _axes(stored: StoredTensor) -> list[int]:
    """Inputs before outputs: they are what the layer before has just told."""
    return [axis for axis in (1, 0, *range(2, len(stored.shape))) if axis < len(stored.shape)]


def _layers(original: Layout) -> list[str]:
    """Modules that may have bits."""
    return [n for n, t in original.tensors.items() if "weight" in t and len(t["weight"].shape) > 1]


def _columns(layout: Layout, original: Layout) -> Columns:
    sizes = _Sizes()
    column: Columns = {name: [] for name in _COLUMNS}
    for name, tensors in original.tensors.items():
        held = layout.tensors.get(name)
        column["presence"].append(_presence(held, tensors))
        for last, before in tensors.items() if held else ():
            shape = held[last].shape if held and last in held else before.shape
            for axis in _axes(before):
                size, usual = shape[axis], before.shape[axis]
                column["sizes"].append(0 if size == sizes.guess(axis, usual) else size)
                sizes.learn(axis, usual, size)
    for name in _layers(original):
        weight = layout.tensors.get(name, {}).get("weight")
        bits, zero_point = layout.inputs.get(name, (0, 0))
        column["bits"].append(weight.bits or 0 if weight else 0)
        column["inputs"].append(bits + _GRIDS * zero_point)
    for _, stored in layout.flat():
        if len(stored.shape) == 4:
            column["kernels"].append(0 if stored.kernels is None else stored.kernels + 1)
    _policy_columns(column, layout, original)
    return column


def _presence(held: Mapping[str, StoredTensor] | None, original: Mapping[str, StoredTensor]) -> int:
    if held is None:
        if any(len(stored.shape) > 1 for stored in original.values()):
            raise ValueError("only a BatchNorm may be absent")
        return _ABSENT
    return _WITH_BIAS if "bias" in held and "bias" not in original else _AS_USUAL


def _policy_columns(column: Columns, layout: Layout, original: Layout) -> None:
    """Which layers and groups a policy names: 1 where the network shows the value."""
    for kind, shown in _shown(layout, original).items():
        genes = {} if layout.policy is None else layout.policy.of_kind(kind)
        for name, value in shown.items():
            named = name in genes
            column[kind].append(0 if not named else 1 if genes[name] == value else 2)
    shares = _sparsities(layout.policy)
    genes = {} if layout.policy is None else layout.policy.of_kind("kernel_sparsity")
    column["kernel_sparsity"] = [
        1 + shares.index(genes[name]) if name in genes else 0 for name in _layers(original)
    ]


def _shown(layout: Layout, original: Layout) -> dict[Any, dict[str, int | None]]:
    """By kind and module, the value that a gene of it should have, as the network shows."""
    tensors = layout.tensors
    return {
        "channels": {n: _outputs(tensors[n]) for n in original.tensors if n in tensors},
        "weight_bits": {
            n: tensors[n]["weight"].bits if n in tensors else None for n in _layers(original)
        },
        "activation_bits": {n: layout.inputs.get(n, (None,))[0] for n in _layers(original)},
    }


def _outputs(tensors: Mapping[str, StoredTensor]) -> int | None:
    shape = next(iter(tensors.values())).shape
    return shape[0] if shape else None


def _sparsities(policy: Policy | None) -> list[Value]:
    return [] if policy is None else sorted(set(policy.of_kind("kernel_sparsity").values()))


def _words(layout: Layout, original: Layout) -> dict[str, Any]:
    """What no column holds, JSON: names of factories, channel maps, and what is out of the way."""
    plain = Layout(tensors={}, architecture=layout.architecture, arguments=layout.arguments)
    words = {k: v for k, v in plain.to_dict().items() if v}
    others = {
        name: {last: stored.to_json() for last, stored in held.items()}
        for name, held in _others(layout, original).items()
    }
    words |= {k: v for k, v in (("tensors", others), ("maps", layout.maps)) if v}
    if layout.bare:
        words["bare"] = layout.bare
    if layout.in_place:
        words["in_place"] = layout.in_place
    if layout.policy is not None:
        words["policy"] = True
        if shares := _sparsities(layout.policy):
            words["sparsities"] = shares
        told = _told_policy(_columns(layout, original), words, layout, original)
        rest = {name: value for name, value in layout.policy.items() if told.get(name) != value}
        if rest:
            words["genes"] = rest
    # Through JSON, as the reader will see them.
    plain_words: dict[str, Any] = json.loads(_text(words))
    return plain_words


def _others(layout: Layout, original: Layout) -> dict[str, dict[str, StoredTensor]]:
    """Tensors that no column tells of: other modules', and buffers that files hold once cut."""
    found: dict[str, dict[str, StoredTensor]] = {}
    for name, held in layout.tensors.items():
        layer = name.removesuffix(f".{QUANTIZER}")
        if layer not in original.tensors:
            found[name] = dict(held)
        elif layer == name:
            told = {*original.tensors[name], "bias", SCALE}
            found[name] = {last: stored for last, stored in held.items() if last not in told}
    return {name: others for name, others in found.items() if others}


def _told(columns: Columns, words: Mapping[str, Any], original: Layout) -> Layout:
    """The layout that columns and words describe."""
    read = {name: _Column(numbers) for name, numbers in columns.items()}
    bits = {name: read["bits"].next() for name in _layers(original)}
    inputs = {
        name: input_grid(code % _GRIDS, code // _GRIDS)
        for name in _layers(original)
        if (code := read["inputs"].next())
    }
    tensors: dict[str, dict[str, StoredTensor]] = {}
    sizes = _Sizes()
    for name, originals in original.tensors.items():
        presence = read["presence"].next()
        if presence == _ABSENT:
            continue
        tensors[name] = _told_tensors(originals, read["sizes"], sizes, bits.get(name) or None)
        if presence == _WITH_BIAS:
            tensors[name]["bias"] = StoredTensor(tensors[name]["weight"].shape[:1])
        if name in inputs:
            tensors[f"{name}.{QUANTIZER}"] = {"scale": StoredTensor(())}
    for name, others in words.get("tensors", {}).items():
        held = tensors.setdefault(name, {})
        held.update((last, StoredTensor.from_json(value)) for last, value in others.items())
    kept = ("architecture", "arguments", "maps", "bare", "in_place")
    rest = {k: v for k, v in words.items() if k in kept}
    layout = in_order(Layout.from_dict({**rest, "tensors": {}}), original)
    layout = in_order(Layout(**{**vars(layout), "tensors": tensors, "inputs": inputs}), original)
    layout = _with_kernels(layout, read["kernels"])
    if words.get("policy"):
        genes = _told_policy(columns, words, layout, original) | dict(words.get("genes", {}))
        layout = Layout(**{**vars(layout), "policy": Policy(genes)})
    return layout


def _told_tensors(
    originals: Mapping[str, StoredTensor], read: _Column, sizes: _Sizes, bits: int | None
) -> dict[str, StoredTensor]:
    found = {}
    for last, before in originals.items():
        shape = list(before.shape)
        for axis in _axes(before):
            shape[axis] = read.next() or sizes.guess(axis, before.shape[axis])
            sizes.learn(axis, before.shape[axis], shape[axis])
        own = bits if last == "weight" else None
        found[last] = StoredTensor(tuple(shape), before.dtype, own, strides=before.strides)
    if bits is not None:
        found[SCALE] = StoredTensor(found["weight"].shape[:1])
    return found


def _with_kernels(layout: Layout, read: _Column) -> Layout:
    tensors = {
        name: {
            last: StoredTensor(**{**vars(stored), "kernels": count - 1})
            if len(stored.shape) == 4 and (count := read.next())
            else stored
            for last, stored in held.items()
        }
        for name, held in layout.tensors.items()
    }
    return Layout(**{**vars(layout), "tensors": tensors})


def _told_policy(
    columns: Columns, words: Mapping[str, Any], layout: Layout, original: Layout
) -> dict[str, Any]:
    """The genes whose values the network shows, and kernel sparsities."""
    genes: dict[str, Any] = {}
    for kind, shown in _shown(layout, original).items():
        read = _Column(columns[kind])
        genes |= {f"{kind}:{name}": value for name, value in shown.items() if read.next() == 1}
    read = _Column(columns["kernel_sparsity"])
    for name in _layers(original):
        place = read.next()
        if place:
            genes[f"kernel_sparsity:{name}"] = words["sparsities"][place - 1]
    return genes


class _Column:
    """Numbers one after the other; zeros at the end are not written."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = iter(numbers)

    def next(self) -> int:
        return next(self._numbers, 0)


def _numbers(values: list[int]) -> bytes:
    """How many there are up to the last that is not zero, and these; seven bits a byte."""
    count = max((place for place, value in enumerate(values, 1) if value), default=0)
    return b"".join(varint(value) for value in [count, *values[:count]])


def _read_numbers(data: bytes, place: int) -> tuple[list[int], int]:
    count, place = read_varint(data, place)
    found = []
    for _ in range(count):
        value, place = read_varint(data, place)
        found.append(value)
    return found, place


def varint(value: int) -> bytes:
    """A natural number, seven bits a byte, the lowest first; the top bit says that more follow."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def read_varint(data: Buffer, place: int) -> tuple[int, int]:
    """The number that starts at a place, and the place after it.

    Raises:
        IndexError: the data end before it does.
    """
    value, shift = 0, 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if not byte & 0x80:
            return value, place


def _text(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _deflated(data: bytes) -> bytes:
    """Without zlib's own header and checksum; the file has one."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=_PHRASES)
    return packer.compress(data) + packer.flush()
