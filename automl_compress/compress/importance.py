"""Which channels of a group matter least.

A criterion scores every channel of a group; a cut keeps the highest scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress.modules import find_part
from automl_compress.compress.slicing import CONVOLUTIONS
from automl_compress.compress.structure import ChannelGroup, GroupMember

Criterion = Callable[[nn.Module, ChannelGroup], NDArray[np.float64]]
"""Scores (channels,) of one group of a network; higher matters more."""


def l1_group_importance(model: nn.Module, group: ChannelGroup) -> NDArray[np.float64]:
    """L1 norm of all weights that write or read a channel, each layer counted alike.

    Li et al. 2017 (Pruning filters for efficient ConvNets) score a filter by its L1 norm; Fang
    et al. 2023 (DepGraph) sum over the coupled layers. Each layer's norms are divided by their
    mean, so that a wide layer does not outvote a narrow one.

    Returns:
        (channels,) scores, mean 1 unless all weights are zero.
    """
    scores = np.zeros(group.channels)
    counted = 0
    for member in group.members:
        norms = _l1_norms(find_part(model, member.module), member, group.channels)
        if norms is not None and norms.mean() > 0:
            scores += norms / norms.mean()
            counted += 1
    return scores / max(1, counted)


def _l1_norms(
    module: nn.Module | Tensor, member: GroupMember, channels: int
) -> NDArray[np.float64] | None:
    """(channels,) L1 norm of a layer's weights per channel; None for modules without weights."""
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return None
    weight = module.weight.detach().abs().flatten(2) if module.weight.dim() > 2 else (
        module.weight.detach().abs()[:, :, None]
    )  # fmt: skip
    axis = 0 if member.axis == "out" else 1
    per_place = weight.sum(dim=[d for d in range(3) if d != axis]).double().numpy()
    norms = np.zeros(channels)
    np.add.at(norms, member.channels, per_place[member.positions])
    return norms


CRITERIA: Final[dict[str, Criterion]] = {"l1": l1_group_importance}


def channel_order(
    model: nn.Module, groups: tuple[ChannelGroup, ...], criterion: Criterion
) -> dict[str, NDArray[np.int64]]:
    """By group name, (channels,) its channels from the most to the least important.

    Ties go to the channel with the lower number, so the order depends on the weights only.
    """
    with torch.no_grad():
        return {
            group.name: np.argsort(-criterion(model, group), kind="stable").astype(np.int64)
            for group in groups
            if not group.protected
        }
