"""Cutting channels out of modules: new, smaller modules from kept positions.

Nothing is changed in place. Tensors that are not cut are shared with the original network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress.attention import HeadLayers, HeadProduct
from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.compress.modules import become, find_part, module_at, share_copy
from automl_compress.compress.structure import Axis, ChannelGroup
from automl_compress.errors import CompressError

Kept = Mapping[str, NDArray[np.int64]]
"""By group name, (n_kept,) ascending channels of the group that stay."""

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of a module, by the tensor's name in it."""

CONVOLUTIONS: Final = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED: Final = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS: Final = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
"""Modules whose weights every output has of every input."""
BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS: Final = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
LAST_NORMS: Final = (nn.LayerNorm, nn.RMSNorm)
"""Normalizations over the last axis."""
NORMALIZATIONS: Final = (*BATCH_NORMS, *INSTANCE_NORMS, *LAST_NORMS, nn.GroupNorm)
_LISTS: Final = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
"""Modules whose parts are used by the module that holds them."""
_OWN_NUMBERS: Final = (
    *(*LAYERS, *NORMALIZATIONS),
    *(nn.PReLU, ChannelMap, HeadProduct, HeadLayers),
)
"""Modules whose numbers are changed where they are cut, or do not depend on widths."""


@dataclass(frozen=True)
class Places:
    """Positions that stay along the axes of one module; None when an axis is not cut."""

    out: Tensor | None = None
    inputs: Tensor | None = None

    def along(self, axis: Axis) -> Tensor | None:
        """The positions that stay along an axis, or None when it is not cut."""
        return self.out if axis == "out" else self.inputs


Part = tuple[str, Axis]
"""A module or parameter by its name, and one of its axes."""


def cut_channels(model: nn.Module, places: Mapping[str, Places]) -> nn.Module:
    """A copy of a network that keeps only some channels.

    Args:
        model: the original; not changed, its uncut tensors are shared with the result.
        places: what stays of the modules that are cut, from `kept_places`.

    Raises:
        CompressError: a module cannot be cut.
    """
    result = share_copy(model)
    for name, stays in places.items():
        _cut_part(result, name, stays)
    for (parent, name), value in followed_numbers(model, places).items():
        vars(module_at(result, parent))[name] = value
    return result


def followed_numbers(
    model: nn.Module, places: Mapping[str, Places]
) -> dict[tuple[str, str], int | tuple[int, ...]]:
    """Numbers that modules keep of the widths of what they hold, after a cut.

    A ViT reshapes by its `hidden_dim`, a layer scale by its `shape`. A number follows where all
    parts that a module holds and that have this width get the same new one; numbers that are
    equal by chance follow too, and trial cuts tell whether that is right.

    Args:
        model: the original.
        places: what stays of the modules that are cut.

    Returns:
        By module and attribute, the new value of those that change.
    """
    cut = (name for name, stays in places.items() if stays.out is not None)
    found: dict[tuple[str, str], int | tuple[int, ...]] = {}
    for parent in dict.fromkeys(holder(model, name) for name in cut):
        numbers = kept_numbers(module_at(model, parent))
        widths = _new_widths(model, parent, places) if numbers else {}
        for name, value in numbers.items():
            new = (
                tuple(widths.get(n, n) for n in value)
                if isinstance(value, tuple)
                else widths.get(value, value)
            )
            if new != value:
                found[parent, name] = new
    return found


def _new_widths(model: nn.Module, parent: str, places: Mapping[str, Places]) -> dict[int, int]:
    """New widths of what a module holds, by old ones that all become the same."""
    found: dict[int, int] = {}
    for old, parts in parts_of_width(model, parent, places).items():
        new = _sizes_left(old, parts, places)
        if len(new) == 1:
            found[old] = new.pop()
    return found


def _sizes_left(old: int, parts: list[Part], places: Mapping[str, Places]) -> set[int]:
    """What becomes of the axes of some parts that have one size."""
    kept = [places.get(name, Places()).along(axis) for name, axis in parts]
    return {old if stays is None else len(stays) for stays in kept}


def kept_numbers(module: nn.Module) -> dict[str, int | tuple[int, ...]]:
    """Integers and tuples of them that a module keeps, and that may be widths of what it holds."""
    if isinstance(module, _OWN_NUMBERS):
        return {}
    return {name: value for name, value in vars(module).items() if _is_number(value)}


def _is_number(value: object) -> bool:
    """Whether a value is an integer or a tuple of integers."""
    if isinstance(value, tuple):
        return all(type(part) is int for part in value)
    return type(value) is int


