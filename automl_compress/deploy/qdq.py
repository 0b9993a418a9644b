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
- Sums, concatenations and poolings of integers stay integers; so does what only moves values,
  channel shortcuts as 1x1 convolutions of zeros and ones among it. ONNX Runtime takes the nodes
  away that round around most of these, but not around padding and enlarging, which work on the
  integers themselves here.
- Sigmoids and products are integers where that is faster, see `gates`. Each rounds to 256 levels of
  a calibrated grid. A piecewise linear sigmoid is a sum that saturates at both ends of its grid.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from automl_compress.compress.quantize import CLIPS
from automl_compress.deploy.gates import SILU, linear_part

Integers = NDArray[np.int8]
Floats = NDArray[np.float32]

LAYERS: Final = ("Conv", "Gemm", "MatMul")
MERGES: Final = ("Add", "Concat", "AveragePool", "GlobalAveragePool")
"""Operators with integer kernels that need a grid for their output."""
GATES: Final = ("HardSigmoid", "Mul", "Sigmoid")
"""Others, which are no faster on integers than in floats unless integer kernels read the output."""
MOVES: Final = (
    "Flatten", "Gather", "Identity", "MaxPool", "Pad", "Reshape", "Resize", "Slice", "Squeeze",
    "Transpose", "Unsqueeze",
)  # fmt: skip
"""Operators that move or choose values, so that their output lies on their input's grid."""
ON_INTEGERS: Final = ("Pad", "Resize")
"""Those of them that read and write integers in the file."""
_RESIZES: Final = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}
"""Attributes of a Resize that repeats values."""
ABSORBED: Final = ("Relu", "Clip")
"""Activations that an integer kernel applies by saturating."""
_ONE: Final = 1 + 1e-6
"""Largest value of a grid that ends at 1.0, its scale being rounded to float32."""
LARGEST_BIAS: Final = 2**30
HELD_TOLERANCE: Final = 1e-3
"""Share of a step that a weight may be off its integer, which float32 rounding never reaches."""


@dataclass(frozen=True)
class Grid:
    """The values a uint8 tensor stands for: (integer - zero_point) * scale.

    Args:
        scale: step between two levels.
        zero_point: the integer of 0.0.
        low: smallest integer used.
        high: largest integer used.
    """

    scale: float
    zero_point: int = 0
    low: int = 0
    high: int = 255

    @property
    def largest(self) -> float:
        """The largest value there is."""
        return (self.high - self.zero_point) * self.scale


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
class _Held:
    """A node that runs on integers: its layer and the weights after folding."""

    layer: LowBitLayer
    integers: Integers
    scales: Floats
    transposed: bool


