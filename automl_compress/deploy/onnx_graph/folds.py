"""How many columns of narrow maps share one, so that integer kernels are fast. Plain numbers only.

Integer kernels compute sixteen channels at once. A map of fewer, say (8, 32, 32), is as slow as one
of (16, 32, 32); as (16, 32, 16), its even columns in the first eight channels and its odd ones in
the others, it takes half as long. A convolution is one of the folded map too: its kernel has each
weight once per column of a fold, and zeros. The same integers are summed, so no output changes.
Measured on an x86-64 processor with VNNI, ONNX Runtime 1.32: a 3x3 convolution of 8 channels at
32x32 takes 28 microseconds when it is filled up with zeros, and 15 folded.

Convolutions fold what they write, and unfold what they read where they step over whole folds. So
nothing but convolutions changes, and a map that anything else reads stays as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from automl_compress.deploy.runtime import LEAST_OUTPUTS


@dataclass(frozen=True)
class Reading:
    """How a convolution reads columns.

    Args:
        columns: of its input and of its output.
        kernel: columns of its kernel.
        stride: columns from one output to the next.
        dilation: columns from one weight to the next.
        pad: columns of zeros on the left.
    """

    columns: tuple[int, int]
    kernel: int
    stride: int
    dilation: int
    pad: int


@dataclass(frozen=True)
class FoldedReading:
    """How it reads folded columns.

    Args:
        taps: (column of a fold of the output, column of the kernel, folded column from the first
            that is read on, column of that fold) of every weight.
        kernel: folded columns of its kernel.
        stride: in folded columns.
        pads: folded columns of zeros on the left and on the right.
    """

    taps: tuple[tuple[int, int, int, int], ...]
    kernel: int
    stride: int
    pads: tuple[int, int]


@functools.cache
def folded(reading: Reading, before: int, after: int) -> FoldedReading | None:
    """How a convolution reads its input's columns when they are folded.

    Args:
        reading: how it reads them now.
        before: columns of a fold of its input, a divisor of all of them.
        after: columns of a fold of its output likewise.

    Returns:
        None where it cannot, or would do more than it does now. Dilations are written out.
    """
    if reading.stride * after % before:
        return None
    stride = reading.stride * after // before
    places = [
        (i, j, *divmod(reading.stride * i + reading.dilation * j - reading.pad, before))
        for i in range(after)
        for j in range(reading.kernel)
    ]
    first = min(place for _, _, place, _ in places)
    kernel = max(place for _, _, place, _ in places) - first + 1
    wide, wanted = reading.columns[0] // before, reading.columns[1] // after
    right = max(0, (wanted - 1) * stride + kernel + first - wide)
    fits = (wide - first + right - kernel) // stride + 1 == wanted
    if not fits or wanted * kernel > reading.columns[1] * reading.kernel:
        return None
    taps = tuple((i, j, place - first, column) for i, j, place, column in places)
    return FoldedReading(taps, kernel, stride, (-first, right))


def readable(reading: Reading, before: int, after: int) -> bool:
    """Whether a convolution can read and write folds; always without any."""
    return (before, after) == (1, 1) or folded(reading, before, after) is not None


@dataclass(frozen=True)
class MapLayer:
    """A convolution whose channels are not in groups, between two sets of maps of one layout.

    Args:
        name: the layer's name.
        source: number of the set its input is in; None where that keeps its layout.
        output: number of the set its output is in, likewise.
        reading: how it reads columns.
        fillable: whether its input and its output may get channels of zeros.
    """

    name: str
    source: int | None
    output: int | None
    reading: Reading
    fillable: tuple[bool, bool] = (True, True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes the same."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> MapLayer:
        """What `to_dict` wrote."""
        columns = tuple(data["reading"]["columns"])
        reading = Reading(**{**data["reading"], "columns": columns})
        return cls(**{**data, "reading": reading, "fillable": tuple(data["fillable"])})


def chosen_folds(layers: Sequence[MapLayer], channels: Mapping[int, int]) -> dict[int, int]:
    """How many columns of every set of maps share one.

    As many as fill a kernel's channels, and fewer where a convolution could not read or write them.

    Args:
        layers: all convolutions that read or write the maps.
        channels: of every set; sets that are left out keep their layout.
    """
    columns: dict[int, int] = {}
    for layer in layers:
        for place, number in enumerate((layer.source, layer.output)):
            if number is not None and number in channels:
                columns[number] = layer.reading.columns[place]
    folds = {number: widest_fold(channels[number], size) for number, size in columns.items()}
    unsettled = any(fold > 1 for fold in folds.values())
    while unsettled:
        unsettled = False
        for layer in layers:
            before, after = fold_of(layer.source, folds), fold_of(layer.output, folds)
            if not readable(layer.reading, before, after):
                shrunk = layer.source if before > 1 else layer.output
                assert shrunk is not None
                folds[shrunk] //= 2
                unsettled = True
    return folds


def fold_of(number: int | None, folds: Mapping[int, int]) -> int:
    """Columns of a fold of a set of maps; 1 where it keeps its layout."""
    return 1 if number is None else folds.get(number, 1)


def widest_fold(channels: int, columns: int) -> int:
    """The largest power of two of columns that fit into a kernel's channels, and divide all."""
    fold = 1
    while 2 * fold * channels <= LEAST_OUTPUTS and columns % (2 * fold) == 0:
        fold *= 2
    return fold