def parts_of_width(
    model: nn.Module, parent: str, places: Mapping[str, Places]
) -> dict[int, list[Part]]:
    """What a module holds whose widths its numbers may be, by width.

    Layers in its lists count only for widths that nothing it holds itself has: by what they read,
    as parts of a tensor that is split for them, or where these differ after a cut by what they
    write.
    """
    module = module_at(model, parent)
    lists = [last for last, part in module._modules.items() if isinstance(part, _LISTS)]
    listed = [name for last in lists for name in _held(model, f"{parent}.{last}".lstrip("."))]
    read = _by_width(model, [(name, "in") for name in listed if _reads_all(model, name)])
    alike = {old: parts for old, parts in read.items() if len(_sizes_left(old, parts, places)) == 1}
    written = _by_width(model, [(name, "out") for name in listed])
    return written | alike | _by_width(model, [(name, "out") for name in _held(model, parent)])


def _held(model: nn.Module, parent: str) -> list[str]:
    """Names of the modules and parameters a module holds itself."""
    module = module_at(model, parent)
    lasts = [
        last
        for last, part in (*module._modules.items(), *module._parameters.items())
        if part is not None and can_cut(part) and not isinstance(part, ChannelMap)
    ]
    return [f"{parent}.{last}".lstrip(".") for last in lasts]


def _reads_all(model: nn.Module, name: str) -> bool:
    """Whether every output of a part reads all its inputs, so that these are cut by themselves."""
    part = find_part(model, name)
    return isinstance(part, LAYERS) and getattr(part, "groups", 1) == 1


def _by_width(model: nn.Module, parts: list[Part]) -> dict[int, list[Part]]:
    found: dict[int, list[Part]] = {}
    for name, axis in parts:
        found.setdefault(axis_size(model, name, axis), []).append((name, axis))
    return found


def holder(model: nn.Module, name: str) -> str:
    """Name of the module whose code uses a part: its parent, or that of the list it is in."""
    parent = name.rpartition(".")[0]
    while parent and isinstance(module_at(model, parent), _LISTS):
        parent = parent.rpartition(".")[0]
    return parent


def kept_places(
    model: nn.Module, groups: tuple[ChannelGroup, ...], kept: Kept
) -> dict[str, Places]:
    """What stays of every module that any group cuts, by module name."""
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


def parameter_axis(parameter: Tensor) -> int:
    """Axis of a free parameter or buffer that carries channels: the last longer than one."""
    return max((axis for axis, size in enumerate(parameter.shape) if size > 1), default=0)


def weight_axis(layer: nn.Module, axis: Axis) -> int:
    """Axis of a layer's weight that runs over its outputs or inputs."""
    return int((axis == "in") != isinstance(layer, TRANSPOSED))


def channel_axis(layer: Any, x: Tensor) -> int:
    """Axis of a layer's input or output that runs over channels, also where images come alone."""
    places = 0 if isinstance(layer, nn.Linear) else len(layer.kernel_size)
    return x.dim() - 1 - places


def _cut_part(model: nn.Module, name: str, places: Places) -> None:
    part = find_part(model, name)
    if isinstance(part, nn.Module):
        become(part, cut_module(part, places.out, places.inputs))
        return
    assert places.out is not None
    smaller = part.detach().index_select(parameter_axis(part), places.out)
    if isinstance(part, nn.Parameter):
        smaller = nn.Parameter(smaller, part.requires_grad)
    parent, _, last = name.rpartition(".")
    owner = module_at(model, parent)
    setattr(owner, last, smaller)
    owner._non_persistent_buffers_set.discard(last)  # its code makes it whole; files need the rest


def cut_module(module: nn.Module, keep_out: Tensor | None, keep_in: Tensor | None) -> nn.Module:
    """A smaller copy of one module.

    Args:
        module: a module of a type `can_cut` knows.
        keep_out: (n,) output channels or features that stay, or None for all.
        keep_in: (n,) input channels that stay, or None for all.

    Raises:
        CompressError: this type of module cannot be cut.
    """
    for kinds, cut in _CUTTERS:
        if isinstance(module, kinds):
            return cut(module, keep_out, keep_in)
    raise CompressError(f"a {type(module).__name__} cannot be cut")


def can_cut(module: nn.Module | Tensor) -> bool:
    """Whether channels can be cut out of a module, or out of a free parameter or buffer."""
    if isinstance(module, LAYERS):
        whole = not isinstance(module, TRANSPOSED) or module.groups == 1
        return whole and "weight" in module._parameters  # else computed, as by unknown hooks
    return isinstance(module, (*NORMALIZATIONS, Tensor, nn.PReLU, ChannelMap, HeadProduct))


