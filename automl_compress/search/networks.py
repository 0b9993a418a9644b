"""Small neural networks: how they are made, stepped, followed by their targets, and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.adam import adam

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


class Adam:
    """Gradient descent by Adam (Kingma and Ba 2015), to the bit that of `torch.optim.Adam`.

    That class loads torch's compiler, a second of a processor, and takes as long for a step of
    networks this small as the step itself.

    Args:
        weights: what learns.
        rate: step size.
    """

    def __init__(self, weights: Iterable[Tensor], rate: float) -> None:
        self._weights = list(weights)
        self._rate = rate
        self._means = [torch.zeros_like(weight) for weight in self._weights]
        self._squares = [torch.zeros_like(weight) for weight in self._weights]
        self._steps = [torch.zeros(()) for _ in self._weights]

    def descend(self, loss: Tensor) -> None:
        """One step on a loss, of these weights and no others."""
        slopes = torch.autograd.grad(loss, self._weights)
        with torch.no_grad():
            adam(
                self._weights,
                list(slopes),
                self._means,
                self._squares,
                [],
                self._steps,
                fused=True,
                amsgrad=False,
                beta1=0.9,
                beta2=0.999,
                lr=self._rate,
                weight_decay=0.0,
                eps=1e-8,
                maximize=False,
            )

    def state_dict(self) -> dict[str, list[Tensor]]:
        """What later steps depend on besides the weights."""
        return {"means": self._means, "squares": self._squares, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, list[Tensor]]) -> None:
        """Go on exactly."""
        for name, kept in self.state_dict().items():
            for ours, stored in zip(kept, state[name], strict=True):
                ours.copy_(stored)


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


def stored(networks: Mapping[str, nn.Module], optimizers: Mapping[str, Adam]) -> dict[str, Any]:
    """Everything that `restore` needs, as plain data and NumPy arrays."""
    return {
        **{name: _to_numpy(network.state_dict()) for name, network in networks.items()},
        **{name: _to_numpy(optimizer.state_dict()) for name, optimizer in optimizers.items()},
    }


def restore(
    networks: Mapping[str, nn.Module],
    optimizers: Mapping[str, Adam],
    state: Mapping[str, Any],
) -> None:
    """Set networks and optimizers to a stored state."""
    for name, network in networks.items():
        network.load_state_dict(_to_torch(state[name]))
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(_to_torch(state[name]))


def _to_numpy(value: Any) -> Any:
    """Nested data with arrays in place of tensors."""
    if isinstance(value, Tensor):
        return value.detach().numpy().copy()
    if isinstance(value, dict):
        return {key: _to_numpy(item) for key, item in value.items()}
    return [_to_numpy(item) for item in value]


def _to_torch(value: Any) -> Any:
    """The reverse."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: _to_torch(item) for key, item in value.items()}
    return [_to_torch(item) for item in value]
