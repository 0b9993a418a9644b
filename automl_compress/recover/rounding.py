"""Low-bit weights of all layers rounded at once, for devices that operations are started on.

Layer by layer, rounding and its gradients are 13 small operations, each of which costs a CUDA
device as much as a convolution of a small network: of ResNet-56 with 8-bit weights they were more
than all others together. Here layers of equal bits go through each operation as one vector. What is
computed is `lsq.RoundToGrid`, the same to the bit but for the order in which a step's gradient is
added up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from automl_compress.compress.quantize import levels
from automl_compress.recover.losses import Loss
from automl_compress.recover.lsq import READY, inside_grid, learned_layers, step_gain


@dataclass(frozen=True)
class _Place:
    """A layer's weight in the vector of all.

    Args:
        order: its axes as they lie in memory, outputs first.
        shape: in that order.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, weight: Tensor) -> _Place:
        strides: tuple[int, ...] = weight.stride()
        inner = sorted(range(1, weight.dim()), key=lambda axis: -strides[axis])
        order = (0, *inner)
        return cls(order, tuple(weight.shape[axis] for axis in order))

    def flat(self, weight: Tensor) -> Tensor:
        """(values,) a weight or its gradient."""
        return weight.permute(self.order).reshape(-1)

    def whole(self, flat: Tensor) -> Tensor:
        """The weight again."""
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return flat.view(self.shape).permute(back)


class _Group:
    """Layers of equal bits.

    Args:
        bits: of their weights.
        layers: of `learned_layers`, on their device.
    """

    def __init__(self, bits: int, layers: list[Any]) -> None:
        self.layers = layers
        self.bound = levels(bits)
        weights = [layer.weight for layer in layers]
        self.places = [_Place.of(weight) for weight in weights]
        self.sizes = [weight.numel() for weight in weights]
        self.outputs = [len(weight) for weight in weights]
        fans = torch.tensor([weight[0].numel() for weight in weights])
        device, counts = weights[0].device, torch.tensor(self.outputs)
        gains = torch.tensor([step_gain(int(fan), self.bound) for fan in fans])
        self.gains = gains.repeat_interleave(counts).to(device)
        every = torch.arange(len(self.gains))
        owners = every.repeat_interleave(fans.repeat_interleave(counts))
        self.owners = owners.to(torch.int32).to(device)

    def rounded(self) -> tuple[Tensor, ...]:
        """The layers' weights as their forwards use them."""
        tensors = [layer.weight for layer in self.layers]
        steps = [layer.weight_scale for layer in self.layers]
        found: tuple[Tensor, ...] = _RoundTogether.apply(self, *tensors, *steps)
        return found


class _RoundTogether(torch.autograd.Function):
    """Rounds the weights of a group; weights and steps have gradients, see `RoundToGrid`."""

    @staticmethod
    def forward(ctx: Any, group: _Group, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Round weights, one after the other, to integers times the steps behind them."""
        weights, steps = tensors[: len(group.places)], tensors[len(group.places) :]
        pairs = zip(group.places, weights, strict=True)
        values = torch.cat([place.flat(weight) for place, weight in pairs])
        step = torch.cat(steps).index_select(0, group.owners)
        scaled = values.div_(step)
        integers = scaled.round().clamp_(-group.bound, group.bound)
        ctx.group = group
        ctx.save_for_backward(scaled, integers)
        parts = torch.split(step.mul_(integers), group.sizes)
        return tuple(p.whole(part) for p, part in zip(group.places, parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the weights and of the steps."""
        scaled, integers = ctx.saved_tensors
        group, bound = ctx.group, ctx.group.bound
        pairs = zip(group.places, gradients, strict=True)
        gradient = torch.cat([place.flat(part) for place, part in pairs])
        slopes = (integers - inside_grid(scaled, scaled, -bound, bound)).mul_(gradient)
        of_weights = torch.split(inside_grid(gradient, scaled, -bound, bound), group.sizes)
        rows = zip(torch.split(slopes, group.sizes), group.outputs, strict=True)
        sums = torch.cat([part.view(outputs, -1).sum(1) for part, outputs in rows])
        whole = [p.whole(part) for p, part in zip(group.places, of_weights, strict=True)]
        return (None, *whole, *torch.split(sums.mul_(group.gains), group.outputs))


class RoundedTogether:
    """A loss of a network whose low-bit weights are rounded at once before it runs.

    Args:
        loss: what is minimised.
        network: in its trainable form, see `make_learnable`, on its device. How its weights lie in
            memory is looked at when it first runs.
    """

    def __init__(self, loss: Loss, network: nn.Module) -> None:
        self._loss = loss
        self._network = network

    @cached_property
    def _groups(self) -> list[_Group]:
        alike: dict[int, list[Any]] = defaultdict(list)
        for layer in learned_layers(self._network):
            alike[layer.weight_bits].append(layer)
        return [_Group(bits, layers) for bits, layers in alike.items()]

    def __call__(self, network: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """The loss."""
        with self._ready():
            return self._loss(network, inputs, labels)

    @contextmanager
    def _ready(self) -> Iterator[None]:
        layers = [layer for group in self._groups for layer in group.layers]
        weights = [weight for group in self._groups for weight in group.rounded()]
        for layer, weight in zip(layers, weights, strict=True):
            vars(layer)[READY] = weight
        try:
            yield
        finally:
            for layer in layers:
                del vars(layer)[READY]
