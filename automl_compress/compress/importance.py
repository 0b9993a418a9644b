"""Which channels of a group matter least: criteria by name, and the order they give.

A criterion scores every channel of every group; a cut keeps the highest scores. Scores compare
channels of one group only: how many stay is the policy's decision, never a threshold's. Coupled
layers are scored together; what stands for a channel in them is said at each criterion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress.feature_ranks import hrank_importance
from automl_compress.compress.kinds import BATCH_NORMS, LAYERS, weight_axis
from automl_compress.compress.modules import find_part, own_copy
from automl_compress.compress.structure import ChannelGroup, GroupMember
from automl_compress.compress.taylor import taylor_importance
from automl_compress.errors import InputError
from automl_compress.settings import shown
from automl_compress.user_code import check_known_or_own, is_factory, resolve, user_code
from automl_compress.workload import CLASSIFICATION, Task

Scores = dict[str, NDArray[np.float64]]
"""By group name, (channels,) scores; higher matters more."""

Criterion = Callable[[nn.Module, Sequence[ChannelGroup], Tensor | None, int], Scores]
"""Scores the groups of a network, given calibration images (or None) and a seed."""

_GroupScore = Callable[[nn.Module, ChannelGroup], NDArray[np.float64]]


def l1_group_importance(model: nn.Module, group: ChannelGroup) -> NDArray[np.float64]:
    """L1 norm of all weights that write or read a channel, each layer counted alike.

    Li et al. 2017 (Pruning filters for efficient ConvNets) score a filter by its L1 norm; Fang
    et al. 2023 (DepGraph) sum over the coupled layers. Each layer's norms are divided by their
    mean, so that a wide layer does not outvote a narrow one.

    Returns:
        (channels,) scores, mean 1 unless all weights are zero.
    """
    return _mean_of_layers(model, group, 1)


def l2_group_importance(model: nn.Module, group: ChannelGroup) -> NDArray[np.float64]:
    """L2 norm of all weights that write or read a channel, each layer counted alike.

    The group norm of Fang et al. 2023 (DepGraph, eq. 4): squares are summed over the coupled
    layers. Deviation: each layer's sums are divided by their mean, as in `l1_group_importance`.

    Returns:
        (channels,) scores, mean square 1 unless all weights are zero.
    """
    return np.sqrt(_mean_of_layers(model, group, 2))


def bn_scale_importance(model: nn.Module, group: ChannelGroup) -> NDArray[np.float64]:
    """Absolute scale a channel gets from BatchNorm, averaged over the group's BatchNorms.

    Liu et al. 2017 (network slimming). Deviations: the network need not have been trained with
    the L1 penalty on scales, and scales are compared within a group, not across the network. A
    group without a BatchNorm that scales falls back to `l1_group_importance`.
    """
    scales = [
        member.per_channel(part.weight.detach().abs().double().numpy(), group.channels)
        for member in group.members
        if isinstance(part := find_part(model, member.module), BATCH_NORMS)
        and part.weight is not None
    ]
    return np.mean(scales, axis=0) if scales else l1_group_importance(model, group)


def fpgm_importance(model: nn.Module, group: ChannelGroup) -> NDArray[np.float64]:
    """Distance of a channel's filter to all other filters: those amid the others are redundant.

    He et al. 2019 (filter pruning via geometric median, eq. 6): the sum of Euclidean distances
    to all filters of the layer. In coupled layers it is the mean over all layers that write the
    channels, each divided by its own mean; readers have no say, as in the paper.

    Returns:
        (channels,) scores, mean 1 unless all filters are equal.
    """
    scores = np.zeros(group.channels)
    counted = 0
    for member in group.members:
        part = find_part(model, member.module)
        if member.axis == "out" and isinstance(part, LAYERS):
            weight = part.weight.detach().movedim(weight_axis(part, "out"), 0)
            filters = weight[member.by_channel].reshape(group.channels, -1).double()
            distances = torch.cdist(filters, filters).sum(dim=1).numpy()
            scores += distances / max(distances.mean(), 1e-300)
            counted += 1
    return scores / max(1, counted)


def random_importance(
    model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor | None, seed: int
) -> Scores:
    """Chance, the line every criterion must beat; a group's scores depend on seed and name."""
    del model, images
    return {
        group.name: np.random.default_rng([seed, *group.name.encode()]).random(group.channels)
        for group in groups
    }


