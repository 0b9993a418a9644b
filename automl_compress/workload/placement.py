"""Networks on the device that computes with them."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

CPU: Final = torch.device("cpu")
_COUNTER: Final = "num_batches_tracked"
_TABLES: Final = frozenset(vars(nn.Module()))
"""Attributes that every module has; `Module.to` moves what they hold."""


def move(network: M, device: torch.device) -> M:
    """Move a network in place, with the tensors that modules keep beside parameters and buffers.

    `Module.to` leaves those where they are: in plain attributes and lists, and masks that a module
    makes at its first call and keeps for the next. BatchNorms' counters stay on the processor: to
    count on a device costs as much as a ReLU does there, and nothing reads them there.

    Args:
        network: shares no parameter with one that is to stay where it is.
        device: with its index.

    Returns:
        The network itself.
    """
    tensors = itertools.chain(network.parameters(), network.buffers())
    if any(tensor.device != device for tensor in tensors):
        network.to(device)
    for module in network.modules():
        counter = module._buffers.get(_COUNTER)
        if counter is not None:
            module._buffers[_COUNTER] = counter.cpu()
        state = vars(module)
        for name in state.keys() - _TABLES:
            state[name] = _moved(state[name], device)
    return network


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the processor on a device, whose present work is not waited for."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def _moved(value: Any, device: torch.device) -> Any:
    """A module's attribute with its tensors on a device; itself where they are."""
    if isinstance(value, Tensor):
        if value.device == device:
            return value
        wanting = value.requires_grad and value.is_leaf
        return value.detach().to(device).requires_grad_(wanting)
    if type(value) in (dict, OrderedDict):
        parts = {key: _moved(part, device) for key, part in value.items()}
        return value if all(parts[key] is value[key] for key in value) else type(value)(parts)
    if type(value) in (list, tuple):
        several = [_moved(part, device) for part in value]
        same = all(one is other for one, other in zip(several, value, strict=True))
        return value if same else type(value)(several)
    return value
