"""A float ONNX graph brought into the forms that ONNX Runtime's integer kernels are fast in.

- Means over height and width become global average poolings, which have an integer kernel.
- Channels are filled up with zeros where the fast integer convolution would not take them, see
  `runtime.block_channels`; those of the network's input by a padding in front.

A channel of zeros changes no value: its weights and bias are zero, ReLU and sums keep zero, and
whoever reads it has zero weights for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import onnx_ir as ir

from automl_compress.deploy.onnx_graph.low_bit_layers import LowBitLayer
from automl_compress.deploy.onnx_graph.nodes import add_initializer
from automl_compress.deploy.onnx_graph.tied_values import (
    TiedValues,
    channels_of,
    is_full_convolution,
)
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
    tied = _tied(graph, layers)
    filled = dict(layers)
    for node in tied.convolutions:
        _fill_weight(node, tied.values, filled)
        _fill_bias(graph, node, tied.values)
    for node in tied.paddings:
        if not tied.values.added(node.outputs[0]):
            _remove_padding(graph, node)
    tied.values.reshape()
    return filled


def fillable_ends(
    graph: ir.Graph, layers: Mapping[str, LowBitLayer]
) -> dict[str, tuple[bool, bool]]:
    """Whether input and output of low-bit convolutions may be filled up, by layer name.

    Args:
        graph: float, BatchNorm folded; inputs get nodes that fill them up.
        layers: low-bit layers by the name of their weight's initializer.
    """
    tied = _tied(graph, layers)
    return {
        layers[str(node.inputs[1].name)].name: (  # type: ignore[union-attr]
            tied.values.fillable(node.inputs[0]),
            tied.values.fillable(node.outputs[0]),
        )
        for node in tied.convolutions
    }


@dataclass(frozen=True)
class _Tied:
    """Which values of a graph must have the same channels.

    Args:
        values: of the graph.
        convolutions: whose channels may be filled up.
        paddings: nodes that fill up inputs.
    """

    values: _FilledValues
    convolutions: list[ir.Node]
    paddings: list[ir.Node]


def _tied(graph: ir.Graph, layers: Mapping[str, LowBitLayer]) -> _Tied:
    values = _FilledValues()
    convolutions = [node for node in graph if is_full_convolution(node, layers)]
    paddings = _padded_inputs(graph, convolutions)
    for node in graph:
        if node in convolutions:
            values.add(node.inputs[0])
            values.add(node.outputs[0])
        elif node not in paddings:
            _tie_node(node, values)
    for end in (*graph.inputs, *graph.outputs):
        values.block(end)
    return _Tied(values, convolutions, paddings)


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


def _tie_node(node: ir.Node, values: _FilledValues) -> None:
    """What a node that is no low-bit convolution says of the channels it reads and writes."""
    if node.op_type not in _SAME_CHANNELS:
        for value in (*node.inputs, *node.outputs):
            if value is not None:
                values.block(value)
        return
    for source in node.inputs if node.op_type == "Add" else node.inputs[:1]:
        values.tie(node.outputs[0], source)


class _FilledValues(TiedValues):
    """Values that must have the same channels."""

    def tie(self, one: ir.Value | None, other: ir.Value | None) -> None:
        """Two values have the same channels; constants and other sizes forbid any change."""
        super().tie(one, other)
        assert one is not None
        if channels_of(one) is None or channels_of(one) != channels_of(other):
            self.block(one)

    def fillable(self, value: ir.Value | None) -> bool:
        """Whether a value may get channels of zeros."""
        return value is not None and channels_of(value) is not None and not self.blocked(value)

    def added(self, value: ir.Value | None) -> int:
        """Channels of zeros that a value gets."""
        channels = channels_of(value)
        if channels is None or not self.fillable(value):
            return 0
        return block_channels(channels) - channels

    def reshape(self) -> None:
        """Say in the shapes of values what they hold now."""
        grown = [(value, self.added(value)) for value in self.members()]
        for value, added in grown:
            if added:
                assert value.shape is not None
                batch, channels, *rest = value.shape.dims
                value.shape = ir.Shape([batch, int(channels) + added, *rest])  # type: ignore[arg-type]


def _fill_weight(node: ir.Node, values: _FilledValues, layers: dict[str, LowBitLayer]) -> None:
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


def _fill_bias(graph: ir.Graph, node: ir.Node, values: _FilledValues) -> None:
    added = values.added(node.outputs[0])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not added or bias is None or bias.const_value is None:
        return
    array = np.pad(bias.const_value.numpy(), (0, added))
    name = f"{node.outputs[0].name}.bias"
    node.replace_input_with(2, add_initializer(graph, name, array))
