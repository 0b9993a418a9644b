"""Strided 1x1 convolutions of few channels, as channel cuts leave them in shortcuts.

oneDNN computes the gradient of their weights wrongly where channels lie last and are fewer than a
block of 16: it writes past its workspace, and the process crashes or goes on with broken memory
(uxlfoundation/oneDNN, issue 6035). Measured with PyTorch 2.15 on an x86-64 processor: 64 images of
8 channels and 96x96 crash in float32 and in bfloat16. To read every second place first and then to
convolve without a stride is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import torch.nn.functional as F
from torch import Tensor, nn

BLOCK: Final = 16
"""Channels of a block."""


@contextmanager
def reading_first(network: nn.Module) -> Iterator[None]:
    """Inside, such convolutions of a network on the processor read first and convolve then.

    Args:
        network: left as it was.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    chosen = [layer for layer in layers if _is_affected(layer)]
    for layer in chosen:
        layer._conv_forward = partial(_read_and_convolve, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in chosen:
            del layer._conv_forward


def _is_affected(layer: nn.Conv2d) -> bool:
    return (
        layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.padding == (0, 0)
        and layer.in_channels // layer.groups < BLOCK
        and layer.weight.device.type == "cpu"
    )


def _read_and_convolve(
    layer: nn.Conv2d, inputs: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    rows, columns = layer.stride
    return F.conv2d(inputs[:, :, ::rows, ::columns], weight, bias, groups=layer.groups)
