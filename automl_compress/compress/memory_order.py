"""The order of values in memory that networks run in."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def order_for(network: nn.Module, inputs: Tensor) -> torch.memory_format:
    """Channels last, in which 2-D convolutions are fastest, unless a network's own code fails so.

    Only inputs of four axes, images, have that order. `x.view(len(x), -1)` behind a convolution
    fails so: it wants values in the usual order.

    Args:
        network: in evaluation mode.
        inputs: (n, ...) one or more.
    """
    if inputs.dim() != 4:
        return torch.contiguous_format
    try:
        with torch.no_grad():
            network(inputs.to(memory_format=torch.channels_last))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return torch.contiguous_format
    return torch.channels_last


def put_in_order(network: nn.Module, order: torch.memory_format) -> None:
    """Put the weights of a network's 2-D convolutions in an order.

    Those of volumes stay as they are: `Module.to` fails on them.
    """
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.detach().contiguous(memory_format=order)


def in_order(images: Tensor, order: torch.memory_format) -> Tensor:
    """Inputs (n, ...) in an order.

    Images of one channel are in both at once for `Tensor.contiguous`, but not for convolutions.
    """
    if order is torch.contiguous_format:
        return images.clone(memory_format=order)
    return images.to(memory_format=order)
