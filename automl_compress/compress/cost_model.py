"""What a compressed network costs, computed from its policy alone, without building it.

Costs are per image and exact:

- `macs`: multiply-accumulates of all layers after outputs *and* inputs are cut, plus those of
  products outside the layers. Never mixed with FLOPs, which would be twice as many. Kernels that
  are removed one by one do not count; only hardware and runtimes that skip them gain from that.
- `params`: values of all parameters (buffers are not parameters), those of removed kernels not.
- `size_bytes`: packed bytes of everything a file must hold: every weight at its bits, rounded up
  to a byte per layer; the bitmap of a layer that lacks kernels, or its zeros, whichever takes
  less; a float32 scale per output channel of a quantized layer and per quantized input; biases
  and all vectors of normalizations in float32; two bytes per output channel of a parameter-free
  channel shortcut; buffers, of those that are not persistent only what is left of cut ones.
- `bitops`: multiply-accumulates times weight bits times activation bits, 32 where a side is not
  quantized (Guo et al. 2020, single path one-shot).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from automl_compress.compress.structure import ChannelGroup, LayerShape, Structure
from automl_compress.errors import SpaceError
from automl_compress.space import LAYER_KINDS, Policy, Value

FLOAT_BITS: Final = 32
FLOAT_BYTES: Final = 4


def kept_kernels(kernels: int, sparsity: Value) -> int:
    """How many of a layer's kernels stay when a share of them is removed; at least one.

    Args:
        kernels: outputs times inputs of the layer, after channels are cut.
        sparsity: share removed, in [0, 1); the number removed is rounded, halves to even.
    """
    return max(1, kernels - round(sparsity * kernels))


def packed_weight_bytes(kernels: int, kept: int, kernel: int, bits: int) -> int:
    """Bytes of a layer's weights: a bit per kernel and those that stay, or all of them.

    A run-length code is not promised: its length depends on which kernels stay. No code of
    random places can do with less than 0.81 bits a kernel where a quarter stays or goes, and 1
    where half does; the bitmap takes 1 always.

    Args:
        kernels: the layer's kernels.
        kept: how many stay.
        kernel: weights of each.
        bits: bits of each weight.
    """
    sparse = -(-kernels // 8) + -(-kept * kernel * bits // 8)
    return min(sparse, -(-kernels * kernel * bits // 8))


@dataclass(frozen=True)
class LayerCost:
    """One layer of a compressed network.

    Args:
        macs: multiply-accumulates per image.
        weights: weight values, without those of removed kernels.
        size_bytes: packed bytes of weights, scales and bias.
        bitops: bit-operations per image.
    """

    macs: int
    weights: int
    size_bytes: int
    bitops: int


@dataclass(frozen=True)
class _Width:
    """Size of one axis as a function of what the groups keep."""

    full: int
    shares: tuple[tuple[str, int, int], ...]  # (group, its channels, places per channel)

    def at(self, channels: Mapping[str, Value]) -> int:
        removed = sum(
            (total - int(channels.get(group, total))) * places
            for group, total, places in self.shares
        )
        return self.full - removed

    def removed(self, group: str, kept: Value) -> int:
        """Places that go when a group keeps so many channels."""
        return sum(
            (total - int(kept)) * places for name, total, places in self.shares if name == group
        )


class CostModel:
    """Costs of any policy of one network.

    Args:
        structure: the traced network.
    """

    def __init__(self, structure: Structure) -> None:
        self._layers = structure.layers
        self._groups = {group.name: group for group in structure.groups}
        self._other_macs = structure.other_macs
        shares = _shares(structure.groups)
        self._products = [
            (part, _width(part.channels, shares, part.name, "out")) for part in structure.products
        ]
        self._out = {
            layer.name: _width(layer.out_channels, shares, layer.name, "out")
            for layer in structure.layers
        }
        self._in = {
            layer.name: _width(layer.in_channels, shares, layer.name, "in")
            for layer in structure.layers
        }
        self._stored = [
            (part, _width(part.channels, shares, part.name, "out")) for part in structure.stored
        ]

    def check(self, policy: Policy) -> None:
        """Check that a policy fits this network.

        Raises:
            SpaceError: it is none, names a group or layer the network lacks, cuts a protected
                group, or keeps more channels than there are.
        """
        if not isinstance(policy, Policy):
            raise SpaceError(
                f"a network must be compressed by a Policy, but was given a "
                f"{type(policy).__name__}; make one of a mapping of genes: Policy({{...}})"
            )
        self._check_layers(policy)
        for name, kept in policy.of_kind("channels").items():
            group = self._groups.get(name)
            if group is None:
                raise SpaceError(
                    f"a policy must name channel groups of its network, but 'channels:{name}' is "
                    "none; use a policy made for this network"
                )
            if kept > group.channels:
                raise SpaceError(
                    f"'channels:{name}' must be at most {group.channels}, but is {kept}; lower it"
                )
            if kept < group.channels and group.protected:
                raise SpaceError(
                    f"the group '{name}' cannot be cut ({group.protected}), but the policy keeps "
                    f"{kept} of {group.channels} channels; keep all"
                )

    def _check_layers(self, policy: Policy) -> None:
        layers = {layer.name: layer for layer in self._layers}
        for kind in LAYER_KINDS:
            for name in policy.of_kind(kind):
                if name not in layers:
                    raise SpaceError(
                        f"a policy must name layers of its network, but '{kind}:{name}' is none; "
                        "use a policy made for this network"
                    )
                layer = layers[name]
                if kind == "kernel_sparsity" and not layer.convolution:
                    raise SpaceError(
                        f"a layer with kernel_sparsity must be a convolution, but '{name}' is a "
                        f"{layer.kind}; remove its kernel_sparsity from the policy"
                    )
                if kind != "kernel_sparsity" and not layer.quantizable:
                    raise SpaceError(
                        f"a layer with bits must be a convolution or linear, but '{name}' is a "
                        f"{layer.kind}; remove its bits from the policy"
                    )

    def layers(self, policy: Policy) -> dict[str, LayerCost]:
        """Cost of every layer by name, in the network's order."""
        channels = policy.of_kind("channels")
        choices = [policy.of_kind(kind) for kind in LAYER_KINDS]
        return {
            layer.name: self._layer(layer, channels, *(c.get(layer.name) for c in choices))
            for layer in self._layers
        }

    def widths(self, policy: Policy) -> dict[str, tuple[int, int]]:
        """Output and input channels of every layer by name, in the network's order."""
        channels = policy.of_kind("channels")
        return {
            name: (width.at(channels), self._in[name].at(channels))
            for name, width in self._out.items()
        }

    def reachable_widths(
        self, channels: Mapping[str, Iterable[Value]]
    ) -> dict[str, set[tuple[int, int]]]:
        """All output and input channels a layer may have, by layer name.

        Args:
            channels: what each group may keep; groups that are not named keep everything.
        """
        return {name: self._reachable(name, channels) for name in self._out}

    def _reachable(
        self, name: str, channels: Mapping[str, Iterable[Value]]
    ) -> set[tuple[int, int]]:
        out, inputs = self._out[name], self._in[name]
        found = {(out.full, inputs.full)}
        for group in {group for group, _, _ in (*out.shares, *inputs.shares)} & channels.keys():
            removed = [(out.removed(group, k), inputs.removed(group, k)) for k in channels[group]]
            found = {(o - less_o, i - less_i) for o, i in found for less_o, less_i in removed}
        return found

    def _layer(
        self,
        layer: LayerShape,
        channels: Mapping[str, Value],
        weight_bits: Value | None,
        activation_bits: Value | None,
        sparsity: Value | None,
    ) -> LayerCost:
        out = self._out[layer.name].at(channels)
        inputs = 1 if layer.depthwise else self._in[layer.name].at(channels) // layer.groups
        kernels = out * inputs
        kept = kept_kernels(kernels, sparsity or 0)
        weights = kept * layer.kernel
        macs = weights * layer.positions
        bits = int(weight_bits or FLOAT_BITS)
        size = packed_weight_bytes(kernels, kept, layer.kernel, bits) + FLOAT_BYTES * (
            out * layer.bias + out * (weight_bits is not None) + (activation_bits is not None)
        )
        return LayerCost(macs, weights, size, macs * bits * int(activation_bits or FLOAT_BITS))

    def __call__(self, policy: Policy) -> dict[str, float]:
        """All costs of a policy by metric name.

        Raises:
            SpaceError: the policy does not fit the network.
        """
        self.check(policy)
        channels = policy.of_kind("channels")
        layers = self.layers(policy)
        other = self._other_macs + sum(
            part.macs_per_channel * width.at(channels) for part, width in self._products
        )
        macs = sum(layer.macs for layer in layers.values()) + other
        bitops = sum(layer.bitops for layer in layers.values())
        size = sum(layer.size_bytes for layer in layers.values())
        params = sum(layer.weights for layer in layers.values())
        params += sum(self._out[layer.name].at(channels) for layer in self._layers if layer.bias)
        for part, width in self._stored:
            kept = width.at(channels)
            if part.only_cut and kept == part.channels:
                continue
            size += part.bytes_per_channel * kept
            params += part.params_per_channel * kept
        return {
            "size_bytes": float(size),
            "macs": float(macs),
            "params": float(params),
            "bitops": float(bitops + other * FLOAT_BITS * FLOAT_BITS),
        }


def _shares(
    groups: Iterable[ChannelGroup],
) -> dict[tuple[str, str], tuple[tuple[str, int, int], ...]]:
    """By module and axis: which groups cut it, and how many places each channel owns."""
    found: dict[tuple[str, str], tuple[tuple[str, int, int], ...]] = {}
    for group in groups:
        if group.protected:
            continue
        places = {
            (member.module, str(member.axis)): member.places_per_channel(group.channels)
            for member in group.members
        } | {(product.name, "out"): product.places for product in group.products}
        for key, count in places.items():
            found[key] = (*found.get(key, ()), (group.name, group.channels, count))
    return found


def _width(
    full: int,
    shares: Mapping[tuple[str, str], tuple[tuple[str, int, int], ...]],
    name: str,
    axis: str,
) -> _Width:
    return _Width(full, shares.get((name, axis), ()))
