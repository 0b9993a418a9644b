"""Sums, means and extremes over channels, and products, which a network's own code takes.

A normalization that is written out takes the mean of all channels, an attention over positions
their greatest value. Over fewer channels both are still defined, as a layer norm of fewer features
is: a cut network takes them over the channels it has. A product of two activations, as of queries
and keys, is such a sum over the axis that both have. Such operations have no names; they are known
by how many of them run before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._ops import OpOverload

from automl_compress.compress.structure import ChannelGroup
from automl_compress.compress.tracing.dispatch import Mode, Operation

REDUCTIONS: Final = frozenset(
    {
        *("mean", "sum", "prod", "amax", "amin", "max", "min"),
        *("var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm"),
    }
)
"""Basic operations that make one value of many along some axes."""
PRODUCTS: Final = frozenset({"mm", "bmm"})
"""Basic operations that sum products over the last axis of one tensor and the one before another's
last."""
_CHOICES: Final = {torch.ops.aten.max.dim: -torch.inf, torch.ops.aten.min.dim: torch.inf}
"""Those that also tell which channel it was, and the value that is never chosen."""


def is_reduction(func: OpOverload) -> bool:
    """Whether a basic operation makes one value of many along some axes."""
    return func._schema.name.partition("::")[2] in REDUCTIONS


def is_product(func: OpOverload) -> bool:
    """Whether a basic operation multiplies two tensors and sums over an axis of both."""
    return func._schema.name.partition("::")[2] in PRODUCTS


def is_counted(func: OpOverload) -> bool:
    """Whether a basic operation is one of those known by how many run before."""
    return is_reduction(func) or is_product(func)


def reduced_axes(func: OpOverload, args: tuple[Any, ...]) -> list[int]:
    """The axes that a reduction runs over, as its caller gave them; empty for all."""
    place = 2 if "vector_norm" in func._schema.name else 1
    axes = args[place] if len(args) > place else None
    if isinstance(axes, int) and not isinstance(axes, bool):
        return [axes]
    return list(axes) if isinstance(axes, list | tuple) else []


class ProductSizes(Mode):
    """Learns how large the products are that run while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen = 0
        self.macs: dict[int, int] = {}
        """By how many reductions and products run before, multiply-accumulates."""

    def run(self, func: Operation, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Run an operation; of a product, every value of the result is a sum."""
        output = func(*args, **named)
        if isinstance(func, OpOverload) and is_counted(func):
            if is_product(func):
                self.macs[self._seen] = output.numel() * args[0].shape[-1]
            self._seen += 1
        return output


class PartialReductions(Mode):
    """Lets some reductions leave channels out, for as long as it is entered.

    Args:
        kept: by how many reductions run before, the axis and (n,) the places along it that count.
    """

    def __init__(self, kept: Mapping[int, tuple[int, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kept = kept
        self._seen = 0

    def run(self, func: Operation, args: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        """Run an operation, a reduction over what is left of its operand."""
        if isinstance(func, OpOverload) and is_counted(func):
            axis, stays = self._kept.get(self._seen, (0, None))
            self._seen += 1
            if stays is not None and is_product(func):
                one, other = args[:2]
                args = (one.index_select(axis, stays), other.index_select(axis - 1, stays))
            elif stays is not None:
                args = (_without(args[0], axis, stays, _CHOICES.get(func)), *args[1:])
        return func(*args, **named)


def kept_operands(
    groups: Iterable[ChannelGroup], kept: Mapping[str, NDArray[np.int64]]
) -> dict[int, tuple[int, Tensor]]:
    """What reductions still run over when channels are cut, as `PartialReductions` takes it.

    Args:
        groups: those that are cut.
        kept: by group name, the channels that stay.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    axes: dict[int, int] = {}
    for group in groups:
        stays = np.isin(np.arange(group.channels), kept[group.name])
        for reduction in group.reductions:
            mask = masks.setdefault(reduction.call, np.ones(reduction.size, dtype=bool))
            mask[reduction.positions[~stays[reduction.channels]]] = False
            axes[reduction.call] = reduction.axis
    return {
        call: (axes[call], torch.from_numpy(np.flatnonzero(mask))) for call, mask in masks.items()
    }


def _without(operand: Tensor, axis: int, stays: Tensor, never: float | None) -> Tensor:
    """An operand's places that count; where places are told by number, the others lose."""
    some = operand.index_select(axis, stays)
    if never is None:
        return some
    return torch.full_like(operand, never).index_copy(axis, stays, some)
