"""Latency of any policy from a table of single layers, without building the network.

A layer's latency depends on its widths in steps: kernels compute blocks of channels, so 17 may cost
what 32 do, and 16 half of it. So the table holds the very widths that policies ask for, each timed
once, and nothing is interpolated. A search space has few widths per layer, and layers of one
shape share their entries.

One layer is too short to be timed alone. A chain of layers that map `in` to `out` channels and back
is timed at two lengths; the difference, per layer, is free of what a run costs by itself. The
entry is the mean of both directions, at stride 1 and the layer's output resolution.

What the table leaves out: sums, poolings, changes of layout and the run itself. They are the same
for all policies but for their widths, so the prediction ranks policies; it is not their latency.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from automl_compress.compress import CostModel, Structure
from automl_compress.compress.structure import LayerShape
from automl_compress.deploy.latency import interleaved
from automl_compress.deploy.runtime import Array, Runner, library_version, require_onnx
from automl_compress.errors import InputError
from automl_compress.space import Policy

SHORT: Final = 2
LONG: Final = 10
"""Pairs of layers in the two chains."""
RUNS: Final = 40
_OPSET: Final = 20
_IR_VERSION: Final = 10


@dataclass(frozen=True)
class LayerTiming:
    """One entry's key: everything its latency depends on.

    Args:
        kind: `Conv` or `Gemm`.
        int8: whether it runs on integers.
        inputs: input channels.
        outputs: output channels.
        groups: convolution groups.
        kernel: (height, width).
        size: (height, width) of its output; (rows, 1) of a linear layer.
    """

    kind: str
    int8: bool
    inputs: int
    outputs: int
    groups: int
    kernel: tuple[int, int]
    size: tuple[int, int]

    def __str__(self) -> str:
        """The key in the table's file."""
        kernel, size = ("x".join(map(str, pair)) for pair in (self.kernel, self.size))
        form = "int8" if self.int8 else "float32"
        return f"{self.kind} {form} {self.inputs}-{self.outputs} /{self.groups} {kernel} @{size}"


class LatencyTable:
    """Predicts `latency_ms` of policies of one network on this machine.

    Args:
        structure: the traced network.
        path: a JSON file that keeps the entries; read when it exists, written after each new one.
        batch: inputs per run.
        threads: threads of ONNX Runtime.

    Raises:
        InputError: the file was made by another machine or runtime, or cannot be read.
    """

    def __init__(self, structure: Structure, path: Path, batch: int = 1, threads: int = 1) -> None:
        self._layers = {layer.name: layer for layer in structure.layers}
        self._cost = CostModel(structure)
        self._path = path
        self._batch = batch
        self._threads = threads
        self.conditions: dict[str, Any] = {
            "machine": platform.processor() or platform.machine(),
            "host": platform.node(),
            "runtime": f"onnxruntime {library_version()}",
            "batch": batch,
            "threads": threads,
        }
        self.entries: dict[str, float] = _stored(path, self.conditions)

    def __call__(self, policy: Policy) -> float:
        """Predicted milliseconds of one run: the sum over layers; times what it has not yet.

        Raises:
            SpaceError: the policy does not fit the network.
        """
        self._cost.check(policy)
        return sum(self._entry(timing) for timing in self.timings(policy).values())

    def timings(self, policy: Policy) -> dict[str, LayerTiming]:
        """The entry every layer of a policy needs, by layer name."""
        low_bit = policy.of_kind("weight_bits")
        found = {}
        for name, (outputs, inputs) in self._cost.widths(policy).items():
            layer = self._layers[name]
            groups = outputs if layer.depthwise else layer.groups
            rows = layer.positions if layer.kind == "Linear" else 0
            found[name] = LayerTiming(
                kind="Gemm" if rows else "Conv",
                int8=name in low_bit,
                inputs=outputs if layer.depthwise else inputs,
                outputs=outputs,
                groups=groups,
                kernel=_kernel(layer),
                size=(rows, 1) if rows else _rectangle(layer.positions),
            )
        return found

    def _entry(self, timing: LayerTiming) -> float:
        key = str(timing)
        if key not in self.entries:
            self.entries[key] = measure_layer(timing, self._batch, self._threads)
            text = json.dumps({"conditions": self.conditions, "entries": self.entries}, indent=1)
            partial = self._path.with_name(self._path.name + ".part")
            partial.write_text(text, encoding="utf-8")
            partial.replace(self._path)
        return self.entries[key]