def _mean_of_layers(model: nn.Module, group: ChannelGroup, power: int) -> NDArray[np.float64]:
    """(channels,) mean over layers of the summed |weight|^power, each divided by its mean."""
    scores = np.zeros(group.channels)
    counted = 0
    for member in group.members:
        sums = _weight_sums(find_part(model, member.module), member, group.channels, power)
        if sums is not None and sums.mean() > 0:
            scores += sums / sums.mean()
            counted += 1
    return scores / max(1, counted)


def _weight_sums(
    module: nn.Module | Tensor, member: GroupMember, channels: int, power: int
) -> NDArray[np.float64] | None:
    """(channels,) summed |weight|^power of a layer; None for modules without weights."""
    if not isinstance(module, LAYERS):
        return None
    weight = module.weight.detach().abs().pow(power).reshape(*module.weight.shape[:2], -1)
    others = (1 - weight_axis(module, member.axis), 2)
    per_place = weight.sum(dim=others).double().numpy()
    return member.per_channel(per_place, channels)


def _of_weights(score: _GroupScore) -> Criterion:
    """The criterion that scores each group by itself, from weights alone."""

    def criterion(
        model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor | None, seed: int
    ) -> Scores:
        del images, seed
        return {group.name: score(model, group) for group in groups}

    return criterion


CRITERIA: Final[dict[str, Criterion]] = {
    "l1": _of_weights(l1_group_importance),
    "l2": _of_weights(l2_group_importance),
    "bn_scale": _of_weights(bn_scale_importance),
    "fpgm": _of_weights(fpgm_importance),
    "taylor": taylor_importance,
    "hrank": hrank_importance,
    "random": random_importance,
}


def is_own_criterion(name: str) -> bool:
    """Whether a name is that of a criterion of the user's own."""
    return name not in CRITERIA and is_factory(name)


def check_criterion(name: str) -> None:
    """Check that a name is in `CRITERIA` or written as a callable; nothing is imported.

    Raises:
        InputError: it is neither.
    """
    check_known_or_own("criterion", name, CRITERIA)


def _own_criterion(name: str) -> Criterion:
    """The user's function, whose failures become one line; it is given a network of its own."""
    score = resolve(name)

    def criterion(
        model: nn.Module, groups: Sequence[ChannelGroup], images: Tensor | None, seed: int
    ) -> Scores:
        with user_code(f"criterion '{name}'"):
            scores = score(own_copy(model), groups, images, seed)
            return {group: np.asarray(found, dtype=float) for group, found in scores.items()}

    return criterion


def find_criterion(criterion: str | Criterion, task: Task = CLASSIFICATION) -> Criterion:
    """The criterion of a name; a criterion itself is given back.

    Args:
        criterion: a name in `CRITERIA`, `package.module:callable`, or a criterion.
        task: what the network does, for criteria that ask for its loss.

    Raises:
        InputError: there is none of that name.
    """
    if not isinstance(criterion, str):
        if not callable(criterion):
            raise InputError(
                f"a criterion must be a name or a function, but is {shown(criterion)}; correct it"
            )
        return criterion
    check_criterion(criterion)
    if is_own_criterion(criterion):
        return _own_criterion(criterion)
    found = CRITERIA[criterion]
    return partial(taylor_importance, task=task) if found is taylor_importance else found


def channel_order(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    criterion: Criterion,
    images: Tensor | None = None,
    seed: int = 0,
) -> dict[str, NDArray[np.int64]]:
    """By group name, (channels,) its channels from the most to the least important.

    Ties go to the channel with the lower number. Protected groups have no order.

    Args:
        model: the traced network.
        groups: its groups.
        criterion: scores them.
        images: (n, ...) calibration images, or None.
        seed: for criteria that draw.

    Raises:
        InputError: the criterion needs images and there are none, or its scores are not one
            finite number per channel.
    """
    cuttable = [group for group in groups if not group.protected]
    if not cuttable:
        return {}
    with torch.no_grad():
        scores = criterion(model, cuttable, images, seed)
    if not isinstance(scores, Mapping):
        raise InputError(
            f"a criterion must give scores by the group's name, but gave {shown(scores)}; correct "
            "the criterion"
        )
    for group in cuttable:
        found = np.asarray(scores.get(group.name))
        if found.shape != (group.channels,) or not np.isfinite(found).all():
            raise InputError(
                f"a criterion must give {group.channels} finite scores for group '{group.name}', "
                f"but gave an array of shape {found.shape}; correct the criterion"
            )
    return {
        group.name: np.argsort(-scores[group.name], kind="stable").astype(np.int64)
        for group in cuttable
    }
