"""Cutting channels out of modules: new, smaller modules from kept positions.

Nothing is changed in place. Tensors that are not cut are shared with the original network.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from automl_compress.compress.attention import HeadProduct
from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.compress.kinds import (
    LAST_NORMS,
    LAYERS,
    NORMALIZATIONS,
    parameter_axis,
    weight_axis,
)
from automl_compress.compress.modules import become, find_part, module_at, share_copy
from automl_compress.compress.places import Places
from automl_compress.compress.widths import followed_numbers
from automl_compress.errors import CompressError


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


def _cut_layer(module: Any, keep_out: Tensor | None, keep_in: Tensor | None) -> nn.Module:
    """Cut a convolution, plain or transposed, or a linear layer."""
    smaller = copy.copy(module)
    weight, bias = module.weight, module.bias
    kind = "features" if isinstance(module, nn.Linear) else "channels"
    if keep_out is not None:
        weight = weight.index_select(weight_axis(module, "out"), keep_out)
        bias = None if bias is None else bias.index_select(0, keep_out)
        setattr(smaller, f"out_{kind}", len(keep_out))
    if getattr(module, "groups", 1) > 1:  # whole groups go, a single channel each if depthwise
        smaller.groups = module.groups * smaller.out_channels // module.out_channels
        smaller.in_channels = module.in_channels * smaller.groups // module.groups
    elif keep_in is not None:
        weight = weight.index_select(weight_axis(module, "in"), keep_in)
        setattr(smaller, f"in_{kind}", len(keep_in))
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
    (LAYERS, _cut_layer),
    ((*NORMALIZATIONS, nn.PReLU), _cut_features),
    ((ChannelMap,), _cut_channel_map),
    ((HeadProduct,), _cut_head_product),
)
