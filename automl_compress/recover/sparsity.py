"""Sparsity training: penalties that drive channels towards zero before a search cuts them.

`ScalePenalty` is network slimming's L1 on BatchNorm scales (Liu et al. 2017, eq. 1, by the
subgradient). `GroupLasso` is the L2 norm of everything that a channel of a coupled group owns,
summed over the channels (Fang et al. 2023, DepGraph, section 3.3, without its per-channel
weights): it drives coupled layers to drop the same channels.

Both add their gradient after the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Protocol

import torch
from torch import Tensor, nn

from automl_compress.compress import Structure, trace
from automl_compress.compress.kinds import BATCH_NORMS, LAYERS, weight_axis
from automl_compress.errors import WorkloadError
from automl_compress.settings import Section

Method = Literal["bn-scales", "group-lasso"]
METHODS: Final = ("bn-scales", "group-lasso")
_TINY: Final = 1e-12


@dataclass(frozen=True)
class SparsitySettings:
    """What drives channels towards zero.

    Args:
        method: `bn-scales` or `group-lasso`, see `ScalePenalty` and `GroupLasso`.
        strength: of the penalty.
    """

    method: Method = "bn-scales"
    strength: float = 1e-4

    @classmethod
    def read(cls, section: Section) -> SparsitySettings:
        """The settings of a section, which stays open."""
        return cls(
            section.choice("method", METHODS, cls.method),  # type: ignore[arg-type]
            section.number("strength", float, cls.strength, low=0.0),
        )


class Penalty(Protocol):
    """A regulariser of a network's parameters."""

    def __call__(self) -> None:
        """Add its gradient to the parameters'."""

    def value(self) -> float:
        """Its present value, without its strength."""


class ScalePenalty:
    """`strength` times the sum of the absolute values of all BatchNorm scales that are trained.

    Args:
        network: the network in training.
        strength: above 0; Liu et al. use 1e-4 for VGG and 1e-5 for ResNet and DenseNet.

    Raises:
        WorkloadError: no BatchNorm of the network has scales that are trained.
    """

    def __init__(self, network: nn.Module, strength: float) -> None:
        self._strength = strength
        self._scales = [
            module.weight
            for module in network.modules()
            if isinstance(module, BATCH_NORMS)
            and module.weight is not None
            and module.weight.requires_grad
        ]
        if not self._scales:
            raise WorkloadError(
                "L1 on BatchNorm scales needs BatchNorm layers that are trained, but the network "
                "has none; set 'method' to group-lasso (--set method=group-lasso)"
            )

    @torch.no_grad()
    def __call__(self) -> None:
        """Add `strength * sign(scale)`."""
        used = [scale for scale in self._scales if scale.grad is not None]
        if used:
            gradients = [scale.grad for scale in used]
            torch._foreach_add_(gradients, torch._foreach_sign(used), alpha=self._strength)  # type: ignore[arg-type]

    def value(self) -> float:
        """Sum of the scales' absolute values."""
        return sum(float(scale.detach().abs().sum()) for scale in self._scales)


@dataclass(frozen=True)
class _Part:
    """One tensor's share in a group: which of its slices belong to which channel."""

    tensor: nn.Parameter
    axis: int
    positions: Tensor
    channels: Tensor

    def squares(self) -> Tensor:
        """(n,) squared norm of every slice."""
        others = [axis for axis in range(self.tensor.dim()) if axis != self.axis]
        squared = self.tensor.detach().pow(2)
        return (squared.sum(others) if others else squared)[self.positions]

    def add_gradient(self, factor: Tensor) -> None:
        """Add `factor[channel]` times each slice to the gradient."""
        if self.tensor.grad is None:
            return
        per_place = torch.zeros(self.tensor.shape[self.axis], device=self.tensor.device)
        per_place[self.positions] = factor[self.channels]
        shape = [1] * self.tensor.dim()
        shape[self.axis] = -1
        self.tensor.grad.add_(self.tensor.detach() * per_place.view(shape))


class GroupLasso:
    """`strength` times the sum over all channels of coupled groups of what they own, in L2 norm.

    Args:
        network: the network in training.
        structure: of the same network, from `compress.trace`.
        strength: above 0.

    Raises:
        WorkloadError: no group of the network can be cut.
    """

    def __init__(self, network: nn.Module, structure: Structure, strength: float) -> None:
        self._strength = strength
        self._groups: list[tuple[int, list[_Part]]] = []
        for group in structure.groups:
            if group.protected:
                continue
            parts: list[_Part] = []
            for member in group.members:
                found = _tensor(network, member.module, member.axis)
                if found is not None:
                    device = found[0].device
                    places = torch.from_numpy(member.positions).to(device)
                    channels = torch.from_numpy(member.channels).to(device)
                    parts.append(_Part(*found, places, channels))
            self._groups.append((group.channels, parts))
        if not any(parts for _, parts in self._groups):
            raise WorkloadError(
                "group lasso needs channel groups that can be cut, but the network has none; "
                "use another network"
            )

    def __call__(self) -> None:
        """Add `strength * w / |channel|` to every weight's gradient."""
        for channels, parts in self._groups:
            factor = self._strength / _norms(channels, parts).clamp(min=_TINY)
            for part in parts:
                part.add_gradient(factor)

    def value(self) -> float:
        """Sum of the channels' norms."""
        return sum(float(_norms(channels, parts).sum()) for channels, parts in self._groups)


def _norms(channels: int, parts: list[_Part]) -> Tensor:
    """(channels,) L2 norm of everything a channel owns."""
    device = parts[0].tensor.device if parts else torch.device("cpu")
    squares = torch.zeros(channels, device=device)
    for part in parts:
        squares.index_add_(0, part.channels, part.squares())
    return squares.sqrt()


def _tensor(network: nn.Module, name: str, axis: str) -> tuple[nn.Parameter, int] | None:
    """The weights of a group's member and their axis; None for what holds none."""
    try:
        module = network.get_submodule(name)
    except AttributeError:
        return None  # a free parameter
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    if isinstance(module, BATCH_NORMS):
        return weight, 0
    if not isinstance(module, LAYERS):
        return None
    if axis == "in" and getattr(module, "groups", 1) > 1:
        return None  # a depthwise layer's inputs are its outputs
    return weight, weight_axis(module, "out" if axis == "out" else "in")


def penalty_of(
    network: nn.Module, original: nn.Module, example_input: Tensor, settings: SparsitySettings
) -> Penalty:
    """The penalty that settings ask for.

    Args:
        network: the network in training.
        original: what it is a copy of; followed to find its channel groups.
        example_input: (1, ...) what it takes.
        settings: method and strength.

    Raises:
        WorkloadError: the network has nothing that could be penalised.
    """
    if settings.method == "bn-scales":
        return ScalePenalty(network, settings.strength)
    return GroupLasso(network, trace(original, example_input)[1], settings.strength)
