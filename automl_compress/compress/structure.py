"""What a network is made of, as far as cutting and counting need to know. Plain numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Axis = Literal["out", "in"]


@dataclass(frozen=True)
class GroupMember:
    """How one module takes part in a coupled group.

    Args:
        module: the module's name; for a free parameter, the parameter's name.
        axis: `out` when the group's channels are the module's output (or its features, for
            normalizations), `in` when they are its input.
        positions: (n,) places along that axis.
        channels: (n,) the group's channel each place belongs to; every channel owns equally many.
    """

    module: str
    axis: Axis
    positions: NDArray[np.int64]
    channels: NDArray[np.int64]

    def places_per_channel(self, group_channels: int) -> int:
        """Places every channel of the group owns in this module."""
        return len(self.positions) // group_channels

    @property
    def by_channel(self) -> NDArray[np.int64]:
        """(n,) places along the axis, those of the group's first channel first."""
        return self.positions[np.argsort(self.channels, kind="stable")]

    def per_channel(self, values: NDArray[np.float64], group_channels: int) -> NDArray[np.float64]:
        """(group_channels,) sums of (places,) values over the places of each channel."""
        sums: NDArray[np.float64] = values[self.by_channel].reshape(group_channels, -1).sum(axis=1)
        return sums


@dataclass(frozen=True)
class Reduction:
    """A sum, mean or extreme that the network's own code takes over a group's channels.

    A product of two activations is a sum over the axis that both have.

    Args:
        call: how many such operations run before it.
        axis: the axis of its first operand that carries the channels.
        size: places along that axis.
        positions: (n,) places along it that carry the group's channels.
        channels: (n,) the group's channel each place belongs to.
    """

    call: int
    axis: int
    size: int
    positions: NDArray[np.int64]
    channels: NDArray[np.int64]


@dataclass(frozen=True)
class WrittenProduct:
    """A product of activations, in the network's own code, that runs over a group's channels.

    Args:
        call: how many reductions and products run before it.
        size: places along the axis that carries the channels.
        places: how many of them each of the group's channels has.
    """

    call: int
    size: int
    places: int

    @property
    def name(self) -> str:
        """What costs call it."""
        return product_name(self.call)


def product_name(call: int) -> str:
    """What costs call a product that a network's own code writes out."""
    return f"product #{call}"


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that must be cut together: residual sums, depthwise chains, concatenations.

    Args:
        name: name of the first layer that writes the channels; a `#` and a number follow where
            that layer writes other channels too, which are cut apart from these.
        channels: how many there are. Where positions of one layer go together, as those of a
            group of a grouped convolution do, they count as one channel.
        members: every module that writes, carries or reads them.
        protected: why the group cannot be cut; empty when it can.
        reductions: what the network's own code computes over all of them.
        products: products of activations whose cost the channels share.
        doubt: what is told in place of how a trial cut failed, if it fails; empty for that.
    """

    name: str
    channels: int
    members: tuple[GroupMember, ...]
    protected: str = ""
    reductions: tuple[Reduction, ...] = ()
    products: tuple[WrittenProduct, ...] = ()
    doubt: str = ""

    @property
    def first_writer(self) -> str:
        """Name of the first layer that writes the channels."""
        return self.name.partition("#")[0]

    @property
    def writers(self) -> tuple[str, ...]:
        """Modules whose output the channels are, in the network's order."""
        return tuple(member.module for member in self.members if member.axis == "out")


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer: what its cost is computed from.

    Args:
        name: the module's name.
        kind: the module's class, such as `Conv2d`.
        out_channels: outputs.
        in_channels: inputs of the whole layer.
        groups: convolution groups; equal to `out_channels` for a depthwise layer.
        kernel: weights per pair of channels, such as 9 for 3x3.
        positions: output positions per image, of a transposed convolution input positions, summed
            over all uses of a shared layer.
        bias: whether it has one.
        quantizable: whether it has a low-bit form.
        convolution: whether its weights are kernels, one per pair of channels, that can be removed.
    """

    name: str
    kind: str
    out_channels: int
    in_channels: int
    groups: int
    kernel: int
    positions: int
    bias: bool
    quantizable: bool
    convolution: bool

    @property
    def depthwise(self) -> bool:
        """Whether every output reads one input of its own."""
        return self.groups > 1 and self.groups == self.out_channels == self.in_channels


@dataclass(frozen=True)
class ProductShape:
    """A product of activations whose channels can be cut, as in attention.

    Args:
        name: the module's name, or `product_name` of what no module is.
        channels: channels it runs over.
        macs_per_channel: multiply-accumulates per image that each of them takes.
    """

    name: str
    channels: int
    macs_per_channel: int


@dataclass(frozen=True)
class StoredPart:
    """Anything outside the layers that holds values: normalizations, tables, free parameters.

    Args:
        name: the module's or tensor's name.
        channels: entries along the axis that groups may cut.
        params_per_channel: parameter values each of them holds.
        bytes_per_channel: bytes each of them takes in a file, buffers included.
        only_cut: whether a file holds it only where it is cut, as a buffer that is not persistent:
            the network's own code makes it, but whole.
    """

    name: str
    channels: int
    params_per_channel: int
    bytes_per_channel: int
    only_cut: bool = False


@dataclass(frozen=True)
class Structure:
    """Everything known about a network's shape.

    Args:
        groups: coupled channel groups, in the network's order, protected ones included.
        layers: layers with weights, in the network's order.
        stored: everything else that holds values.
        other_macs: multiply-accumulates outside layers and products, such as attention that the
            network's own code writes out.
        products: products of activations whose channels can be cut.
    """

    groups: tuple[ChannelGroup, ...]
    layers: tuple[LayerShape, ...]
    stored: tuple[StoredPart, ...]
    other_macs: int
    products: tuple[ProductShape, ...] = ()

    def group(self, name: str) -> ChannelGroup | None:
        """The group of a name, or None."""
        return next((group for group in self.groups if group.name == name), None)

    def layer(self, name: str) -> LayerShape | None:
        """The layer of a name, or None."""
        return next((layer for layer in self.layers if layer.name == name), None)
