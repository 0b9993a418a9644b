"""What a cut network must compute: a whole one in which nothing reads the channels that go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from automl_compress.compress.attention import HeadScores
from automl_compress.compress.channel_maps import ZERO, ChannelMap
from automl_compress.compress.kinds import LAST_NORMS, LAYERS, weight_axis
from automl_compress.compress.modules import find_part, share_copy
from automl_compress.compress.places import Places, axis_size


def blind_copy(model: nn.Module, places: Mapping[str, Places]) -> tuple[nn.Module, PartialNorms]:
    """The whole network, in which no layer reads the channels that go.

    Args:
        model: not changed.
        places: what stays of every module.

    Returns:
        The copy, and what its normalizations must run in to leave those channels out.
    """
    blind = share_copy(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    partial: dict[int, Tensor] = {}
    for name, stays in places.items():
        part = find_part(blind, name)
        if isinstance(part, (*LAST_NORMS, nn.GroupNorm)) and stays.out is not None:
            if part.weight is None:
                ones = like.new_ones(axis_size(model, name, "out"))
                part._parameters["weight"] = nn.Parameter(ones, requires_grad=False)
            partial[id(part.weight)] = stays.out
        elif isinstance(part, HeadScores):
            part.read = stays.out
        elif isinstance(part, ChannelMap) and stays.inputs is not None:
            unread = ~torch.isin(part.sources.long(), stays.inputs)
            part._buffers["sources"] = part.sources.masked_fill(unread, ZERO)
        elif isinstance(part, LAYERS) and stays.inputs is not None:
            axis = weight_axis(part, "in")
            weight = torch.zeros_like(part.weight)
            weight.index_copy_(axis, stays.inputs, part.weight.index_select(axis, stays.inputs))
            part._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    return blind, PartialNorms(partial)


class PartialNorms(TorchFunctionMode):
    """Normalizations over channels that leave some out, known by their weights' identity."""

    def __init__(self, kept: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.layer_norm:
            return self._layer_norm(*args, **(kwargs or {}))
        if func is F.rms_norm:
            return self._rms_norm(*args, **(kwargs or {}))
        if func is F.group_norm:
            return self._group_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _layer_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        kept = self._kept.get(id(weight))
        if kept is None or weight is None:
            return F.layer_norm(input, normalized_shape, weight, bias, eps)
        bias = None if bias is None else bias[kept]
        some = F.layer_norm(input[..., kept], (len(kept),), weight[kept], bias, eps)
        return torch.zeros_like(input).index_copy(-1, kept, some)

    def _rms_norm(
        self,
        input: Tensor,
        normalized_shape: Any,
        weight: Tensor | None = None,
        eps: float | None = None,
    ) -> Tensor:
        kept = self._kept.get(id(weight))
        if kept is None or weight is None:
            return F.rms_norm(input, normalized_shape, weight, eps)
        some = F.rms_norm(input[..., kept], [len(kept)], weight[kept], eps)
        return torch.zeros_like(input).index_copy(-1, kept, some)

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        kept = self._kept.get(id(weight))
        if kept is None or weight is None:
            return F.group_norm(input, num_groups, weight, bias, eps)
        bias = None if bias is None else bias[kept]
        groups = max(1, num_groups * len(kept) // input.shape[1])
        some = F.group_norm(input[:, kept], groups, weight[kept], bias, eps)
        return torch.zeros_like(input).index_copy(1, kept, some)
