"""Prune a little, train a little: the policies and epochs on the way to a small network.

One cut to a small network leaves little of what the original knew. Han et al. 2015 and Li et al.
2017 cut in steps and train in between, so that what goes next is chosen by a network that has
adapted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from automl_compress.errors import InputError
from automl_compress.space import Policy
from automl_compress.space.genes import ACTIVATION_BITS, WEIGHT_BITS

_WHOLE: Final = {"weight_bits": WEIGHT_BITS[-1], "activation_bits": ACTIVATION_BITS[-1]}
"""Bits that change a network least."""


def policies_towards(policy: Policy, channels: Mapping[str, int], count: int) -> tuple[Policy, ...]:
    """Policies whose genes go in equal steps from the original network to a policy.

    Args:
        policy: the last of them.
        channels: of every channel group of the original network.
        count: how many, 1 or more.
    """
    return (*(_on_the_way(policy, channels, i / count) for i in range(1, count)), policy)


def _on_the_way(policy: Policy, channels: Mapping[str, int], share: float) -> Policy:
    """Each gene at a share of its way, in [0, 1]."""
    genes: dict[str, Any] = {}
    for name, value in policy.items():
        kind, _, target = name.partition(":")
        if kind == "kernel_sparsity":
            genes[name] = share * value
        else:
            whole = _WHOLE[kind] if kind in _WHOLE else channels[target]
            genes[name] = round(whole + share * (value - whole))
    return Policy(genes)


def without_bits(policy: Policy) -> Policy:
    """The policy that cuts as this one does and rounds nothing."""
    return Policy({name: v for name, v in policy.items() if name.partition(":")[0] not in _WHOLE})


def epochs_of_stages(epochs: int, stages: int) -> tuple[int, ...]:
    """Epochs of every stage: half of them for the last, the rest in equal parts.

    Raises:
        InputError: there are fewer epochs than stages.
    """
    if stages > epochs:
        raise InputError(
            f"'stages' must be at most the number of epochs, {epochs}, but is {stages}; lower it "
            "or give more epochs"
        )
    if stages == 1:
        return (epochs,)
    early = max(1, epochs // 2 // (stages - 1))
    return (*[early] * (stages - 1), epochs - early * (stages - 1))
