"""Trial cuts: whether a group of channels can really be cut.

Every group is cut once, and the smaller network must give the very outputs that the original
gives when no layer reads the removed channels any more. A group that fails is protected and
says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from automl_compress.compress.channel_maps import ZERO, ChannelMap
from automl_compress.compress.coupling import one_line, quiet
from automl_compress.compress.modules import find_part, share_copy
from automl_compress.compress.slicing import CONVOLUTIONS, can_cut, cut_channels, kept_places
from automl_compress.compress.structure import ChannelGroup

_NOISE = 5e-6
"""Difference over the largest output that rounding explains; ResNet-50 shows 1e-6."""
_TOLERANCE = 1e-4
"""Largest difference over the largest output, however much the group matters."""
_SHARE = 0.05
"""Largest difference over what not reading the channels changes."""


def tried_groups(
    model: nn.Module, example_input: Tensor, groups: list[ChannelGroup]
) -> Iterator[ChannelGroup]:
    """The groups again, those that cannot be cut protected with the reason."""
    generator = torch.Generator().manual_seed(0)
    probe = example_input
    if probe.is_floating_point():
        probe = torch.randn(probe.shape, generator=generator, dtype=probe.dtype)
    lively = _lively(model, generator)
    blind = share_copy(lively)
    with torch.no_grad(), quiet(), _Unmixed():
        whole = _tensors(blind(probe))
    maps = {name for name, m in model.named_modules() if isinstance(m, ChannelMap)}
    for group in groups:
        if group.name in maps:
            continue  # channels nobody writes: all of them come from the shortcut itself
        reason = group.protected or _obstacle(model, group)
        yield replace(group, protected=reason or _trial(lively, blind, probe, whole, group))


def _obstacle(model: nn.Module, group: ChannelGroup) -> str:
    """Why a group cannot be cut at all, without trying; empty when nothing is known."""
    if group.channels < 2:
        return "has a single channel"
    for member in group.members:
        part = find_part(model, member.module)
        if not can_cut(part):
            kind = type(part).__name__
            grouped = isinstance(part, CONVOLUTIONS) and part.groups > 1
            what = f"the grouped {kind}" if grouped else f"the {kind}"
            return f"{what} '{member.module}' cannot be cut"
        counts = np.bincount(member.channels, minlength=group.channels)
        if (counts != counts[0]).any() or counts[0] == 0:
            return f"'{member.module}' does not treat all channels alike"
    return ""


def _trial(
    model: nn.Module, blind: nn.Module, probe: Tensor, whole: list[Tensor], group: ChannelGroup
) -> str:
    """Why a trial cut fails; empty when the smaller network does what it must."""
    kept = np.arange(group.channels)[np.arange(group.channels) % 3 != 1]
    try:
        with torch.no_grad(), quiet(), _Unmixed():
            with _unread(blind, group, kept):
                expected = _tensors(blind(probe))
            smaller = cut_channels(model, kept_places(model, (group,), {group.name: kept}))
            actual = _tensors(smaller(probe))
    except Exception as reason:
        return f"a cut network does not run ({type(reason).__name__}: {one_line(reason)[:80]})"
    if [t.shape for t in actual] != [t.shape for t in expected]:
        return "its channels are the network's output"
    if not all(map(_close, actual, expected, whole)):
        return "its channels are read in a way that is not understood"
    return ""


def _lively(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """The network with random values in place of tensors whose values are all alike.

    Initial values, a BatchNorm's ones or a layer scale of 1e-6, would hide a wrong cut.
    """
    result = share_copy(model)
    for module in result.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                if tensor is None or not tensor.is_floating_point() or not _all_alike(tensor):
                    continue
                values = 0.5 + torch.rand(tensor.shape, generator=generator)
                values = (values - 1.0 if float(tensor.flatten()[0]) == 0 else values).to(tensor)
                is_parameter = isinstance(tensor, nn.Parameter)
                table[name] = nn.Parameter(values, False) if is_parameter else values
    return result


def _all_alike(tensor: Tensor) -> bool:
    return tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all())


class _Unmixed(TorchFunctionMode):
    """LayerNorm as its affine part alone: its mean over channels changes with every cut."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.layer_norm:
            return _affine(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _affine(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """`F.layer_norm` without the normalization; the same arguments under torch's own names."""
    del normalized_shape, eps
    scaled = input if weight is None else input * weight
    return scaled if bias is None else scaled + bias


@contextmanager
def _unread(model: nn.Module, group: ChannelGroup, kept: NDArray[np.int64]) -> Iterator[None]:
    """Every reader of a group is blind, inside, to the channels that are not kept."""
    gone = np.setdiff1d(np.arange(group.channels), kept)
    seeing: list[tuple[dict[str, Any], str, Any]] = []
    for member in group.members:
        if member.axis == "out":
            continue
        part = find_part(model, member.module)
        lost = torch.from_numpy(member.positions[np.isin(member.channels, gone)])
        if isinstance(part, ChannelMap):
            seeing.append((part._buffers, "sources", part.sources))
            unread = torch.isin(part.sources.long(), lost)
            part._buffers["sources"] = part.sources.masked_fill(unread, ZERO)
        elif isinstance(part, (*CONVOLUTIONS, nn.Linear)):
            seeing.append((part._parameters, "weight", part.weight))
            weight = part.weight.index_fill(1, lost, 0.0)
            part._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    try:
        yield
    finally:
        for table, name, tensor in seeing:
            table[name] = tensor


def _tensors(output: Any) -> list[Tensor]:
    """All tensors of a network's output, in a fixed order."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, list | tuple):
        return [tensor for item in output for tensor in _tensors(item)]
    return []


def _close(actual: Tensor, expected: Tensor, whole: Tensor) -> bool:
    """Whether a cut gives what it must, seen beside what the whole network gives."""
    if not expected.is_floating_point():
        return torch.equal(actual, expected)
    if not expected.numel():
        return True
    scale = max(float(expected.abs().max()), 1e-6)
    effect = float((expected - whole).abs().max())
    allowed = min(max(_NOISE * scale, _SHARE * effect), _TOLERANCE * scale)
    return float((actual - expected).abs().max()) <= allowed
