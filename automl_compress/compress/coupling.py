"""Which channels are coupled, as Torch-Pruning's dependency graph sees it.

This is the only use of that library (Fang et al. 2023, DepGraph). It is not trusted: `trial`
cuts every group it finds and compares outputs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn

from automl_compress.compress.channel_maps import ChannelMap
from automl_compress.compress.modules import become
from automl_compress.compress.slicing import CONVOLUTIONS
from automl_compress.compress.structure import Axis, ChannelGroup, GroupMember, LayerShape


def coupled_groups(
    model: nn.Module, example_input: Tensor, layers: tuple[LayerShape, ...]
) -> list[ChannelGroup]:
    """Groups in the network's order; every layer belongs to one, if only to a protected one."""
    try:
        groups = _followed_groups(model, example_input)
        reason = "its channels could not be followed"
    except Exception as error:
        groups = []
        reason = f"the network could not be followed ({type(error).__name__}: {one_line(error)})"
    written = {name for group in groups for name in group.writers}
    missing = [layer for layer in layers if layer.name not in written]
    groups += [ChannelGroup(layer.name, layer.out_channels, (), reason) for layer in missing]
    order = {name: place for place, (name, _) in enumerate(model.named_modules())}
    return sorted(groups, key=lambda group: order[group.name])


def _followed_groups(model: nn.Module, example_input: Tensor) -> list[ChannelGroup]:
    followed = copy.deepcopy(model).requires_grad_(True)
    for module in list(followed.modules()):
        if isinstance(module, ChannelMap):
            become(module, module.as_convolution())
    graph = torch_pruning.DependencyGraph()
    with torch.enable_grad(), quiet():
        graph.build_dependency(followed, example_inputs=example_input, verbose=False)
        names = {module: name for name, module in followed.named_modules()}
        names.update({p: name for name, p in followed.named_parameters()})
        found = [_group(graph, names, raw) for raw in graph.get_all_groups()]
    return [group for group in found if group is not None]


def _group(graph: Any, names: dict[Any, str], raw: Any) -> ChannelGroup | None:
    """One of Torch-Pruning's groups in our terms; None when no layer writes it."""
    members: dict[tuple[str, Axis], GroupMember] = {}
    for item in raw:
        module = item.dep.target.module
        if module not in names or _has_one_slope(module):
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
    return ChannelGroup(layers[0], len(raw[0].idxs), ordered) if layers else None


def _has_one_slope(module: Any) -> bool:
    """Whether this is a PReLU that treats all channels alike, so that no cut concerns it."""
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings of other libraries inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def one_line(reason: BaseException) -> str:
    """An error's message in one line, or its type where it has none."""
    return " ".join(str(reason).split()) or type(reason).__name__
