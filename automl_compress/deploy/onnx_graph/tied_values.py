"""Values of an ONNX graph that must change their layout together, or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from automl_compress.deploy.onnx_graph.low_bit_layers import LowBitLayer


class TiedValues:
    """Sets of values that have the same layout."""

    def __init__(self) -> None:
        self._parents: dict[ir.Value, ir.Value] = {}
        self._blocked: set[ir.Value] = set()

    def add(self, value: ir.Value | None) -> None:
        """A value that may be tied to no other."""
        if value is not None:
            self.root(value)

    def tie(self, one: ir.Value | None, other: ir.Value | None) -> None:
        """Two values have the same layout."""
        assert one is not None
        assert other is not None
        first, second = self.root(one), self.root(other)
        if first is not second:
            self._parents[second] = first
            if second in self._blocked:
                self._blocked.add(first)

    def block(self, value: ir.Value) -> None:
        """A value's layout must stay as it is."""
        self._blocked.add(self.root(value))

    def blocked(self, value: ir.Value) -> bool:
        """Whether a value's layout must stay as it is."""
        return self.root(value) in self._blocked

    def root(self, value: ir.Value) -> ir.Value:
        """The value that stands for all that are tied to this one."""
        while (parent := self._parents.setdefault(value, value)) is not value:
            value = parent
        return value

    def roots(self) -> list[ir.Value]:
        """The values that stand for sets."""
        return [value for value, parent in self._parents.items() if parent is value]

    def members(self) -> list[ir.Value]:
        """All values."""
        return list(self._parents)


def channels_of(value: ir.Value | None) -> int | None:
    """Channels of a computed (n, channels, height, width) value; None of any other."""
    if value is None or value.const_value is not None or value.shape is None:
        return None
    channels = value.shape[1] if len(value.shape) == 4 else None
    return channels if isinstance(channels, int) else None


def is_full_convolution(node: ir.Node, layers: Mapping[str, LowBitLayer]) -> bool:
    """Whether a node is a low-bit convolution whose channels are not in groups.

    Args:
        node: of a float graph.
        layers: low-bit layers by the name of their weight's initializer.
    """
    if node.op_type != "Conv" or node.inputs[1] is None or node.inputs[0] is None:
        return False
    groups = node.attributes.get("group")
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return (
        (groups is None or groups.value == 1)
        and str(weight.name) in layers
        and weight.const_value is not None
        and weight.const_value.numpy().shape == layers[str(weight.name)].integers.shape
        and (bias is None or bias.const_value is not None)
    )
