"""Parts of an ONNX graph."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray


def add_initializer(graph: ir.Graph, name: str, array: NDArray[Any]) -> ir.Value:
    """A constant of a graph, under a name that is not taken yet."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name,
        const_value=tensor,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
    )
    graph.register_initializer(value)
    return value


def new_node(
    kind: str, inputs: list[ir.Value], output: str, attributes: dict[str, Any] | None = None
) -> ir.Node:
    """A node with one output, which gives it its name."""
    return ir.node(kind, inputs, attributes, outputs=[ir.Value(name=output)], name=output)
