"""Ranks of feature maps: which channels carry little, and which layers are sensitive.

Lin et al. 2020 (HRank): the rank of a channel's feature map, averaged over a few images, hardly
depends on which images they are, and channels of low rank can be cut. Yang et al. 2023
(Sensitive layers and reinforcement learning) count a layer's maps of low rank; layers with many
are sensitive, and are better left alone.

Maps are taken where layers read them, after normalization and activation, as HRank's code does.
Where several layers read a channel, as in a residual stream, the mean over them counts. Ranks are
given as shares of the largest possible, so that maps of different sizes can be averaged.

A linear layer that reads a flattened map or a sequence of tokens sees them as a square when their
number is one, and otherwise as a single row, whose rank is 1 unless it is zero everywhere.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress.calibration import layer_input
from automl_compress.compress.kinds import LAYERS
from automl_compress.compress.modules import find_part
from automl_compress.compress.structure import ChannelGroup, GroupMember, Structure
from automl_compress.errors import InputError

IMAGES: Final = 32
"""Images that ranks are averaged over; singular values are what takes the time."""
LOW_RANK: Final = 0.5
"""Maps below this share of the largest rank count as low."""


def hrank_importance(
    model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor | None, seed: int
) -> dict[str, NDArray[np.float64]]:
    """Expected rank of every channel's feature map.

    Args:
        model: the network, in evaluation mode.
        groups: channel groups.
        images: (n, ...) calibration images; the first `IMAGES` are used.
        seed: not used.

    Returns:
        By group name, (channels,) shares of the largest rank, in [0, 1].

    Raises:
        InputError: there are no images.
    """
    del seed
    if images is None or not len(images):
        raise InputError(
            "ranks of feature maps need calibration examples, but there are none; give some, or "
            "choose the criterion l1"
        )
    found: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    handles = [
        part.register_forward_pre_hook(_ranker(group, member, found), with_kwargs=True)
        for group in groups
        for member in group.members
        if member.axis == "in" and isinstance(part := find_part(model, member.module), LAYERS)
    ]
    try:
        with torch.no_grad():
            model(images[:IMAGES])
    finally:
        for handle in handles:
            handle.remove()
    return {
        group.name: np.mean(found[group.name], axis=0)
        if group.name in found
        else np.zeros(group.channels)
        for group in groups
    }


def layer_ranks(
    model: nn.Module, structure: Structure, images: Tensor
) -> dict[str, NDArray[np.float64]]:
    """Expected rank of every feature map of layers.

    Yang et al. 2023 look at single layers; here all layers that write a coupled group share its
    maps, because only their sum is ever read.

    Args:
        model: the traced network.
        structure: its structure.
        images: (n, ...) calibration images; the first `IMAGES` are used.

    Returns:
        By layer name, (out_channels,) shares of the largest rank, in [0, 1], NaN for maps of
        other groups. Layers of groups that cannot be cut are left out.

    Raises:
        InputError: there are no images.
    """
    layers = {layer.name: layer.out_channels for layer in structure.layers}
    groups = [group for group in structure.groups if not group.protected]
    ranks = hrank_importance(model, groups, images, 0)
    found: dict[str, NDArray[np.float64]] = {}
    for group in groups:
        for member in group.members:
            if member.axis == "out" and member.module in layers:
                of_layer = found.setdefault(member.module, np.full(layers[member.module], np.nan))
                of_layer[member.positions] = ranks[group.name][member.channels]
    return found


def _ranker(
    group: ChannelGroup, member: GroupMember, found: dict[str, list[NDArray[np.float64]]]
) -> Callable[..., None]:
    by_channel = torch.from_numpy(member.by_channel)

    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        x = layer_input(inputs, named)
        if isinstance(module, nn.Linear):
            places = member.places_per_channel(group.channels)
            values = x[..., by_channel].reshape(len(x), -1, group.channels, places)
            maps = _squares(values.transpose(1, 2).flatten(2))
        else:
            maps = x[:, by_channel]
        found[group.name].append(_expected_ranks(maps, group.channels))

    return hook


def _squares(rows: Tensor) -> Tensor:
    """(n, channels, values) as (n, channels, side, side), or as a single row."""
    side = math.isqrt(rows.shape[2])
    shape = (side, side) if side**2 == rows.shape[2] else (1, rows.shape[2])
    return rows.reshape(*rows.shape[:2], *shape)


def _expected_ranks(maps: Tensor, channels: int) -> NDArray[np.float64]:
    """(channels,) mean share of the largest rank of (n, channels * maps per channel, ...) maps."""
    matrices = maps.float() if maps.dim() == 4 else maps.float().reshape(*maps.shape[:2], 1, -1)
    ranks = torch.linalg.matrix_rank(matrices).double() / min(matrices.shape[2:])
    expected: NDArray[np.float64] = ranks.reshape(len(maps), channels, -1).mean(dim=(0, 2)).numpy()
    return expected
