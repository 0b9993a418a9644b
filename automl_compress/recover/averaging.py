"""An exponential average of a network's weights, which generalises better than the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX


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
        present = network.state_dict(keep_vars=True)
        self._state = {
            name: value.detach().clone()
            for name, value in present.items()
            if not name.endswith(_EXTRA_STATE_KEY_SUFFIX)
        }
        places = _places(network)
        self._places = {name: places.get(name, (present, name)) for name in self._state}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network's present state."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        averaged, taken = _Pairs(), _Pairs()
        for name, mean in self._state.items():
            table, key = self._places[name]
            pairs = averaged if mean.is_floating_point() else taken
            pairs.ours.append(mean)
            pairs.present.append(table[key].detach())
        torch._foreach_lerp_(averaged.ours, averaged.present, 1.0 - decay)
        if taken.ours:
            torch._foreach_copy_(taken.ours, taken.present)

    def copy_to(self, network: nn.Module) -> None:
        """Give a network the averaged state."""
        network.load_state_dict({**network.state_dict(), **self._state})

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


@dataclass(frozen=True)
class _Pairs:
    """Tensors of the average, and the network's that they follow."""

    ours: list[Tensor] = field(default_factory=list)
    present: list[Tensor] = field(default_factory=list)


def _places(network: nn.Module) -> dict[str, tuple[Mapping[str, Any], str]]:
    """Tables of a network's tensors and their keys there, by the names of its state.

    To make a state anew takes as long as half a step of a small network on a fast device.
    """
    return {
        f"{module_name}.{key}".lstrip("."): (table, key)
        for module_name, module in network.named_modules(remove_duplicate=False)
        for table in (module._parameters, module._buffers)
        for key in table
    }
