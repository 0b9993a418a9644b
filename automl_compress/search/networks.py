"""Small neural networks: how they are made, stepped, followed by their targets, and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """Two hidden layers of rectified units."""
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def with_target(build: Callable[[], Network]) -> tuple[Network, Network]:
    """A network and its target, which starts equal and learns only by following."""
    network, target = build(), build()
    target.load_state_dict(network.state_dict())
    return network, target.requires_grad_(False)


class Follower:
    """Moves a target a part of the way to its network, in place.

    Weights are looked up once: networks this small are stepped faster than walked through.

    Args:
        target: follows.
        source: of the same form; learns.
    """

    def __init__(self, target: nn.Module, source: nn.Module) -> None:
        self._kept, self._learnt = list(target.parameters()), list(source.parameters())

    @torch.no_grad()
    def follow(self, step: float) -> None:
        """Go on by a share of the way left."""
        for kept, learnt in zip(self._kept, self._learnt, strict=True):
            kept.lerp_(learnt, step)


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of gradient descent on a loss, of the optimizer's weights and no others."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight, slope in zip(weights, torch.autograd.grad(loss, weights), strict=True):
        weight.grad = slope
    optimizer.step()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights drawn here come from the seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """Networks this small only lose by threads, and sums must not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensor(array: NDArray[Any]) -> Tensor:
    """A float32 tensor."""
    return torch.from_numpy(np.asarray(array, dtype=np.float32))


def stored(
    networks: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Everything that `restore` needs, as plain data and NumPy arrays."""
    return {
        **{name: _to_numpy(network.state_dict()) for name, network in networks.items()},
        **{name: _to_numpy(optimizer.state_dict()) for name, optimizer in optimizers.items()},
    }


def restore(
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
) -> None:
    """Set networks and optimizers to a stored state."""
    for name, network in networks.items():
        network.load_state_dict(_to_torch(state[name]))
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(_to_torch(state[name]))


def _to_numpy(value: Any) -> Any:
    """Nested data with arrays in place of tensors, keys as texts."""
    if isinstance(value, Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, dict):
        return {str(key): _to_numpy(item) for key, item in value.items()}
    return [_to_numpy(item) for item in value] if isinstance(value, list | tuple) else value


def _to_torch(value: Any) -> Any:
    """The reverse; keys that are numbers become numbers."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {int(k) if k.isdigit() else k: _to_torch(item) for k, item in value.items()}
    return [_to_torch(item) for item in value] if isinstance(value, list) else value
