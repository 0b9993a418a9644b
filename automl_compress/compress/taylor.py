"""Importance of channels by what the loss would change without them, to first order.

Molchanov et al. 2019 (Importance estimation for neural network pruning), with gates: every
channel is multiplied by a gate of 1 where it is read, after normalization and activation. The
squared slope of the loss in a gate estimates the squared change of the loss when the channel is
removed (eq. 8); it is averaged over mini-batches.

A cut removes a channel from all its readers at once. So each reader has gates of its own, and a
channel's slopes are summed over all readers before they are squared: members of a coupled group
are not scored one by one.

Deviations: the gates stand before every reader, not behind every BatchNorm, because sums and
concatenations lie between the two; and calibration images carry no label. The loss is that of the
network's own decisions: the cross-entropy to its classes, or a detector's loss of the boxes that it
finds. Any distance to the network's own outputs, a Kullback-Leibler divergence for example, is at
its minimum there, and all its slopes are zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from automl_compress.compress.calibration import layer_input
from automl_compress.compress.places import axis_size
from automl_compress.compress.structure import ChannelGroup
from automl_compress.errors import InputError
from automl_compress.workload import CLASSIFICATION, Task

BATCH: Final = 8
"""Images whose slopes are averaged before squaring. Measured on ResNet-20 (CIFAR-10, 512 images,
256 for calibration, all groups cut to 7/8): 74.6 % with 1, 75.6 with 8, 68.2 with 32, 66.4 with
256; 8 take a quarter of the time of 1."""


def taylor_importance(
    model: nn.Module,
    groups: Sequence[ChannelGroup],
    images: Tensor | None,
    seed: int,
    task: Task = CLASSIFICATION,
) -> dict[str, NDArray[np.float64]]:
    """Mean squared slope of the loss in every channel's gate.

    Args:
        model: the network, in evaluation mode.
        groups: channel groups.
        images: (n, ...) calibration images.
        seed: not used.
        task: says what the network decides.

    Returns:
        By group name, (channels,) scores.

    Raises:
        InputError: there are no images, or the network's output is none of the task.
    """
    del seed
    if images is None or not len(images):
        raise InputError(
            "the criterion 'taylor' needs calibration examples, but there are none; give some or "
            "choose l1"
        )
    batches = torch.split(images, BATCH)
    scores = {group.name: np.zeros(group.channels) for group in groups}
    for batch in batches:
        slopes = gate_slopes(model, _readers(groups), batch, task)
        for group in groups:
            total = np.zeros(group.channels)
            for member in group.members:
                if member.axis == "in":
                    total += member.per_channel(slopes[member.module], group.channels)
            scores[group.name] += total**2 / len(batches)
    return scores


def gate_slopes(
    model: nn.Module, readers: Sequence[str], images: Tensor, task: Task = CLASSIFICATION
) -> dict[str, NDArray[np.float64]]:
    """Slopes of the loss in gates before modules.

    Args:
        model: the network.
        readers: names of modules; each input channel of each gets a gate.
        images: (n, ...).
        task: says what the network decides.

    Returns:
        By module name, (in_channels,) derivative of the mean loss at gates of 1.

    Raises:
        InputError: the network's output is none of the task.
    """
    with torch.inference_mode(False), torch.enable_grad():
        gates = {name: torch.ones(axis_size(model, name, "in")) for name in readers}
        for gate in gates.values():
            gate.requires_grad_(True)
        with _gated(model, gates):
            loss = task.own_loss(model(images))
        found = torch.autograd.grad(loss, list(gates.values()), materialize_grads=True)
    return {name: slope.double().numpy() for name, slope in zip(gates, found, strict=True)}


def _readers(groups: Sequence[ChannelGroup]) -> list[str]:
    members = [member for group in groups for member in group.members if member.axis == "in"]
    return list(dict.fromkeys(member.module for member in members))


@contextmanager
def _gated(model: nn.Module, gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, what modules read is multiplied by their gates."""
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_multiplier(gate), with_kwargs=True)
        for name, gate in gates.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _multiplier(gate: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        x = layer_input(inputs, named)
        last = isinstance(module, nn.Linear)
        shaped = gate if last else gate.reshape(-1, *[1] * (x.dim() - 2))
        if inputs:
            return (x * shaped, *inputs[1:]), named
        return inputs, {**named, "input": x * shaped}

    return hook
