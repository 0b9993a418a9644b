"""What a compressed network costs, computed from its policy alone, without building it.

Costs are per image and exact:

- `macs`: multiply-accumulates of all layers after outputs *and* inputs are cut, plus those of
  products outside the layers. Never mixed with FLOPs, which would be twice as many.
- `params`: values of all parameters (buffers are not parameters).
- `size_bytes`: packed bytes of everything a file must hold: every weight at its bits, rounded up
  to a byte per layer; a float32 scale per output channel of a quantized layer and per quantized
  input; biases and all vectors of normalizations in float32; two bytes per output channel of a
  parameter-free channel shortcut.
- `bitops`: multiply-accumulates times weight bits times activation bits, 32 where a side is not
  quantized (Guo et al. 2020, single path one-shot).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from automl_compress.compress.structure import ChannelGroup, LayerShape, Structure
from automl_compress.errors import SpaceError
from automl_compress.space import Policy, Value

FLOAT_BITS: Final = 32
FLOAT_BYTES: Final = 4


@dataclass(frozen=True)
class LayerCost:
    """One layer of a compressed network.

    Args:
        macs: multiply-accumulates per image.
        weights: weight values.
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
            SpaceError: it names a group or layer the network lacks, cuts a protected group, or
                keeps more channels than there are.
        """
        self._check_bits(policy)
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
        if policy.of_kind("kernel_sparsity"):
            raise SpaceError("kernel_sparsity genes cannot be applied yet; remove them")

    def _check_bits(self, policy: Policy) -> None:
        layers = {layer.name: layer for layer in self._layers}
        for kind in ("weight_bits", "activation_bits"):
            for name in policy.of_kind(kind):
                if name not in layers:
                    raise SpaceError(
                        f"a policy must name layers of its network, but '{kind}:{name}' is none; "
                        "use a policy made for this network"
                    )
                if not layers[name].quantizable:
                    raise SpaceError(
                        f"a layer with bits must be a Conv2d or Linear, but '{name}' is a "
                        f"{layers[name].kind}; remove its bits from the policy"
                    )

    def layers(self, policy: Policy) -> dict[str, LayerCost]:
        """Cost of every layer by name, in the network's order."""
        channels = policy.of_kind("channels")
        weight_bits = policy.of_kind("weight_bits")
        activation_bits = policy.of_kind("activation_bits")
        return {
            layer.name: self._layer(
                layer, channels, weight_bits.get(layer.name), activation_bits.get(layer.name)
            )
            for layer in self._layers
        }

    def widths(self, policy: Policy) -> dict[str, tuple[int, int]]:
        """Output and input channels of every layer by name, in the network's order."""
        channels = policy.of_kind("channels")
        return {
            name: (width.at(channels), self._in[name].at(channels))
            for name, width in self._out.items()
        }

    def _layer(
        self,
        layer: LayerShape,
        channels: Mapping[str, Value],
        weight_bits: Value | None,
        activation_bits: Value | None,
    ) -> LayerCost:
        out = self._out[layer.name].at(channels)
        inputs = 1 if layer.depthwise else self._in[layer.name].at(channels) // layer.groups
        weights = out * inputs * layer.kernel
        macs = weights * layer.positions
        bits = int(weight_bits or FLOAT_BITS)
        size = -(-weights * bits // 8) + FLOAT_BYTES * (
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
        macs = sum(layer.macs for layer in layers.values()) + self._other_macs
        bitops = sum(layer.bitops for layer in layers.values())
        size = sum(layer.size_bytes for layer in layers.values())
        params = sum(layer.weights for layer in layers.values())
        params += sum(self._out[layer.name].at(channels) for layer in self._layers if layer.bias)
        for part, width in self._stored:
            kept = width.at(channels)
            size += part.bytes_per_channel * kept
            params += part.params_per_channel * kept
        return {
            "size_bytes": float(size),
            "macs": float(macs),
            "params": float(params),
            "bitops": float(bitops + self._other_macs * FLOAT_BITS * FLOAT_BITS),
        }


def _shares(
    groups: Iterable[ChannelGroup],
) -> dict[tuple[str, str], tuple[tuple[str, int, int], ...]]:
    """By module and axis: which groups cut it, and how many places each channel owns."""
    found: dict[tuple[str, str], tuple[tuple[str, int, int], ...]] = {}
    for group in groups:
        if group.protected:
            continue
        for member in group.members:
            key = (member.module, member.axis)
            places = member.places_per_channel(group.channels)
            found[key] = (*found.get(key, ()), (group.name, group.channels, places))
    return found


def _width(
    full: int,
    shares: Mapping[tuple[str, str], tuple[tuple[str, int, int], ...]],
    name: str,
    axis: str,
) -> _Width:
    return _Width(full, shares.get((name, axis), ()))
