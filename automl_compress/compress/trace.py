"""Following a network: which channels are coupled, what the layers cost.

Couplings come from Torch-Pruning's dependency graph (Fang et al. 2023, DepGraph), the only use
of that library. It is not trusted: every group is cut on trial, and the smaller network must
give the very outputs the original gives when the removed channels are no longer read. A group
that fails is protected and says why.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from automl_compress.compress.channel_maps import ChannelMap, replace_channel_maps
from automl_compress.compress.slicing import (
    BATCH_NORMS,
    CONVOLUTIONS,
    can_cut,
    cut_channels,
    find_part,
    parameter_axis,
    share_copy,
)
from automl_compress.compress.structure import (
    Axis,
    ChannelGroup,
    GroupMember,
    LayerShape,
    StoredPart,
    Structure,
)
from automl_compress.errors import CompressError, TraceError

FLOAT_BYTES = 4
MAP_BYTES = 2

_MIXING = (nn.LayerNorm,)  # modules that mix channels, so that removing one changes the others
_TOLERANCE = 1e-3


def trace(model: nn.Module, example_input: Tensor) -> tuple[nn.Module, Structure]:
    """Follow a network once.

    Args:
        model: any network; not changed.
        example_input: (1, channels, height, width), or whatever the network takes.

    Returns:
        A frozen copy in evaluation mode, whose parameter-free channel shortcuts are replaced by
        `ChannelMap` modules, and its structure.

    Raises:
        TraceError: the network cannot be copied, run or followed.
    """
    working = _working_copy(model)
    example = example_input.detach()
    try:
        replace_channel_maps(working, example)
        layers, other_macs = _measure_layers(working, example)
        groups = _coupled_groups(working, example)
    except CompressError:
        raise
    except Exception as reason:
        raise TraceError(
            f"the network must run on its example input of shape {tuple(example.shape)} and be "
            f"followed, but failed with {type(reason).__name__}: {_one_line(reason)}; "
            "check the model and the input's shape"
        ) from reason
    tried = tuple(_tried(working, example, groups))
    stored = tuple(_stored_parts(working, layers))
    return working, Structure(tried, layers, stored, other_macs)


def _working_copy(model: nn.Module) -> nn.Module:
    try:
        working = copy.deepcopy(model)
    except Exception as reason:
        raise TraceError(
            f"a network must be copyable, but copying failed with {type(reason).__name__}: "
            f"{_one_line(reason)}; remove handles and locks from it"
        ) from reason
    working.eval().requires_grad_(False)
    for module in working.modules():
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]  # in-place operations hide the graph from its tracer
    return working


def _measure_layers(model: nn.Module, example_input: Tensor) -> tuple[tuple[LayerShape, ...], int]:
    """Shapes of all layers that run, and the multiply-accumulates of everything else."""
    positions: dict[str, int] = defaultdict(int)
    handles = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _: tuple[Any, ...], output: Tensor) -> None:
            channels = output.shape[1] if isinstance(module, CONVOLUTIONS) else output.shape[-1]
            positions[name] += output.numel() // (channels * len(example_input))

        return hook

    named = {n: m for n, m in model.named_modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))}
    for name, module in named.items():
        handles.append(module.register_forward_hook(watch(name)))
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            model(example_input)
    finally:
        for handle in handles:
            handle.remove()
    layers = tuple(_layer_shape(n, m, positions[n]) for n, m in named.items() if n in positions)
    inside = sum(
        s.positions * s.kernel * s.out_channels * (s.in_channels // s.groups) for s in layers
    )
    total = counter.get_total_flops() // 2 // len(example_input)
    return layers, max(0, total - inside)


def _layer_shape(name: str, module: Any, positions: int) -> LayerShape:
    linear = isinstance(module, nn.Linear)
    return LayerShape(
        name=name,
        kind=type(module).__name__,
        out_channels=module.out_features if linear else module.out_channels,
        in_channels=module.in_features if linear else module.in_channels,
        groups=1 if linear else module.groups,
        kernel=1 if linear else int(np.prod(module.kernel_size)),
        positions=positions,
        bias=module.bias is not None,
    )


def _coupled_groups(model: nn.Module, example_input: Tensor) -> list[ChannelGroup]:
    """Groups as Torch-Pruning sees them, in the network's order."""
    followed = copy.deepcopy(model).requires_grad_(True)
    for name, module in list(followed.named_modules()):
        if isinstance(module, ChannelMap):
            followed.set_submodule(name, module.as_convolution())
    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad(), _quiet():
        graph.build_dependency(followed, example_inputs=example_input, verbose=False)
        names = {module: name for name, module in followed.named_modules()}
        names.update({p: name for name, p in followed.named_parameters()})
        found = [_group(graph, names, raw) for raw in graph.get_all_groups()]
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    groups = [group for group in found if group is not None]
    return sorted(groups, key=lambda group: order.get(group.name, len(order)))