def choose_grid(low: float, high: float, sample: Floats) -> Grid:
    """The grid of 256 levels with the least squared error.

    Args:
        low: smallest value seen.
        high: largest value seen.
        sample: (n,) some of the values.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        return Grid(1.0)

    def error(grid: Grid) -> float:
        levels = np.clip(np.rint(sample / grid.scale) + grid.zero_point, 0, 255)
        return float(np.square((levels - grid.zero_point) * grid.scale - sample).sum())

    return min((_span(low * clip, high * clip) for clip in CLIPS), key=error)


def _span(low: float, high: float) -> Grid:
    scale = float(np.float32((high - low) / 255))
    return Grid(scale, round(-low / scale))


class QdqPass:
    """Puts the low-bit layers of one graph on integers.

    Args:
        model: the float graph, BatchNorm folded; changed in place by `insert`.
        layers: low-bit layers by the name of their weight's initializer, see `name_weights`.
    """

    def __init__(self, model: ir.Model, layers: Mapping[str, LowBitLayer]) -> None:
        self._graph = model.graph
        self._held = {
            node: held for node in self._graph if (held := _hold(node, layers)) is not None
        }
        self._roots = self._stored_values()
        for node, held in list(self._held.items()):
            if held.layer.moves and node.inputs[0] not in self._roots:
                del self._held[node]  # it copies floats

    @property
    def held(self) -> list[LowBitLayer]:
        """The layers that compute with integers, in the graph's order; once per use."""
        return [held.layer for held in self._held.values() if not held.layer.moves]

    def uncalibrated(self) -> list[str]:
        """Names of the values whose ranges `insert` needs."""
        return [
            str(value.name)
            for value, root in self._roots.items()
            if value is root and self._demanded(value) is None
        ]

    def insert(self, grids: Mapping[str, Grid]) -> None:
        """Insert the nodes.

        Args:
            grids: the grid of every value in `uncalibrated()`.
        """
        chosen = {
            value: self._demanded(value) or grids[str(value.name)]
            for value, root in self._roots.items()
            if value is root
        }
        stored: dict[ir.Value, Grid] = {}
        integers: dict[ir.Value | None, ir.Value] = {}
        for value, root in self._roots.items():
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
        for node, held in self._held.items():
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
        found = {node.inputs[0] for node in self._held}
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
                _merges(node, read) and all(value in roots for value in node.inputs)
            ):
                final = _absorbed(node.outputs[0])
                roots[final] = final
            for output in node.outputs:
                if output in wanted and output not in roots:
                    roots[output] = output
        return roots

    def _wanted(self, read: Container[ir.Value | None]) -> set[ir.Value]:
        """Values that must be integers, and floats that become integers for the sake of a gate."""
        found = {
            node.inputs[0]
            for node, held in self._held.items()
            if held.layer.input_grid is None and not held.layer.moves and node.inputs[0] is not None
        }
        for node in self._graph:
            if _absorbed(node.outputs[0]) in read and (_gates_channels(node) or _means_gated(node)):
                found.update(value for value in node.inputs if value is not None)
        return found

    def _moves(self, node: ir.Node) -> bool:
        return self._held[node].layer.moves if node in self._held else _only_moves(node)

    def _writes_integers(self, node: ir.Node) -> bool:
        """Whether a layer's integer kernel needs a grid for its output."""
        if node not in self._held or self._held[node].layer.moves:
            return False
        return node.op_type == "Conv" or _absorbed(node.outputs[0]) is not node.outputs[0]

    def _demanded(self, value: ir.Value) -> Grid | None:
        """The one grid that all readers of a value demand; None when there is none."""
        demands = self._demands(value)
        return demands.pop() if len(demands) == 1 else None

    def _demands(self, value: ir.Value) -> set[Grid | None]:
        found: set[Grid | None] = {None} if value.is_graph_output() else set()
        for node, _ in value.uses():
            if self._moves(node) and node.outputs[0] in self._roots:
                found |= self._demands(node.outputs[0])
            elif node in self._held:
                found.add(self._held[node].layer.input_grid)
            else:
                found.add(None)
        return found

    def _round(self, value: ir.Value, grid: Grid, name: str) -> ir.Value:
        """Insert the nodes that round a value to a grid; returns the rounded value."""
        return self._rounded(self._quantized(value, grid, name), grid, name)

    def _quantized(self, value: ir.Value, grid: Grid, name: str) -> ir.Value:
        """Insert the nodes that give a value's integers on a grid."""
        nodes = [_node("QuantizeLinear", [value, *self._steps(grid, name)], f"{name}.quantized")]
        if (grid.low, grid.high) != (0, 255):
            low = self._constant(f"{name}.low", np.uint8(grid.low))
            high = self._constant(f"{name}.high", np.uint8(grid.high))
            nodes.append(_node("Clip", [nodes[-1].outputs[0], low, high], f"{name}.clipped"))
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], nodes)
        else:
            self._graph.insert_after(producer, nodes)
        return nodes[-1].outputs[0]

    def _rounded(self, integers: ir.Value, grid: Grid, name: str) -> ir.Value:
        """Insert the node that gives the values that integers on a grid stand for."""
        node = _node("DequantizeLinear", [integers, *self._steps(grid, name)], f"{name}.rounded")
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
            _node("DequantizeLinear", [levels, *self._steps(step, part)], f"{part}.rounded")
            for part, levels, step in (
                (f"{name}.scaled", integers, scaled),
                (f"{name}.offset", one, Grid(offset)),
            )
        ]
        added = _node("Add", [term.outputs[0] for term in terms], f"{name}.sum")
        self._graph.insert_before(node, [*terms, added])
        node.outputs[0].replace_all_uses_with(added.outputs[0])
        self._graph.remove(node, safe=True)

    def _quantize_layer(self, node: ir.Node, held: _Held, grid: Grid) -> None:
        name = f"{held.layer.name}.weight"
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        integers, scales = held.integers, held.scales
        if bias is not None and bias.const_value is not None:
            values = bias.const_value.numpy()
            integers, scales = _room_for_bias(integers, scales, values, grid.scale)
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
        result = _node("DequantizeLinear", inputs, output, {"axis": axis})
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


