"""A float ONNX graph brought into the forms that ONNX Runtime's integer kernels are fast in.

- Means over height and width become global average poolings, which have an integer kernel.
- Channels are filled up with zeros where the fast integer convolution would not take them, see
  `runtime.block_channels`; those of the network's input by a padding in front.

A channel of zeros changes no value: its weights and bias are zero, ReLU and sums keep zero, and
whoever reads it has zero weights for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import onnx_ir as ir

from automl_compress.deploy.qdq import LowBitLayer, add_initializer
from automl_compress.deploy.runtime import block_channels

_SAME_CHANNELS: Final = (
    "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity", "Add",
)  # fmt: skip


def pool_means(graph: ir.Graph) -> None:
    """Put a global average pooling in place of every mean over height and width."""
    for node in list(graph):
        if node.op_type != "ReduceMean" or len(node.inputs) < 2:
            continue
        source, axes = node.inputs[0], node.inputs[1]
        if source is None or source.shape is None or len(source.shape) != 4:
            continue
        if axes is None or axes.const_value is None:
            continue
        if sorted(axis % 4 for axis in axes.const_value.numpy().tolist()) != [2, 3]:
            continue
        _replace_by_pooling(node, source)


def _replace_by_pooling(node: ir.Node, source: ir.Value) -> None:
    output = node.outputs[0]
    pooled = ir.node("GlobalAveragePool", [source], outputs=[ir.Value(name=f"{output.name}.mean")])
    assert source.shape is not None
    pooled.outputs[0].shape = ir.Shape([*source.shape.dims[:2], 1, 1])
    pooled.outputs[0].type = source.type
    nodes, result = [pooled], pooled.outputs[0]
    keeps = node.attributes.get("keepdims")
    if keeps is not None and not keeps.value:
        flat = ir.node(
            "Flatten", [result], {"axis": 1}, outputs=[ir.Value(name=f"{output.name}.flat")]
        )
        flat.outputs[0].shape, flat.outputs[0].type = output.shape, output.type
        nodes, result = [pooled, flat], flat.outputs[0]
    graph = node.graph
    assert graph is not None
    graph.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(output, result, replace_graph_outputs=True)
    name, output.name = output.name, f"{output.name}.before"
    result.name = name
    graph.remove(node, safe=True)


def fill_blocks(graph: ir.Graph, layers: Mapping[str, LowBitLayer]) -> dict[str, LowBitLayer]:
    """Give low-bit convolutions the channels that integer kernels are fast with.

    Args:
        graph: float, BatchNorm folded; changed in place.
        layers: low-bit layers by the name of their weight's initializer.

    Returns:
        The layers, their integers filled up with zeros too.
    """
    values = _Components()
    convolutions = [node for node in graph if _fillable(node, layers)]
    paddings = _padded_inputs(graph, convolutions)
    owners: dict[str, ir.Node] = {}
    for node in graph:
        if node in convolutions:
            first = owners.setdefault(str(node.inputs[1].name), node)  # type: ignore[union-attr]
            values.tie(first.inputs[0], node.inputs[0])
            values.tie(first.outputs[0], node.outputs[0])
        elif node not in paddings:
            _tie_node(node, values)
    for end in (*graph.inputs, *graph.outputs):
        values.block(end)
    filled = dict(layers)
    for node in convolutions:
        values.remember(node.inputs[0])
        values.remember(node.outputs[0])
    for node in owners.values():
        _fill_weight(node, values, filled)
    for node in convolutions:
        _fill_bias(graph, node, values)
    for node in paddings:
        if not values.added(node.outputs[0]):
            _remove_padding(graph, node)
    values.reshape()
    return filled


def _padded_inputs(graph: ir.Graph, convolutions: Sequence[ir.Node]) -> list[ir.Node]:
    """Put nodes that add channels of zeros between inputs and the convolutions that read them.

    Their outputs have the inputs' shapes until channels are filled up.
    """
    found = []
    for value in graph.inputs:
        readers = list(value.consumers())
        if not readers or any(reader not in convolutions for reader in readers):
            continue
        channels = value.shape[1] if value.shape is not None else None
        if not isinstance(channels, int) or block_channels(channels) == channels:
            continue
        ends = np.array([0, 0, 0, 0, 0, block_channels(channels) - channels, 0, 0], np.int64)
        pads = add_initializer(graph, f"{value.name}.pads", ends)
        output = ir.Value(name=f"{value.name}.padded", shape=value.shape, type=value.type)
        node = ir.node("Pad", [value, pads], outputs=[output], name=output.name)
        graph.insert_before(graph[0], node)
        for reader in readers:
            reader.replace_input_with(0, output)
        found.append(node)
    return found


def _remove_padding(graph: ir.Graph, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], source)
    graph.remove(node, safe=True)


def _fillable(node: ir.Node, layers: Mapping[str, LowBitLayer]) -> bool:
    """Whether a node is a low-bit convolution whose channels are not in groups."""
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


def _tie_node(node: ir.Node, values: _Components) -> None:
    """What a node that is no low-bit convolution says of the channels it reads and writes."""
    if node.op_type not in _SAME_CHANNELS:
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                values.block(value)
        return
    for source in node.inputs if node.op_type == "Add" else node.inputs[:1]:
        values.tie(node.outputs[0], source)


class _Components:
    """Values that must have the same channels."""

    def __init__(self) -> None:
        self._parents: dict[ir.Value, ir.Value] = {}
        self._blocked: set[ir.Value] = set()

    def remember(self, value: ir.Value | None) -> None:
        if value is not None:
            self._root(value)

    def tie(self, one: ir.Value | None, other: ir.Value | None) -> None:
        """Two values have the same channels; constants and other sizes forbid any change."""
        assert one is not None
        assert other is not None
        first, second = self._root(one), self._root(other)
        if self._channels(one) is None or self._channels(one) != self._channels(other):
            self._blocked |= {first, second}
        if first is not second:
            self._parents[second] = first
            if second in self._blocked:
                self._blocked.add(first)

    def block(self, value: ir.Value) -> None:
        """A value's channels must stay as they are."""
        self._blocked.add(self._root(value))

    def added(self, value: ir.Value | None) -> int:
        """Channels of zeros that a value gets."""
        assert value is not None
        channels = self._channels(value)
        if channels is None or self._root(value) in self._blocked:
            return 0
        return block_channels(channels) - channels

    def reshape(self) -> None:
        """Say in the shapes of values what they hold now."""
        grown = [(value, self.added(value)) for value in self._parents]
        for value, added in grown:
            if added:
                assert value.shape is not None
                batch, channels, *rest = value.shape.dims
                value.shape = ir.Shape([batch, int(channels) + added, *rest])  # type: ignore[arg-type]

    def _root(self, value: ir.Value) -> ir.Value:
        parent = self._parents.setdefault(value, value)
        return parent if parent is value else self._root(parent)

    def _channels(self, value: ir.Value) -> int | None:
        if value.const_value is not None or value.shape is None or len(value.shape) != 4:
            return None
        channels = value.shape[1]
        return channels if isinstance(channels, int) else None


def _fill_weight(node: ir.Node, values: _Components, layers: dict[str, LowBitLayer]) -> None:
    added = values.added(node.outputs[0]), values.added(node.inputs[0])
    weight = node.inputs[1]
    if not any(added) or weight is None or weight.const_value is None:
        return
    ends = [(0, added[0]), (0, added[1]), (0, 0), (0, 0)]
    array = np.pad(weight.const_value.numpy(), ends)
    weight.const_value = ir.tensor(array, name=weight.name)
    weight.shape = ir.Shape(array.shape)
    layer = layers[str(weight.name)]
    layers[str(weight.name)] = replace(
        layer,
        integers=np.pad(layer.integers, ends),
        scales=np.pad(layer.scales, (0, added[0]), constant_values=1.0),
    )


def _fill_bias(graph: ir.Graph, node: ir.Node, values: _Components) -> None:
    added = values.added(node.outputs[0])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not added or bias is None or bias.const_value is None:
        return
    array = np.pad(bias.const_value.numpy(), (0, added))
    name = f"{node.outputs[0].name}.bias"
    node.replace_input_with(2, add_initializer(graph, name, array))
