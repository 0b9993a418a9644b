"""Copies of networks that share tensors, and modules that change under all their names."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def share_copy(model: M) -> M:
    """A copy with modules of its own that shares all parameters and buffers."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def become(module: nn.Module, other: nn.Module) -> None:
    """Give a module the class and contents of another.

    Unlike a replacement, every reference sees it: a second name, a plain list of layers.
    """
    module.__class__ = type(other)
    module.__dict__ = vars(other)


def find_part(model: nn.Module, name: str) -> nn.Module | Tensor:
    """The module, free parameter or buffer of a name."""
    parent, _, last = name.rpartition(".")
    part: nn.Module | Tensor = getattr(model.get_submodule(parent), last)
    return part
