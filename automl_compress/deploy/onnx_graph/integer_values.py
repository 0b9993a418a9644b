"""Which values of an ONNX graph are kept as integers."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Final

import onnx_ir as ir

from automl_compress.deploy.onnx_graph.gates import SILU
from automl_compress.deploy.onnx_graph.grids import Grid
from automl_compress.deploy.onnx_graph.low_bit_layers import HeldLayer

MERGES: Final = ("Add", "Concat", "AveragePool", "GlobalAveragePool")
"""Operators with integer kernels that need a grid for their output.

Where no layer comes after it, a Concat stays in floats: what it puts side by side are a network's
answers, such as a detector's logits and edges of boxes, which no one grid fits.
"""
GATES: Final = ("HardSigmoid", "Mul", "Sigmoid")
"""Others, which are no faster on integers than in floats unless integer kernels read the output."""
MOVES: Final = (
    "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that move or choose values, so that their output lies on their input's grid."""
_RESIZES: Final = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
"""Attributes of a Resize that repeats values."""
ABSORBED: Final = ("Relu", "Clip")
"""Activations that an integer kernel applies by saturating."""


class IntegerValues:
    """Values that are kept as integers, and whose grids they lie on.

    Args:
        graph: float; not changed.
        held: its nodes whose weights are integers.

    Attributes:
        held: those that compute with integers or move them.
        roots: values kept as integers, in the graph's order; each with the value whose grid it has.
    """

    def __init__(self, graph: ir.Graph, held: Mapping[ir.Node, HeldLayer]) -> None:
        self._graph = graph
        self.held = dict(held)
        self._before_layers = self._values_before_layers()
        self.roots = self._stored_values()
        for node, one in held.items():
            if one.layer.moves and node.inputs[0] not in self.roots:
                del self.held[node]  # it copies floats

    def demanded(self, value: ir.Value) -> Grid | None:
        """The one grid that all readers of a value demand; None when there is none."""
        demands = self._demands(value)
        return demands.pop() if len(demands) == 1 else None

    def _stored_values(self) -> dict[ir.Value, ir.Value]:
        """Values kept as integers, in the graph's order; each with the value whose grid it has.

        What gates read is worth storing where a layer reads what they write and all they read is
        stored; each depends on the other, so that the most is tried first.
        """
        roots = self._storable(self._read_values(None))
        while len(fewer := self._storable(self._read_values(roots))) < len(roots):
            roots = fewer
        return roots

    def _read_values(self, roots: Container[ir.Value | None] | None) -> set[ir.Value | None]:
        """Values that layers read, at once or through nodes that run on integers.

        Args:
            roots: values kept as integers; None when all may be.
        """
        found = {node.inputs[0] for node in self.held}
        for node in reversed(self._graph):
            if self._moves(node):
                if node.outputs[0] in found:
                    found.add(node.inputs[0])
            elif (
                node.op_type in (*MERGES, *GATES)
                and _absorbed(node.outputs[0]) in found
                and (roots is None or all(value in roots for value in node.inputs))
            ):
                found.update(node.inputs)
        return found

    def _storable(self, read: Container[ir.Value | None]) -> dict[ir.Value, ir.Value]:
        """Values kept as integers if so many are read as such; each with the one it shares with."""
        wanted = self._wanted(read)
        roots = {
            value: value
            for value in self._graph.inputs
            if value in wanted
            or any(self._moves(n) and n.outputs[0] in wanted for n in value.consumers())
        }
        for node in self._graph:
            source = node.inputs[0] if node.inputs else None
            if source in roots and self._moves(node):
                roots[node.outputs[0]] = roots[source]
            elif self._writes_integers(node) or (
                self._merges(node, read) and all(value in roots for value in node.inputs)
            ):
                final = _absorbed(node.outputs[0])
                roots[final] = final
            for output in node.outputs:
                if output in wanted and output not in roots:
                    roots[output] = output
        return roots

    def _values_before_layers(self) -> set[ir.Value | None]:
        """Values that what a layer reads is made of."""
        found: set[ir.Value | None] = set()
        for node in reversed(self._graph):
            if node in self.held or any(output in found for output in node.outputs):
                found.update(node.inputs)
        return found

    def _merges(self, node: ir.Node, read: Container[ir.Value | None]) -> bool:
        """Whether a node has an integer kernel that is worth a grid for its output."""
        if node.op_type == "Concat":
            return node.outputs[0] in self._before_layers
        gates = node.op_type in GATES and _absorbed(node.outputs[0]) in read
        return gates or node.op_type in MERGES

    def _wanted(self, read: Container[ir.Value | None]) -> set[ir.Value]:
        """Values that must be integers, and floats that become integers for the sake of a gate."""
        found = {
            node.inputs[0]
            for node, held in self.held.items()
            if held.layer.input_grid is None and not held.layer.moves and node.inputs[0] is not None
        }
        for node in self._graph:
            if _absorbed(node.outputs[0]) in read and (_gates_channels(node) or _means_gated(node)):
                found.update(value for value in node.inputs if value is not None)
        return found

    def _moves(self, node: ir.Node) -> bool:
        return self.held[node].layer.moves if node in self.held else _only_moves(node)

    def _writes_integers(self, node: ir.Node) -> bool:
        """Whether a layer's integer kernel needs a grid for its output."""
        if node not in self.held or self.held[node].layer.moves:
            return False
        return node.op_type == "Conv" or _absorbed(node.outputs[0]) is not node.outputs[0]

    def _demands(self, value: ir.Value) -> set[Grid | None]:
        found: set[Grid | None] = {None} if value.is_graph_output() else set()
        for node, _ in value.uses():
            if self._moves(node) and node.outputs[0] in self.roots:
                found |= self._demands(node.outputs[0])
            elif node in self.held:
                found.add(self.held[node].layer.input_grid)
            else:
                found.add(None)
        return found


def _only_moves(node: ir.Node) -> bool:
    """Whether a node's one output holds nothing but values of its first input, and zeros."""
    if node.op_type == "Pad" and len(node.inputs) > 2 and node.inputs[2] is not None:
        filler = node.inputs[2].const_value
        return filler is not None and not filler.numpy().any()
    if node.op_type == "Resize":
        given = {name: node.attributes[name].value for name in _RESIZES if name in node.attributes}
        return given == _RESIZES
    return node.op_type in MOVES and len(node.outputs) == 1


def _gates_channels(node: ir.Node) -> bool:
    """Whether a node multiplies the channels of a map by one computed value each."""
    if node.op_type != "Mul" or len(node.inputs) != 2:
        return False
    if any(value is None or value.const_value is not None for value in node.inputs):
        return False
    shapes = [list(value.shape or ()) for value in node.inputs if value is not None]
    return (
        {len(shape) for shape in shapes} == {4}
        and shapes[0][:2] == shapes[1][:2]
        and ([1, 1] in (shapes[0][2:], shapes[1][2:]))
    )


def _means_gated(node: ir.Node) -> bool:
    """Whether a node is the mean of what a SiLU gives, which is quantized sooner or later."""
    source = node.inputs[0] if node.op_type == "GlobalAveragePool" else None
    producer = None if source is None else source.producer()
    return producer is not None and producer.op_type == SILU


def _absorbed(output: ir.Value) -> ir.Value:
    """The value after an activation that an integer kernel applies too; else the value itself."""
    users = list(output.consumers())
    if len(users) == 1 and users[0].op_type in ABSORBED and not output.is_graph_output():
        return users[0].outputs[0]
    return output
