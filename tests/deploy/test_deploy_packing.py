from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from automl_compress.deploy.bit_packing import pack_bits, packed_size, unpack_bits


@st.composite
def codes_and_bits(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(1, 8))
    count = draw(st.integers(0, 67))
    top = 2**bits - 1
    return draw(arrays.arrays(np.uint8, count, elements=st.integers(0, top))), bits


@given(codes_and_bits())
def test_packing_is_that_of_one_long_integer(case: tuple[np.ndarray, int]) -> None:
    codes, bits = case
    whole = sum(int(code) << (place * bits) for place, code in enumerate(codes))
    size = packed_size(len(codes), bits)
    packed = pack_bits(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.tobytes() == whole.to_bytes(size, "little")
    assert 8 * size - 8 < len(codes) * bits <= 8 * size or not len(codes)


@given(codes_and_bits())
def test_unpacking_is_the_exact_inverse(case: tuple[np.ndarray, int]) -> None:
    codes, bits = case
    found = unpack_bits(pack_bits(codes, bits), bits, len(codes))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, codes)


@given(codes_and_bits())
def test_every_full_stream_of_bytes_is_a_packing(case: tuple[np.ndarray, int]) -> None:
    stream, bits = case
    count = len(stream) * 8 // bits
    stream = stream[: packed_size(count, bits)]
    if count * bits == 8 * len(stream):
        np.testing.assert_array_equal(pack_bits(unpack_bits(stream, bits, count), bits), stream)


@pytest.mark.parametrize("bits", range(1, 9))
def test_large_arrays_and_arrays_of_a_view(bits: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, 100_003, dtype=np.uint8)
    packed = pack_bits(codes[::-1], bits)
    assert len(packed) == -(-100_003 * bits // 8)
    np.testing.assert_array_equal(unpack_bits(packed, bits, 100_003), codes[::-1])


def test_codes_that_do_not_fit_their_bits_are_a_mistake() -> None:
    with pytest.raises(AssertionError):
        pack_bits(np.array([4], dtype=np.uint8), 2)
