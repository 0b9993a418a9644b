"""What no training changes: what a network's factory froze, wherever it went since, and heads."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypeVar

from torch import nn

from automl_compress.compress.modules import trainable
from automl_compress.recover.training_mode import training_heads
from automl_compress.workload import Workload, unwrapped

M = TypeVar("M", bound=nn.Module)


def untrained_parts(workload: Workload) -> tuple[str, ...]:
    """Lines that say what of a workload's network no training changes; none where it all does."""
    frozen = "parameters that are not trained, as the factory froze them"
    resting = "parts that are not trained, as they run in training mode alone"
    heads = training_heads(workload.model, workload.example_input())
    found = {frozen: workload.fixed, resting: heads}
    return tuple(
        f"{what}: {len(names)}, such as '{min(names)}'" for what, names in found.items() if names
    )


def trainable_but(network: M, fixed: Collection[str]) -> M:
    """Let a network's parameters want gradients, but for those of some names; returns it."""
    trainable(network)
    for name, parameter in network.named_parameters():
        if name in fixed:
            parameter.requires_grad_(False)
    return network


def fixed_in(network: nn.Module, original: nn.Module, fixed: Collection[str]) -> frozenset[str]:
    """Names of the parameters, in a network as it was followed, that were fixed in the original.

    Following takes parallel training's wrapper away and makes attention of layers, whose names are
    new: `in_proj_weight` becomes the weights of `query`, `key` and `value`. What was made of
    several parameters is fixed if all of them were.

    Args:
        network: as `compress.trace` gives it.
        original: what it was made of.
        fixed: names in the original.
    """
    wrapped = {id(p): name in fixed for name, p in original.named_parameters()}
    before = {name: wrapped[id(p)] for name, p in unwrapped(original).named_parameters()}
    names = [name for name, _ in network.named_parameters()]
    gone = {name: is_fixed for name, is_fixed in before.items() if name not in names}
    return frozenset(name for name in names if before.get(name, _made_of_fixed(name, gone)))


def _made_of_fixed(name: str, gone: Mapping[str, bool]) -> bool:
    """Whether all was fixed that a new parameter's module, or the one around it, lost for it."""
    *path, last = name.split(".")
    for module in (path, path[:-1]):
        place = ".".join([*module, ""])
        found = [
            is_fixed
            for old, is_fixed in gone.items()
            if old.startswith(place) and last in old.removeprefix(place)
        ]
        if found:
            return all(found)
    return False
