"""Narrow maps of an ONNX graph, folded as `folds` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from automl_compress.deploy.onnx_graph.folds import (
    FoldedReading,
    MapLayer,
    Reading,
    chosen_folds,
    fold_of,
    folded,
)
from automl_compress.deploy.onnx_graph.low_bit_layers import LowBitLayer
from automl_compress.deploy.onnx_graph.nodes import add_initializer
from automl_compress.deploy.onnx_graph.tied_values import TiedValues, is_full_convolution

_SAME_COLUMNS: Final = ("Relu", "Clip", "Identity", "Add")


def fold_columns(graph: ir.Graph, layers: Mapping[str, LowBitLayer]) -> dict[str, LowBitLayer]:
    """Fold the columns of maps that have fewer channels than an integer kernel computes at once.

    Args:
        graph: float, BatchNorm folded; changed in place.
        layers: low-bit layers by the name of their weight's initializer, which nobody shares.

    Returns:
        The layers, their integers moved to where the folded kernels have them.
    """
    maps = read_maps(graph, layers)
    folds = chosen_folds([layer for _, layer in maps.layers], maps.channels())
    moved = dict(layers)
    for node, layer in maps.layers:
        before, after = fold_of(layer.source, folds), fold_of(layer.output, folds)
        if (before, after) != (1, 1):
            _rewrite(graph, node, folded(layer.reading, before, after), (before, after), moved)
    for value, number in maps.numbers.items():
        _reshape(value, fold_of(number, folds))
    return moved


@dataclass(frozen=True)
class Maps:
    """The maps of a graph whose layout may change.

    Args:
        layers: convolutions by node, in the graph's order.
        numbers: of the set that each map is in.
    """

    layers: list[tuple[ir.Node, MapLayer]]
    numbers: dict[ir.Value, int]

    def channels(self) -> dict[int, int]:
        """Of every set."""
        return {number: _shape(value)[0] for value, number in self.numbers.items()}


def read_maps(graph: ir.Graph, layers: Mapping[str, LowBitLayer]) -> Maps:
    """Which maps of a graph may change their layout, and who reads and writes them.

    Args:
        graph: float, BatchNorm folded.
        layers: low-bit layers by the name of their weight's initializer.
    """
    convolutions = [node for node in graph if _may_fold(node, layers)]
    values = TiedValues()
    for node in graph:
        if node in convolutions:
            values.add(node.inputs[0])
            values.add(node.outputs[0])
        else:
            _tie(node, values)
    for end in (*graph.inputs, *graph.outputs):
        values.block(end)
    places = {root: place for place, root in enumerate(values.roots())}
    numbers = {
        value: places[values.root(value)] for value in values.members() if not values.blocked(value)
    }
    return Maps([(node, _map_layer(node, layers, numbers)) for node in convolutions], numbers)


def _may_fold(node: ir.Node, layers: Mapping[str, LowBitLayer]) -> bool:
    if not is_full_convolution(node, layers):
        return False
    padding = node.attributes.get("auto_pad")
    return (
        (padding is None or padding.value == "NOTSET")
        and _is_map(node.inputs[0])
        and _is_map(node.outputs[0])
    )


def _tie(node: ir.Node, values: TiedValues) -> None:
    """What a node that is no convolution says of the layout of what it reads and writes."""
    ends = [value for value in (*node.inputs, *node.outputs) if value is not None]
    sources = ends[: 2 if node.op_type == "Add" else 1]
    output = node.outputs[0]
    if node.op_type in _SAME_COLUMNS and all(map(_is_map, (*sources, output))):
        for source in sources:
            values.tie(output, source)
            if _shape(source) != _shape(output):
                values.block(source)
    else:
        for value in ends:
            values.block(value)


def _map_layer(
    node: ir.Node, layers: Mapping[str, LowBitLayer], numbers: Mapping[ir.Value, int]
) -> MapLayer:
    source, weight = node.inputs[0], node.inputs[1]
    assert source is not None
    assert weight is not None
    output = node.outputs[0]
    reading = Reading(
        columns=(_shape(source)[2], _shape(output)[2]),
        kernel=layers[str(weight.name)].integers.shape[3],
        stride=_attribute(node, "strides", (1, 1))[1],
        dilation=_attribute(node, "dilations", (1, 1))[1],
        pad=_attribute(node, "pads", (0, 0, 0, 0))[1],
    )
    name = layers[str(weight.name)].name
    return MapLayer(name, numbers.get(source), numbers.get(output), reading)


def _is_map(value: ir.Value | None) -> bool:
    """Whether a value is computed and has channels, rows and columns of known number."""
    if value is None or value.const_value is not None or value.shape is None:
        return False
    return len(value.shape) == 4 and all(isinstance(size, int) for size in value.shape.dims[1:])


def _shape(value: ir.Value) -> tuple[int, int, int]:
    """Channels, rows and columns."""
    assert value.shape is not None
    channels, rows, columns = (int(size) for size in value.shape.dims[1:])  # type: ignore[arg-type]
    return channels, rows, columns


def _attribute(node: ir.Node, name: str, default: tuple[int, ...]) -> list[int]:
    given = node.attributes.get(name)
    return list(default if given is None else given.value)


def _rewrite(
    graph: ir.Graph,
    node: ir.Node,
    reading: FoldedReading | None,
    folds: tuple[int, int],
    layers: dict[str, LowBitLayer],
) -> None:
    """Let a convolution read and write folded columns."""
    weight = node.inputs[1]
    assert reading is not None
    assert weight is not None
    assert weight.const_value is not None
    array = _kernel(weight.const_value.numpy(), reading, folds)
    weight.const_value = ir.tensor(array, name=weight.name)
    weight.shape = ir.Shape(array.shape)
    layer = layers[str(weight.name)]
    layers[str(weight.name)] = replace(
        layer,
        integers=_kernel(layer.integers, reading, folds),
        scales=np.tile(layer.scales, folds[1]),
    )
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and folds[1] > 1:
        assert bias.const_value is not None
        repeated = np.tile(bias.const_value.numpy(), folds[1])
        name = f"{node.outputs[0].name}.folded_bias"
        node.replace_input_with(2, add_initializer(graph, name, repeated))
    top, _, bottom, _ = _attribute(node, "pads", (0, 0, 0, 0))
    attributes = {
        "kernel_shape": list(array.shape[2:]),
        "strides": [_attribute(node, "strides", (1, 1))[0], reading.stride],
        "dilations": [_attribute(node, "dilations", (1, 1))[0], 1],
        "pads": [top, reading.pads[0], bottom, reading.pads[1]],
    }
    for name, values in attributes.items():
        node.attributes[name] = ir.AttrInt64s(name, values)


def _kernel(weight: NDArray[Any], reading: FoldedReading, folds: tuple[int, int]) -> NDArray[Any]:
    """(after * out, before * in, rows, folded columns) of (out, in, rows, columns) weights."""
    before, after = folds
    outputs, inputs, rows, _ = weight.shape
    found = np.zeros((after, outputs, before, inputs, rows, reading.kernel), weight.dtype)
    for written, column, place, read in reading.taps:
        found[written, :, read, :, :, place] = weight[:, :, :, column]
    return found.reshape(after * outputs, before * inputs, rows, reading.kernel)


def _reshape(value: ir.Value, fold: int) -> None:
    """Say in the shape of a value what it holds now."""
    channels, rows, columns = _shape(value)
    assert value.shape is not None
    value.shape = ir.Shape([value.shape[0], channels * fold, rows, columns // fold])