def _group(graph: Any, names: dict[Any, str], raw: Any) -> ChannelGroup | None:
    """One of Torch-Pruning's groups in our terms; None when no layer writes it."""
    channels = len(raw[0].idxs)
    members: dict[tuple[str, Axis], GroupMember] = {}
    for item in raw:
        module = item.dep.target.module
        if module not in names:
            continue
        axis: Axis = "out" if graph.is_out_channel_pruning_fn(item.dep.handler) else "in"
        positions = np.asarray(item.idxs, dtype=np.int64)
        roots = np.asarray(item.root_idxs, dtype=np.int64)
        members.setdefault(
            (names[module], axis), GroupMember(names[module], axis, positions, roots)
        )
    order = {name: place for place, name in enumerate(names.values())}
    ordered = tuple(sorted(members.values(), key=lambda m: (order[m.module], m.axis == "in")))
    by_name = {name: module for module, name in names.items()}
    layers = [
        member.module
        for member in ordered
        if member.axis == "out" and isinstance(by_name[member.module], (*CONVOLUTIONS, nn.Linear))
    ]
    return ChannelGroup(layers[0], channels, ordered) if layers else None


def _tried(
    model: nn.Module, example_input: Tensor, groups: list[ChannelGroup]
) -> Iterator[ChannelGroup]:
    """The groups again, those that cannot be cut protected with the reason."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(example_input.shape, generator=generator, dtype=example_input.dtype)
    maps = {name for name, m in model.named_modules() if isinstance(m, ChannelMap)}
    for group in groups:
        if group.name in maps:
            continue  # channels nobody writes: all of them come from the shortcut itself
        reason = _obstacle(model, group) or _trial(model, probe, group)
        yield replace(group, protected=reason)


def _obstacle(model: nn.Module, group: ChannelGroup) -> str:
    """Why a group cannot be cut at all, without trying; empty when nothing is known."""
    if group.channels < 2:
        return "has a single channel"
    for member in group.members:
        part = find_part(model, member.module)
        if not can_cut(part):
            kind = type(part).__name__
            grouped = isinstance(part, CONVOLUTIONS)
            what = f"the grouped {kind}" if grouped else f"the {kind}"
            return f"{what} '{member.module}' cannot be cut"
        counts = np.bincount(member.channels, minlength=group.channels)
        if (counts != counts[0]).any() or counts[0] == 0:
            return f"'{member.module}' does not treat all channels alike"
    return ""


def _trial(model: nn.Module, probe: Tensor, group: ChannelGroup) -> str:
    """Why a trial cut fails; empty when the smaller network does what it must."""
    kept = np.arange(group.channels)[np.arange(group.channels) % 3 != 1]
    try:
        with torch.no_grad(), _quiet():
            expected = _tensors(_unread(model, group, kept)(probe))
            smaller = cut_channels(model, (group,), {group.name: kept})
            actual = _tensors(smaller(probe))
    except Exception as reason:
        return f"a cut network does not run ({type(reason).__name__}: {_one_line(reason)[:80]})"
    if [t.shape for t in actual] != [t.shape for t in expected]:
        return "its channels are the network's output"
    mixing = any(isinstance(find_part(model, m.module), _MIXING) for m in group.members)
    if not mixing and not all(map(_close, actual, expected)):
        return "its channels are read in a way that is not understood"
    return ""


def _unread(model: nn.Module, group: ChannelGroup, kept: Any) -> nn.Module:
    """The uncut network with every reader of a group blind to the channels not kept."""
    result = share_copy(model)
    gone = np.setdiff1d(np.arange(group.channels), kept)
    for member in group.members:
        part = find_part(result, member.module)
        lost = torch.from_numpy(member.positions[np.isin(member.channels, gone)])
        if isinstance(part, ChannelMap) and member.axis == "in":
            sources = part.sources.clone()
            sources[torch.isin(sources.long(), lost)] = -1
            part._buffers["sources"] = sources
        elif isinstance(part, ChannelMap):
            continue
        elif isinstance(part, (*CONVOLUTIONS, nn.Linear)) and member.axis == "in":
            weight = part.weight.detach().clone()
            weight[:, lost] = 0.0
            part._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    return result


def _stored_parts(model: nn.Module, layers: tuple[LayerShape, ...]) -> Iterator[StoredPart]:
    """Everything outside the layers that holds values; step counters of BatchNorm are not."""
    layer_names = {layer.name for layer in layers}
    for name, module in model.named_modules():
        if name in layer_names:
            continue
        if isinstance(module, ChannelMap):
            yield StoredPart(name, module.out_channels, 0, MAP_BYTES)
            continue
        normalizes = isinstance(module, (*BATCH_NORMS, nn.LayerNorm, nn.PReLU))
        for last, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or (tensor.dim() == 0 and not tensor.is_floating_point()):
                continue
            own = name if normalizes else f"{name}.{last}".lstrip(".")
            channels = max(1, tensor.shape[parameter_axis(tensor)] if tensor.dim() else 1)
            values = tensor.numel() // channels
            yield StoredPart(
                own, channels, values * (last in module._parameters), values * FLOAT_BYTES
            )


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of a network's output, in a fixed order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _close(a: Tensor, b: Tensor) -> bool:
    scale = max(float(b.abs().max()), 1e-6) if b.numel() else 1.0
    return bool(torch.isfinite(a).all()) and float((a - b).abs().max()) <= _TOLERANCE * scale


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _one_line(reason: BaseException) -> str:
    return " ".join(str(reason).split()) or type(reason).__name__
