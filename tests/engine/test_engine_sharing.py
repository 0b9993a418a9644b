"""Large tensors keep their values and the order of their axes on the way through shared memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from automl_compress.engine.dispatcher import SHARED_BYTES, _to_array, _to_tensor

IMAGES = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).reshape(2, 3, 64, 64)


@pytest.mark.parametrize(
    "tensor",
    [
        IMAGES,
        IMAGES.contiguous(memory_format=torch.channels_last),
        IMAGES.permute(3, 1, 0, 2),
        IMAGES.long(),
        IMAGES.bfloat16(),
        IMAGES[:, :, ::2],
        IMAGES[:1].expand(4, 3, 64, 64),
        IMAGES.clone().requires_grad_(),
        torch.tensor(3),
        torch.zeros(0, 5),
    ],
)
def test_tensors_arrive_as_they_were(tensor: Tensor) -> None:
    order, values = _to_array(tensor)
    arrived = _to_tensor((order, values))
    assert torch.equal(arrived, tensor)
    assert arrived.dtype == tensor.dtype
    if tensor.numel() == tensor.untyped_storage().nbytes() // tensor.element_size():
        assert arrived.stride() == tensor.stride()


def test_only_large_ones_are_arrays() -> None:
    assert IMAGES.nbytes >= SHARED_BYTES
    assert _to_array(IMAGES)[1].nbytes == IMAGES.nbytes
    assert isinstance(_to_array(torch.zeros(8))[1], bytes)
    assert isinstance(_to_array(IMAGES.bfloat16())[1], bytes)
