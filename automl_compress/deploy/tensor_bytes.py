"""Tensors as bytes: at their bits, and without their zero kernels where that is smaller."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from automl_compress.compress.quantize import SCALE
from automl_compress.deploy.bit_packing import Bytes, pack_bits, packed_size, unpack_bits
from automl_compress.deploy.layout import Layout, StoredTensor, in_strides


def encode(layout: Layout, tensors: Mapping[str, Tensor]) -> tuple[Layout, list[bytes]]:
    """Every tensor of a layout as bytes, in its order, and the layout that says how.

    Args:
        layout: its tensors, zero kernels included.
        tensors: by full name, on the CPU.
    """
    parts: list[bytes] = []
    held: dict[str, dict[str, StoredTensor]] = {}
    for module, entries in layout.tensors.items():
        held[module] = {}
        for last, stored in entries.items():
            name = f"{module}.{last}".lstrip(".")
            scales = tensors.get(_scale_of(name))
            content, held[module][last] = _encode(tensors[name], stored, scales)
            parts.append(content)
    return replace(layout, tensors=held), parts


def decode(layout: Layout, content: memoryview) -> dict[str, Tensor]:
    """The tensors that `encode` wrote, by full name; low-bit weights as floats.

    Args:
        layout: as `encode` returned it.
        content: its parts, one after the other.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: content and layout do not fit.
    """
    sizes = {name: _stored_size(stored) for name, stored in layout.flat()}
    if sum(sizes.values()) != len(content):
        raise ValueError(f"{len(content)} bytes where {sum(sizes.values())} are needed")
    found: dict[str, Tensor] = {}
    start = 0
    for name, stored in layout.flat():
        found[name] = _decode(stored, content[start : start + sizes[name]])
        start += sizes[name]
    for name, stored in layout.flat():
        if stored.bits is not None:
            found[name] = _dequantized(found[name], found[_scale_of(name)])
    return {name: in_strides(found[name], stored) for name, stored in layout.flat()}


def _scale_of(name: str) -> str:
    """The name of the scales of a low-bit weight."""
    return f"{name.removesuffix('weight')}{SCALE}"


def _encode(
    tensor: Tensor, stored: StoredTensor, scales: Tensor | None
) -> tuple[bytes, StoredTensor]:
    if stored.bits is None:
        codes, bits, zero = _values(tensor), 8, 0
    else:
        assert scales is not None
        bits, zero = stored.bits, _zero(stored.bits)
        codes = _integers(tensor, scales) + np.uint8(zero)
    if len(stored.shape) == 4 and codes.size:
        kernels = codes.reshape(stored.shape[0] * stored.shape[1], -1)
        present = (kernels != zero).any(axis=1)
        sparse = packed_size(len(present), 1) + packed_size(kernels[present].size, bits)
        if sparse < packed_size(codes.size, bits):
            bitmap = pack_bits(present.astype(np.uint8), 1)
            content = pack_bits(kernels[present].reshape(-1), bits)
            whole = bitmap.tobytes() + content.tobytes()
            return whole, replace(stored, kernels=int(present.sum()))
    return pack_bits(codes, bits).tobytes(), stored


def _values(tensor: Tensor) -> Bytes:
    """A tensor's values as little-endian bytes, in the order of a contiguous tensor."""
    assert sys.byteorder == "little"
    values: Bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return values


def _integers(weight: Tensor, scales: Tensor) -> Bytes:
    """The integers of weights on a grid, modulo 256."""
    integers = (weight.flatten(1) / scales[:, None]).round()
    modulo: Bytes = integers.to(torch.int16).reshape(-1).numpy().astype(np.uint8)
    return modulo


def _zero(bits: int) -> int:
    """The code of a zero weight."""
    return int(2 ** (bits - 1))


def _stored_size(stored: StoredTensor) -> int:
    """Bytes of an encoded tensor."""
    values = math.prod(stored.shape)
    bitmap = 0
    if stored.kernels is not None:
        values = stored.kernels * math.prod(stored.shape[2:])
        bitmap = packed_size(math.prod(stored.shape[:2]), 1)
    if stored.bits is None:
        return bitmap + values * stored.torch_dtype.itemsize
    return bitmap + packed_size(values, stored.bits)


def _decode(stored: StoredTensor, content: memoryview) -> Tensor:
    """A contiguous tensor; where it is on a low-bit grid, its integers as floats."""
    bits, width, zero = 8, stored.torch_dtype.itemsize, 0
    if stored.bits is not None:
        bits, width, zero = stored.bits, 1, _zero(stored.bits)
    data = np.frombuffer(content, dtype=np.uint8)
    if stored.kernels is None:
        codes = unpack_bits(data, bits, math.prod(stored.shape) * width)
    else:
        cells = math.prod(stored.shape[2:]) * width
        codes = _all_kernels(data, bits, (math.prod(stored.shape[:2]), cells), stored.kernels, zero)
    flat = torch.from_numpy(codes)
    if stored.bits is None:
        return flat.view(stored.torch_dtype).reshape(stored.shape)
    return (flat.to(stored.torch_dtype) - zero).reshape(stored.shape)


def _all_kernels(
    data: Bytes, bits: int, shape: tuple[int, int], present_count: int, zero: int
) -> Bytes:
    """Codes of all kernels, zero kernels filled in.

    Args:
        data: bitmap and codes of the kernels that are there.
        bits: of each code.
        shape: kernels, and codes of a kernel.
        present_count: kernels that are there.
        zero: the code of zero.
    """
    count, cells = shape
    split = packed_size(count, 1)
    present = unpack_bits(data[:split], 1, count).astype(bool)
    if int(present.sum()) != present_count:
        raise ValueError(f"a bitmap has {int(present.sum())} kernels, not {present_count}")
    kernels = np.full(shape, zero, dtype=np.uint8)
    codes = unpack_bits(data[split:], bits, present_count * cells)
    kernels[present] = codes.reshape(present_count, cells)
    return kernels.reshape(-1)


def _dequantized(integers: Tensor, scales: Tensor) -> Tensor:
    """Weights as `quantize_weight` left them: integer times scale."""
    return (integers.flatten(1) * scales[:, None]).reshape(integers.shape)