def _stored(path: Path, conditions: dict[str, Any]) -> dict[str, float]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made, entries = content["conditions"], content["entries"]
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise InputError(
            f"a latency table must be a JSON file of ours, but '{path}' is not; remove it"
        ) from reason
    if made != conditions:
        other = ", ".join(str(made.get(k)) for k in conditions if made.get(k) != conditions[k])
        raise InputError(
            f"a latency table holds for one machine, runtime, batch and threads, but '{path}' was "
            f"made with {other}; choose another file"
        )
    return {str(key): float(value) for key, value in entries.items()}


def _kernel(layer: LayerShape) -> tuple[int, int]:
    side = math.isqrt(layer.kernel)
    return (side, side) if side * side == layer.kernel else (1, layer.kernel)


def _rectangle(positions: int) -> tuple[int, int]:
    """The most nearly square rectangle of that many positions."""
    height = next(h for h in range(math.isqrt(positions), 0, -1) if positions % h == 0)
    return height, positions // height


def measure_layer(timing: LayerTiming, batch: int = 1, threads: int = 1) -> float:
    """Milliseconds of one layer, the mean of both directions of its widths.

    Args:
        timing: the layer.
        batch: inputs per run.
        threads: threads of ONNX Runtime.
    """
    if timing.kind == "Gemm":
        shape: tuple[int, ...] = (batch * timing.size[0], timing.inputs)
    else:
        shape = (batch, timing.inputs, *timing.size)
    inputs = np.ones(shape, np.uint8 if timing.int8 else np.float32)
    short, long = (Runner(_chain(timing, shape, pairs), threads) for pairs in (SHORT, LONG))
    seconds = interleaved({"short": lambda: short(inputs), "long": lambda: long(inputs)}, RUNS)
    difference = np.median(np.subtract(seconds["long"], seconds["short"]))
    return max(float(difference), 0.0) * 1000 / (2 * (LONG - SHORT))


def _chain(timing: LayerTiming, shape: tuple[int, ...], pairs: int) -> bytes:
    """The bytes of a network of `2 * pairs` layers, to other widths and back."""
    require_onnx()
    from onnx import TensorProto, helper, numpy_helper

    widths = [timing.inputs, timing.outputs] * pairs + [timing.inputs]
    nodes: list[Any] = []
    constants: list[Any] = []
    for place, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        kind, arrays = _layer(timing, inputs, outputs)
        names = [f"{name}{place}" for name in arrays]
        constants += map(numpy_helper.from_array, arrays.values(), names)
        attributes: dict[str, Any] = {"transB": 1}
        if timing.kind == "Conv":
            high, wide = (size - 1 for size in timing.kernel)
            pads = [high // 2, wide // 2, high - high // 2, wide - wide // 2]
            attributes = {"pads": pads, "group": timing.groups}
        domain = "com.microsoft" if kind == "QGemm" else ""
        output = [f"x{place + 1}"]
        nodes.append(
            helper.make_node(kind, [f"x{place}", *names], output, domain=domain, **attributes)
        )
    element = TensorProto.UINT8 if timing.int8 else TensorProto.FLOAT
    ends = [
        helper.make_tensor_value_info(name, element, shape) for name in ("x0", *nodes[-1].output)
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
    content: bytes = model.SerializeToString()
    return content


def _layer(timing: LayerTiming, inputs: int, outputs: int) -> tuple[str, dict[str, Array]]:
    """Operator and constants of one layer, in the operator's order after its input."""
    kernel = timing.kernel if timing.kind == "Conv" else ()
    shape = (outputs, inputs // timing.groups, *kernel)
    if not timing.int8:
        weight = np.full(shape, 1e-3, np.float32)
        return timing.kind, {"w": weight, "b": np.zeros(outputs, np.float32)}
    scale, zero = np.array(0.1, np.float32), np.array(0, np.uint8)
    source: dict[str, Array] = {"xs": scale, "xz": zero}
    weight8: dict[str, Array] = {
        "w": np.ones(shape, np.int8),
        "ws": np.full(outputs, 1e-3, np.float32),
        "wz": np.zeros(outputs, np.int8),
    }
    bias: dict[str, Array] = {"b": np.zeros(outputs, np.int32)}
    target: dict[str, Array] = {"ys": scale, "yz": zero}
    if timing.kind == "Gemm":
        return "QGemm", {**source, **weight8, **bias, **target}
    return "QLinearConv", {**source, **weight8, **target, **bias}
