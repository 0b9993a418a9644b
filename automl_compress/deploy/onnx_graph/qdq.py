"""INT8 in an ONNX graph: QuantizeLinear and DequantizeLinear around what runs on integers.

ONNX Runtime's own quantizer rounds float weights again, holds one 8-bit grid per tensor and no
fewer levels than 256. Here the integers exist already and layers that read one tensor may each
have a grid of their own with 16 levels, so the nodes are inserted here, in the form its fusions
expect:

- A layer's weight is its int8 integers with one scale per output channel. BatchNorm that was
  folded into it changes scales, not integers; a negative factor changes their signs.
- A bias is int32 at input scale times weight scale. Where that cannot hold it (a channel whose
  weights are next to nothing), the channel's scale is raised until it can.
- Activations are uint8. A grid of fewer than 8 bits is cut with a Clip on integers.
- A tensor that only layers with one and the same `InputQuantizer` read is stored on their grid.
  Any other is stored on a calibrated grid of 256 levels, and a layer with a grid of its own
  rounds once more.
- Sums, concatenations and poolings of integers stay integers, but for answers that a network puts
  side by side, which no one grid fits; so does what only moves values, channel shortcuts as 1x1
  convolutions of zeros and ones among it. ONNX Runtime takes the nodes away that round around most
  of these, but not around padding and enlarging, which work on the integers themselves here.
- Sigmoids and products are integers where that is faster, see `gates`. Each rounds to 256 levels of
  a calibrated grid. A piecewise linear sigmoid is a sum that saturates at both ends of its grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from automl_compress.deploy.onnx_graph.gates import linear_part
from automl_compress.deploy.onnx_graph.grids import Floats, Grid
from automl_compress.deploy.onnx_graph.integer_values import IntegerValues
from automl_compress.deploy.onnx_graph.low_bit_layers import (
    HeldLayer,
    LowBitLayer,
    hold,
    room_for_bias,
)
from automl_compress.deploy.onnx_graph.nodes import add_initializer, new_node

ON_INTEGERS: Final = ("Pad", "Resize")
"""Operators that only move values, and here move integers."""
_ONE: Final = 1 + 1e-6
"""Largest value of a grid that ends at 1.0, its scale being rounded to float32."""


class QdqPass:
    """Puts the low-bit layers of one graph on integers.

    Args:
        model: the float graph, BatchNorm folded; changed in place by `insert`.
        layers: low-bit layers by the name of their weight's initializer, see `name_weights`.
    """

    def __init__(self, model: ir.Model, layers: Mapping[str, LowBitLayer]) -> None:
        self._graph = model.graph
        found = {node: held for node in self._graph if (held := hold(node, layers)) is not None}
        self._values = IntegerValues(self._graph, found)

    @property
    def held(self) -> list[LowBitLayer]:
        """The layers that compute with integers, in the graph's order; once per use."""
        return [held.layer for held in self._values.held.values() if not held.layer.moves]

    def uncalibrated(self) -> list[str]:
        """Names of the values whose ranges `insert` needs."""
        return [
            str(value.name)
            for value, root in self._values.roots.items()
            if value is root and self._values.demanded(value) is None
        ]

    def insert(self, grids: Mapping[str, Grid]) -> None:
        """Insert the nodes.

        Args:
            grids: the grid of every value in `uncalibrated()`.
        """
        chosen = {
            value: self._values.demanded(value) or grids[str(value.name)]
            for value, root in self._values.roots.items()
            if value is root
        }
        stored: dict[ir.Value, Grid] = {}
        integers: dict[ir.Value | None, ir.Value] = {}
        for value, root in self._values.roots.items():
            grid, name = chosen[root], str(value.name)
            uses, producer = list(value.uses()), value.producer()
            if root is not value and producer is not None and producer.op_type in ON_INTEGERS:
                self._move_integers(producer, integers[producer.inputs[0]], grid)
                levels = value
            else:
                levels = self._quantized(value, grid, name)
            rounded = self._rounded(levels, grid, name)
            integers[rounded] = levels
            for node, place in uses:
                node.replace_input_with(place, rounded)
            stored[rounded] = grid
        for node, held in self._values.held.items():
            self._quantize_layer(node, held, self._read_grid(node, held.layer, stored))
        for node in [node for node in self._graph if node.op_type == "HardSigmoid"]:
            source, output = node.inputs[0], node.outputs[0]
            if source in stored and output in chosen:
                assert source is not None
                self._saturate(node, integers[source], stored[source], chosen[output])

    def _read_grid(
        self, node: ir.Node, layer: LowBitLayer, stored: Mapping[ir.Value, Grid]
    ) -> Grid:
        """The grid a layer reads; its input is rounded once more where it has one of its own."""
        source = node.inputs[0]
        assert source is not None
        own, given = layer.input_grid, stored.get(source)
        if own is None or own == given:
            assert given is not None
            return given
        node.replace_input_with(0, self._round(source, own, f"{node.outputs[0].name}.input"))
        return own

    def _round(self, value: ir.Value, grid: Grid, name: str) -> ir.Value:
        """Insert the nodes that round a value to a grid; returns the rounded value."""
        return self._rounded(self._quantized(value, grid, name), grid, name)

    def _quantized(self, value: ir.Value, grid: Grid, name: str) -> ir.Value:
        """Insert the nodes that give a value's integers on a grid."""
        nodes = [new_node("QuantizeLinear", [value, *self._steps(grid, name)], f"{name}.quantized")]
        if (grid.low, grid.high) != (0, 255):
            low = self._constant(f"{name}.low", np.uint8(grid.low))
            high = self._constant(f"{name}.high", np.uint8(grid.high))
            nodes.append(new_node("Clip", [nodes[-1].outputs[0], low, high], f"{name}.clipped"))
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], nodes)
        else:
            self._graph.insert_after(producer, nodes)
        return nodes[-1].outputs[0]

    def _rounded(self, integers: ir.Value, grid: Grid, name: str) -> ir.Value:
        """Insert the node that gives the values that integers on a grid stand for."""
        node = new_node("DequantizeLinear", [integers, *self._steps(grid, name)], f"{name}.rounded")
        producer = integers.producer()
        assert producer is not None
        self._graph.insert_after(producer, node)
        return node.outputs[0]

    def _steps(self, grid: Grid, name: str) -> list[ir.Value]:
        """Scale and zero point of a grid as constants."""
        return [
            self._constant(f"{name}.scale", np.float32(grid.scale)),
            self._constant(f"{name}.zero_point", np.uint8(grid.zero_point)),
        ]

    def _move_integers(self, node: ir.Node, integers: ir.Value, grid: Grid) -> None:
        """Let a node that only moves values read and write integers on a grid."""
        node.replace_input_with(0, integers)
        node.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        if node.op_type == "Pad":
            filler = self._constant(f"{node.outputs[0].name}.filler", np.uint8(grid.zero_point))
            node.resize_inputs(max(3, len(node.inputs)))
            node.replace_input_with(2, filler)

    def _saturate(self, node: ir.Node, integers: ir.Value, given: Grid, grid: Grid) -> None:
        """Put a sum in place of a piecewise linear sigmoid where its grid ends where that does."""
        slope, offset = linear_part(node)
        ends = not (grid.zero_point or grid.low or grid.largest > _ONE)
        if not ends or min(slope, offset) <= 0 or node.outputs[0].is_graph_output():
            return
        name = str(node.outputs[0].name)
        one = self._constant(f"{name}.one", np.uint8(1))
        scaled = replace(given, scale=given.scale * slope)
        terms = [
            new_node("DequantizeLinear", [levels, *self._steps(step, part)], f"{part}.rounded")
            for part, levels, step in (
                (f"{name}.scaled", integers, scaled),
                (f"{name}.offset", one, Grid(offset)),
            )
        ]
        added = new_node("Add", [term.outputs[0] for term in terms], f"{name}.sum")
        self._graph.insert_before(node, [*terms, added])
        node.outputs[0].replace_all_uses_with(added.outputs[0])
        self._graph.remove(node, safe=True)

    def _quantize_layer(self, node: ir.Node, held: HeldLayer, grid: Grid) -> None:
        name = f"{held.layer.name}.weight"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        integers, scales = held.integers, held.scales
        if bias is not None and bias.const_value is not None:
            values = bias.const_value.numpy()
            integers, scales = room_for_bias(integers, scales, values, grid.scale)
            steps = np.float32(grid.scale) * scales
            rounded = np.rint(values.astype(np.float64) / steps).astype(np.int32)
            node.replace_input_with(
                2, self._dequantized(node, f"{node.outputs[0].name}.bias", rounded, steps, 0)
            )
        if held.transposed:
            integers = integers.T
        axis = 1 if held.transposed else 0
        node.replace_input_with(1, self._dequantized(node, name, integers, scales, axis))

    def _dequantized(
        self, node: ir.Node, name: str, integers: NDArray[Any], scales: Floats, axis: int
    ) -> ir.Value:
        # `runtime.EXACT` writes weights and zero points anew, and fails where two layers read one.
        alone = integers.dtype == np.int8
        inputs = [
            self._constant(f"{name}_quantized", np.ascontiguousarray(integers), alone),
            self._constant(f"{name}_scale", scales),
            self._constant(f"{name}_zero_point", np.zeros(len(scales), integers.dtype), alone),
        ]
        output = f"{node.outputs[0].name}.{name}_rounded"
        result = new_node("DequantizeLinear", inputs, output, {"axis": axis})
        self._graph.insert_before(node, result)
        return result.outputs[0]

    def _constant(
        self, name: str, array: NDArray[Any] | np.generic, alone: bool = False
    ) -> ir.Value:
        """An initializer; equal ones of one name are stored once, unless each stands alone."""
        place = name
        while place in self._graph.initializers:
            held = self._graph.initializers[place]
            assert held.const_value is not None
            if not alone and np.array_equal(held.const_value.numpy(), array):
                return held
            place += "_"
        return add_initializer(self._graph, place, np.asarray(array))
