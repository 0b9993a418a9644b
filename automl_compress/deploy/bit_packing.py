"""Packing small integers into bytes, and back.

Codes lie one after the other without gaps, the lowest bit first: code i of `bits` bits starts at
bit `i * bits` of the stream, and bit k of the stream is bit `k % 8` of byte `k // 8`. Eight codes
fill `bits` bytes exactly, so they are moved eight at a time in one 64-bit word.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_BLOCK: Final = 8
"""Codes that fill a whole number of bytes, whatever their bits."""


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return -(-count * bits // 8)


def pack_bits(codes: Bytes, bits: int) -> Bytes:
    """Pack codes into as few whole bytes as they need.

    Args:
        codes: (n,) each in 0..2^bits - 1.
        bits: 1..8.

    Returns:
        (packed_size(n, bits),) bytes; unused bits of the last one are 0.
    """
    assert 1 <= bits <= 8
    assert not codes.size or int(codes.max()) >> bits == 0
    whole = np.zeros(-(-len(codes) // _BLOCK) * _BLOCK, dtype="<u8")
    whole[: len(codes)] = codes
    words = np.bitwise_or.reduce(whole.reshape(-1, _BLOCK) << _shifts(bits), axis=1)
    blocks = words.view(np.uint8).reshape(-1, _BLOCK)[:, :bits]
    packed: Bytes = blocks.reshape(-1)[: packed_size(len(codes), bits)].copy()
    return packed


def unpack_bits(packed: Bytes, bits: int, count: int) -> Bytes:
    """The codes that `pack_bits` packed.

    Args:
        packed: (packed_size(count, bits),) bytes.
        bits: 1..8.
        count: how many codes there are.

    Returns:
        (count,) codes.
    """
    assert 1 <= bits <= 8
    assert len(packed) == packed_size(count, bits)
    blocks = -(-count // _BLOCK)
    whole = np.zeros(blocks * bits, dtype=np.uint8)
    whole[: len(packed)] = packed
    padded = np.zeros((blocks, _BLOCK), dtype=np.uint8)
    padded[:, :bits] = whole.reshape(blocks, bits)
    words = padded.view("<u8")
    codes = (words >> _shifts(bits)) & np.uint64((1 << bits) - 1)
    return codes.astype(np.uint8).reshape(-1)[:count]


def _shifts(bits: int) -> NDArray[np.uint64]:
    return np.arange(_BLOCK, dtype=np.uint64) * np.uint64(bits)
