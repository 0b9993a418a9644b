"""Stochastic gradient descent with Nesterov momentum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Descent:
    """Moves a network's parameters against their gradients, as `torch.optim.SGD` does.

    With Nesterov momentum (Sutskever et al. 2013), and with weight decay of all parameters but
    vectors. An optimizer of `torch.optim` loads PyTorch's compiler, which takes a process two
    seconds and 150 MB.

    Args:
        network: its parameters that require gradients are moved, in place.
        momentum: in [0, 1).
        weight_decay: 0 or more.
    """

    def __init__(self, network: nn.Module, momentum: float, weight_decay: float) -> None:
        trained = [p for p in network.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.dim() > 1]
        self._parameters: list[Tensor] = [*matrices, *(p for p in trained if p.dim() <= 1)]
        self._decays = [weight_decay] * len(matrices) + [0.0] * (len(trained) - len(matrices))
        self._momentum = momentum
        self._speeds: dict[int, Tensor] = {}

    def forget_gradients(self) -> None:
        """Before gradients are computed: they would be added to those that are there."""
        for values in self._parameters:
            values.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step of the learning rate; parameters without a gradient stay."""
        for decay in set(self._decays):
            moved = [
                place
                for place, values in enumerate(self._parameters)
                if self._decays[place] == decay and values.grad is not None
            ]
            if moved:
                self._move(moved, rate, decay)

    def _move(self, moved: list[int], rate: float, decay: float) -> None:
        values = [self._parameters[place] for place in moved]
        slopes = [v.grad for v in values if v.grad is not None]
        if decay:
            slopes = list(torch._foreach_add(slopes, values, alpha=decay))
        if self._momentum:
            speeds = self._faster(moved, slopes)
            slopes = list(torch._foreach_add(slopes, speeds, alpha=self._momentum))
        torch._foreach_add_(values, slopes, alpha=-rate)

    def _faster(self, moved: list[int], slopes: list[Tensor]) -> list[Tensor]:
        """Speeds with the slopes taken in; the first slope is the first speed."""
        going = [n for n, place in enumerate(moved) if place in self._speeds]
        if going:
            speeds = [self._speeds[moved[n]] for n in going]
            torch._foreach_mul_(speeds, self._momentum)
            torch._foreach_add_(speeds, [slopes[n] for n in going])
        for place, slope in zip(moved, slopes, strict=True):
            if place not in self._speeds:
                self._speeds[place] = slope.clone()
        return [self._speeds[place] for place in moved]

    def state_dict(self) -> dict[str, Any]:
        """Speeds by the parameters' places, in the form of `torch.optim.SGD`."""
        return {"state": {n: {"momentum_buffer": speed} for n, speed in self._speeds.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly, also from a state of `torch.optim.SGD`."""
        speeds = {n: kept["momentum_buffer"] for n, kept in state["state"].items()}
        self._speeds = {n: speed for n, speed in speeds.items() if speed is not None}