def _cut_convolution(module: Any, keep_out: Tensor | None, keep_in: Tensor | None) -> nn.Module:
    smaller = copy.copy(module)
    weight, bias = module.weight, module.bias
    if keep_out is not None:
        weight, bias = weight.index_select(0, keep_out), _selected(bias, keep_out)
        smaller.out_channels = len(keep_out)
    if module.groups > 1:  # whole groups go, a single channel each where it is depthwise
        smaller.groups = module.groups * smaller.out_channels // module.out_channels
        smaller.in_channels = module.in_channels * smaller.groups // module.groups
    elif keep_in is not None:
        weight = weight.index_select(1, keep_in)
        smaller.in_channels = len(keep_in)
    return _with_tensors(smaller, module, weight=weight, bias=bias)


def _selected(bias: Tensor | None, keep: Tensor) -> Tensor | None:
    return None if bias is None else bias.index_select(0, keep)


def _cut_transposed(module: Any, keep_out: Tensor | None, keep_in: Tensor | None) -> nn.Module:
    smaller = copy.copy(module)
    weight, bias = module.weight, module.bias
    if keep_out is not None:
        weight, bias = weight.index_select(1, keep_out), _selected(bias, keep_out)
        smaller.out_channels = len(keep_out)
    if keep_in is not None:
        weight = weight.index_select(0, keep_in)
        smaller.in_channels = len(keep_in)
    return _with_tensors(smaller, module, weight=weight, bias=bias)


def _cut_linear(module: Any, keep_out: Tensor | None, keep_in: Tensor | None) -> nn.Module:
    smaller = copy.copy(module)
    weight, bias = module.weight, module.bias
    if keep_out is not None:
        weight, bias = weight.index_select(0, keep_out), _selected(bias, keep_out)
        smaller.out_features = len(keep_out)
    if keep_in is not None:
        weight = weight.index_select(1, keep_in)
        smaller.in_features = len(keep_in)
    return _with_tensors(smaller, module, weight=weight, bias=bias)


def _cut_features(module: Any, keep_out: Tensor | None, keep_in: Tensor | None) -> nn.Module:
    """Cut a module that treats every channel alone: normalizations and PReLU."""
    keep = keep_out if keep_out is not None else keep_in
    assert keep is not None
    smaller = copy.copy(module)
    names = ("weight", "bias", "running_mean", "running_var")
    tensors = {
        name: tensor.index_select(-1, keep)
        for name in names
        if (tensor := getattr(module, name, None)) is not None
    }
    if isinstance(module, LAST_NORMS):
        smaller.normalized_shape = (*module.normalized_shape[:-1], len(keep))
    elif isinstance(module, nn.GroupNorm):
        smaller.num_channels = len(keep)
        smaller.num_groups = max(1, module.num_groups * len(keep) // module.num_channels)
    elif isinstance(module, nn.PReLU):
        smaller.num_parameters = len(keep)
    else:
        smaller.num_features = len(keep)
    return _with_tensors(smaller, module, **tensors)


def _cut_channel_map(module: Any, keep_out: Tensor | None, keep_in: Tensor | None) -> nn.Module:
    out = torch.arange(module.out_channels) if keep_out is None else keep_out
    inputs = torch.arange(module.in_channels) if keep_in is None else keep_in
    smaller: nn.Module = module.cut(out, inputs)
    return smaller.train(module.training)


def _cut_head_product(module: Any, keep_out: Tensor | None, keep_in: Tensor | None) -> nn.Module:
    del keep_in
    assert keep_out is not None
    smaller = copy.copy(module)
    smaller.width = len(keep_out)
    return _with_tensors(smaller, module)


def _with_tensors(smaller: Any, module: Any, **tensors: Tensor | None) -> nn.Module:
    """Give a shallow copy tables and tensors of its own."""
    parameters, buffers = dict(module._parameters), dict(module._buffers)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        uncut = any(tensor is table.get(name) for table in (parameters, buffers))
        value = tensor.detach().clone() if uncut else tensor.detach()
        if name in parameters:
            parameters[name] = nn.Parameter(value, parameters[name].requires_grad)
        else:
            buffers[name] = value
    vars(smaller).update(_parameters=parameters, _buffers=buffers, _modules=dict(module._modules))
    result: nn.Module = smaller
    return result


_Cutter = Callable[[Any, Tensor | None, Tensor | None], nn.Module]
_CUTTERS: Final[tuple[tuple[tuple[type[nn.Module], ...], _Cutter], ...]] = (
    (CONVOLUTIONS, _cut_convolution),
    (TRANSPOSED, _cut_transposed),
    ((nn.Linear,), _cut_linear),
    ((*NORMALIZATIONS, nn.PReLU), _cut_features),
    ((ChannelMap,), _cut_channel_map),
    ((HeadProduct,), _cut_head_product),
)
