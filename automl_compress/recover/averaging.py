"""An exponential average of a network's weights, which generalises better than the last ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of parameters and buffers over the steps; integers are taken as they are.

    The decay grows from 0.1 to its value as `(1 + t) / (10 + t)`, so that short trainings are not
    held back by their initial weights (Tarvainen & Valpola 2017 use a similar ramp).

    Args:
        network: averaged from its present state on.
        decay: in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._state = {name: value.detach().clone() for name, value in _state(network).items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present state."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        averaged, present = [], []
        for name, value in _state(network).items():
            if value.is_floating_point():
                averaged.append(self._state[name])
                present.append(value.detach())
            else:
                self._state[name].copy_(value)
        torch._foreach_lerp_(averaged, present, 1.0 - decay)

    def copy_to(self, network: nn.Module) -> None:
        """Give a network the averaged state."""
        network.load_state_dict(self._state)

    def state(self) -> dict[str, Tensor]:
        """The averaged tensors by name, for a checkpoint."""
        return self._state

    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Go on from a checkpoint."""
        for name, value in self._state.items():
            value.copy_(state[name])
        self._updates = updates

    @property
    def updates(self) -> int:
        """States taken in."""
        return self._updates


def _state(network: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Tensor] = network.state_dict(keep_vars=True)
    return state
