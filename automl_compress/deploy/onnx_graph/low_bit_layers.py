"""Layers whose weights lie on a grid, and their weights in an ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from automl_compress.deploy.onnx_graph.grids import Floats, Grid
from automl_compress.deploy.onnx_graph.nodes import add_initializer

Integers = NDArray[np.int8]

LAYERS: Final = ("Conv", "Gemm", "MatMul")
LARGEST_BIAS: Final = 2**30
HELD_TOLERANCE: Final = 1e-3
"""Share of a step that a weight may be off its integer, which float32 rounding never reaches."""


@dataclass(frozen=True)
class LowBitLayer:
    """A layer of the PyTorch network whose weights lie on a grid.

    Args:
        name: the module's name.
        bits: weight bits, 2..8.
        integers: (out, ...) weights as integers.
        scales: (out,) their scales.
        input_grid: what its `InputQuantizer` rounds to, or None.
        moves: whether it only copies channels, so that its output lies on its input's grid.
    """

    name: str
    bits: int
    integers: Integers
    scales: Floats
    input_grid: Grid | None
    moves: bool = False


@dataclass(frozen=True)
class HeldLayer:
    """A node that runs on integers: its layer and the weights after folding."""

    layer: LowBitLayer
    integers: Integers
    scales: Floats
    transposed: bool


def name_weights(graph: ir.Graph, layers: Mapping[str, LowBitLayer]) -> dict[str, LowBitLayer]:
    """Give weights names that survive optimization: a transposed use gets its own initializer.

    Args:
        graph: as PyTorch exports it; changed in place.
        layers: low-bit layers by module name.

    Returns:
        The layers by the name of their initializers, transposed ones included.
    """
    found = {}
    for name, layer in layers.items():
        weight = graph.initializers.get(f"{name}.weight")
        if weight is None or weight.const_value is None:
            continue
        found[f"{name}.weight"] = layer
        transposes = [user for user in weight.consumers() if user.op_type == "Transpose"]
        if transposes:
            turned = f"{name}.weight.transposed"
            value = add_initializer(graph, turned, weight.const_value.numpy().T.copy())
            for user in transposes:
                user.outputs[0].replace_all_uses_with(value)
            found[turned] = layer
    return found


def separate_weights(graph: ir.Graph, layers: Mapping[str, LowBitLayer]) -> dict[str, LowBitLayer]:
    """Give every use of a low-bit weight an initializer of its own, so that it can change alone.

    The file stores integers once per use anyway. Equal weights of several layers share one too.

    Args:
        graph: float; changed in place.
        layers: low-bit layers by the name of their weight's initializer.

    Returns:
        The layers by the names of all initializers.
    """
    found = dict(layers)
    for name, layer in layers.items():
        weight = graph.initializers.get(name)
        if weight is None or weight.const_value is None:
            continue
        for number, (node, place) in enumerate(list(weight.uses())[1:], 1):
            own = f"{name}.{number}"
            value = add_initializer(graph, own, weight.const_value.numpy())
            node.replace_input_with(place, value)
            found[own] = layer
    return found


def hold(node: ir.Node, layers: Mapping[str, LowBitLayer]) -> HeldLayer | None:
    """The weights of a node as integers; None when it is no low-bit layer or folding broke it."""
    if node.op_type not in LAYERS or len(node.inputs) < 2 or node.inputs[1] is None:
        return None
    weight = node.inputs[1]
    layer = layers.get(str(weight.name))
    if layer is None or weight.const_value is None:
        return None
    if node.op_type == "Gemm" and not _plain_gemm(node):
        return None
    values = weight.const_value.numpy()
    transposed = node.op_type == "MatMul"
    if transposed:
        values = values.T
    if values.shape != layer.integers.shape:
        return None
    rows = values.reshape(len(values), -1).astype(np.float64)
    integers = layer.integers.reshape(len(values), -1)
    squares = np.square(integers, dtype=np.float64).sum(axis=1)
    factors = (rows * integers).sum(axis=1) / np.maximum(squares, 1)
    off = np.abs(rows - factors[:, None] * integers).max(axis=1)
    if (off > HELD_TOLERANCE * np.abs(factors)).any():
        return None
    signs = np.where(factors < 0, -1, 1).astype(np.int8)
    signed = (integers * signs[:, None]).reshape(layer.integers.shape)
    scales = np.where(factors == 0, layer.scales, np.abs(factors)).astype(np.float32)
    # Folded weights of exactly zero stand for integers that no longer count.
    dead = (factors == 0).reshape(-1, *[1] * (signed.ndim - 1))
    return HeldLayer(layer, np.where(dead, np.int8(0), signed), scales, transposed)


def _plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm computes x @ weight.T + bias."""
    defaults = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
    wanted = {**defaults, "transB": 1}
    given = {name: node.attributes[name].value for name in defaults if name in node.attributes}
    return {**defaults, **given} == wanted


def room_for_bias(
    integers: Integers, scales: Floats, bias: Floats, input_scale: float
) -> tuple[Integers, Floats]:
    """Weights whose scales are large enough for the bias to be an int32."""
    least = (np.abs(bias) / (input_scale * LARGEST_BIAS)).astype(np.float32)
    if (least <= scales).all():
        return integers, scales
    raised = np.maximum(scales, least)
    ratio = (scales / raised).reshape(-1, *[1] * (integers.ndim - 1))
    return np.rint(integers * ratio).astype(np.int8), raised