def _node(
    kind: str, inputs: list[ir.Value], output: str, attributes: dict[str, Any] | None = None
) -> ir.Node:
    return ir.node(kind, inputs, attributes, outputs=[ir.Value(name=output)], name=output)


def _only_moves(node: ir.Node) -> bool:
    """Whether a node's one output holds nothing but values of its first input, and zeros."""
    if node.op_type == "Pad" and len(node.inputs) > 2 and node.inputs[2] is not None:
        filler = node.inputs[2].const_value
        return filler is not None and not filler.numpy().any()
    if node.op_type == "Resize":
        given = {name: node.attributes[name].value for name in _RESIZES if name in node.attributes}
        return given == _RESIZES
    return node.op_type in MOVES and len(node.outputs) == 1


def _merges(node: ir.Node, read: Container[ir.Value | None]) -> bool:
    """Whether a node has an integer kernel that is worth a grid for its output."""
    gates = node.op_type in GATES and _absorbed(node.outputs[0]) in read
    return gates or node.op_type in MERGES


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


def _hold(node: ir.Node, layers: Mapping[str, LowBitLayer]) -> _Held | None:
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
    return _Held(layer, np.where(dead, np.int8(0), signed), scales, transposed)


def _plain_gemm(node: ir.Node) -> bool:
    """Whether a Gemm computes x @ weight.T + bias."""
    defaults = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
    wanted = {**defaults, "transB": 1}
    given = {name: node.attributes[name].value for name in defaults if name in node.attributes}
    return {**defaults, **given} == wanted


def _room_for_bias(
    integers: Integers, scales: Floats, bias: Floats, input_scale: float
) -> tuple[Integers, Floats]:
    """Weights whose scales are large enough for the bias to be an int32."""
    least = (np.abs(bias) / (input_scale * LARGEST_BIAS)).astype(np.float32)
    if (least <= scales).all():
        return integers, scales
    raised = np.maximum(scales, least)
    ratio = (scales / raised).reshape(-1, *[1] * (integers.ndim - 1))
    return np.rint(integers * ratio).astype(np.int8), raised


@dataclass
class Ranges:
    """Ranges and samples of values, gathered batch by batch.

    Args:
        per_batch: values kept of one tensor in one batch.
        seed: decides which.
    """

    per_batch: int = 4096
    seed: int = 0
    _low: dict[str, float] = field(default_factory=dict)
    _high: dict[str, float] = field(default_factory=dict)
    _kept: dict[str, list[Floats]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def add(self, name: str, values: Floats) -> None:
        """Look at one batch of a value (any shape)."""
        flat = values.reshape(-1)
        self._low[name] = min(self._low.get(name, 0.0), float(flat.min()))
        self._high[name] = max(self._high.get(name, 0.0), float(flat.max()))
        chosen = self._rng.integers(0, len(flat), min(self.per_batch, len(flat)))
        self._kept.setdefault(name, []).append(flat[chosen])

    def grids(self) -> dict[str, Grid]:
        """The best grid of every value."""
        return {
            name: choose_grid(self._low[name], self._high[name], np.concatenate(kept))
            for name, kept in self._kept.items()
        }
