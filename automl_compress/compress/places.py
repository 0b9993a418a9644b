"""Which positions stay along the axes of every module when channels go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress.attention import HeadProduct
from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.compress.kinds import (
    BATCH_NORMS,
    CONVOLUTIONS,
    INSTANCE_NORMS,
    LAST_NORMS,
    LAYERS,
    NORMALIZATIONS,
    TRANSPOSED,
    parameter_axis,
    weight_axis,
)
from automl_compress.compress.modules import find_part
from automl_compress.compress.structure import Axis, ChannelGroup
from automl_compress.errors import CompressError

Kept = Mapping[str, NDArray[np.int64]]
"""By group name, (n_kept,) ascending channels of the group that stay."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of a module, by the tensor's name in it."""


@dataclass(frozen=True)
class Places:
    """Positions that stay along the axes of one module; None when an axis is not cut."""

    out: Tensor | None = None
    inputs: Tensor | None = None

    def along(self, axis: Axis) -> Tensor | None:
        """The positions that stay along an axis, or None when it is not cut."""
        return self.out if axis == "out" else self.inputs


def kept_places(
    model: nn.Module, groups: tuple[ChannelGroup, ...], kept: Kept
) -> dict[str, Places]:
    """What stays of every module that any group cuts, by module name.

    Args:
        model: the original network.
        groups: all of its channel groups.
        kept: the channels that stay of the groups that are cut; others keep all.
    """
    masks: dict[tuple[str, Axis], NDArray[np.bool_]] = {}
    for group in groups:
        if group.name not in kept or len(kept[group.name]) == group.channels:
            continue
        stays = np.zeros(group.channels, dtype=bool)
        stays[kept[group.name]] = True
        for member in group.members:
            key = (member.module, member.axis)
            if key not in masks:
                masks[key] = np.ones(axis_size(model, *key), dtype=bool)
            masks[key][member.positions[~stays[member.channels]]] = False
    places = {key: torch.from_numpy(np.flatnonzero(mask)) for key, mask in masks.items()}
    names = dict.fromkeys(name for name, _ in places)
    return {n: Places(places.get((n, "out")), places.get((n, "in"))) for n in names}


def places_of_shapes(model: nn.Module, shapes: Mapping[str, Shapes]) -> dict[str, Places]:
    """What stays of a network that is cut to given shapes: the first channels of every axis.

    This rebuilds the form of a network that was cut before; its values come from elsewhere.

    Args:
        model: the original, its channel maps already those of the cut network.
        shapes: by module name, the shape of every tensor after the cut.

    Raises:
        CompressError: a tensor is larger than the original, or its module is not there.
    """
    modules = dict(model.named_modules())
    places: dict[str, Places] = {}
    for name, tensors in shapes.items():
        if name not in modules:
            raise CompressError(f"there is no module '{name}'")
        module = modules[name]
        if isinstance(module, ChannelMap):
            continue
        if can_cut(module):
            sizes = _sizes_of_shapes(module, tensors)
            firsts = {axis: _firsts(model, name, axis, size) for axis, size in sizes.items()}
            places[name] = Places(firsts.get("out"), firsts.get("in"))
            continue
        for last, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and len(tensors.get(last, ())) == tensor.dim() > 0:
                own = f"{name}.{last}".lstrip(".")
                size = tensors[last][parameter_axis(tensor)]
                places[own] = Places(_firsts(model, own, "out", size))
    return {n: p for n, p in places.items() if p.out is not None or p.inputs is not None}


def _sizes_of_shapes(module: nn.Module, shapes: Shapes) -> dict[Axis, int]:
    """Channels along the axes of a module that `can_cut`, from the shapes of its tensors."""
    if not isinstance(module, LAYERS):
        return {"out": max((s[-1] for s in shapes.values() if s), default=0)}  # all alike
    weight = shapes.get("weight", (0, 0))
    out, inputs = weight[weight_axis(module, "out")], weight[weight_axis(module, "in")]
    grouped = getattr(module, "groups", 1) > 1  # whole groups go, outputs and inputs alike
    return {"out": out} if grouped else {"out": out, "in": inputs}


def _firsts(model: nn.Module, name: str, axis: Axis, size: int) -> Tensor | None:
    """(size,) the first places along an axis; None when these are all."""
    full = axis_size(model, name, axis)
    if not 0 < size <= full:
        raise CompressError(f"'{name}' has {full} channels, which cannot be cut to {size}")
    return None if size == full else torch.arange(size)


def axis_size(model: nn.Module, name: str, axis: Axis) -> int:
    """Places along one axis of a module that `can_cut`, or of a free parameter or buffer.

    Raises:
        CompressError: channels cannot be cut out of it.
    """
    part = find_part(model, name)
    if isinstance(part, ChannelMap):
        return part.out_channels if axis == "out" else part.in_channels
    if isinstance(part, Tensor):
        return part.shape[parameter_axis(part)]
    if isinstance(part, LAST_NORMS):
        return int(part.normalized_shape[-1])
    if isinstance(part, nn.PReLU):
        return part.num_parameters
    if isinstance(part, HeadProduct):
        return part.width
    if isinstance(part, nn.GroupNorm):
        return part.num_channels
    if isinstance(part, (*BATCH_NORMS, *INSTANCE_NORMS)):
        return part.num_features
    if isinstance(part, nn.Linear):
        return part.out_features if axis == "out" else part.in_features
    if isinstance(part, (*CONVOLUTIONS, *TRANSPOSED)):
        return part.out_channels if axis == "out" else part.in_channels
    raise CompressError(f"'{name}' must be a module that can be cut, but is {type(part).__name__}")


def can_cut(module: nn.Module | Tensor) -> bool:
    """Whether channels can be cut out of a module, or out of a free parameter or buffer."""
    if isinstance(module, LAYERS):
        whole = not isinstance(module, TRANSPOSED) or module.groups == 1
        return whole and "weight" in module._parameters  # else computed, as by unknown hooks
    return isinstance(module, (*NORMALIZATIONS, Tensor, nn.PReLU, ChannelMap, HeadProduct))
