"""Latency of any policy from a table of single layers, without building the network.

A layer's latency depends on its widths in steps: kernels compute blocks of channels, so 17 may cost
what 32 do, and 16 half of it. So the table holds the very widths that policies ask for, each timed
by itself, and nothing is interpolated. A search space has few widths per layer, and layers of one
shape share their entries.

One layer is too short to be timed alone. A chain of layers that map `in` to `out` channels and back
is timed at two lengths; the difference, per layer, is free of what a run costs by itself. The
entry is the mean of both directions, at stride 1 and the layer's output resolution.

What the entries leave out, a line fitted to a few whole networks makes up for, see `latency_model`.
"""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from automl_compress.compress import Structure
from automl_compress.deploy.latency import interleaved
from automl_compress.deploy.latency_model import (
    LatencyModel,
    LayerTiming,
    LayerTimings,
    Line,
    network_key,
)
from automl_compress.deploy.onnx_graph.folds import MapLayer
from automl_compress.deploy.runtime import Array, Runner, library_version, require_onnx
from automl_compress.errors import InputError
from automl_compress.space import Policy, SearchSpace
from automl_compress.workload import replacing

SHORT: Final = 2
LONG: Final = 10
"""Pairs of layers in the two chains."""
RUNS: Final = 40
PASSES: Final = 2
"""How often all layers of a space are timed, one after another; of each, the least time counts.
Other work on a machine, or on its host, comes and goes in seconds, and only ever adds."""
MOST_ENTRIES: Final = 5_000
"""Layers that may be timed for one space: each takes some tenths of a second or more."""
_OPSET: Final = 20
_IR_VERSION: Final = 10


class LatencyTable:
    """Times layers of one network on this machine, and keeps them in a file.

    Args:
        structure: the traced network.
        path: a JSON file that keeps the entries, those of other networks too; read when it
            exists, written after each new one.
        batch: inputs per run.
        threads: threads of ONNX Runtime.
        int8: whether layers with low-bit weights run on integers.

    Raises:
        InputError: the file was made by another machine or runtime, or cannot be read.
    """

    def __init__(
        self,
        structure: Structure,
        path: Path,
        batch: int = 1,
        threads: int = 1,
        int8: bool = True,
    ) -> None:
        self._structure = structure
        self._path = path
        self._batch = batch
        self._threads = threads
        self._int8 = int8
        self.conditions = measuring_conditions(batch, threads)
        self.entries, self._lines, self._maps = _stored(path, self.conditions)
        maps = self._maps.get(network_key(structure, int8), ())
        self._timings = LayerTimings(structure, int8, maps)

    def __call__(self, policy: Policy) -> float:
        """Predicted milliseconds of one run; times the layers it has not yet.

        Raises:
            SpaceError: the policy does not fit the network.
        """
        timings = self.timings(policy)
        self._time(timings.values())
        return (self.line or Line())(sum(self.entries[str(timing)] for timing in timings.values()))

    def timings(self, policy: Policy) -> dict[str, LayerTiming]:
        """The entry every layer of a policy needs, by layer name."""
        return self._timings.of(policy)

    @property
    def line(self) -> Line | None:
        """From sums of layers to this network; None before `calibrate`."""
        return self._lines.get(self._timings.network)

    @property
    def maps(self) -> tuple[MapLayer, ...] | None:
        """Convolutions between maps that the exporter changes; None before `reckon_with`."""
        return self._maps.get(self._timings.network)

    def reckon_with(self, maps: Sequence[MapLayer]) -> None:
        """Expect maps as the exporter folds and fills them up.

        Args:
            maps: of this network, see `deploy.onnx.foldable_maps`.
        """
        self._maps[self._timings.network] = tuple(maps)
        self._timings = LayerTimings(self._structure, self._int8, maps)
        self._write()

    def cover(self, space: SearchSpace) -> None:
        """Time every layer that policies of a space and the uncompressed network need.

        Raises:
            InputError: they need more than `MOST_ENTRIES`.
        """
        needed = self._timings.of_space(space)
        if len(needed) > MOST_ENTRIES:
            raise InputError(
                f"a latency table must have at most {MOST_ENTRIES:,} entries, but the search space "
                f"needs {len(needed):,} different layers; allow fewer channel counts"
            )
        self._time(needed)

    def calibrate(self, measured: Mapping[Policy, float]) -> None:
        """Fit this network's line to whole networks that were measured.

        Args:
            measured: milliseconds by policy, at least one.
        """
        for policy in measured:
            self._time(self.timings(policy).values())
        bare = self._model(self.entries, Line())
        sums = [bare(policy) for policy in measured]
        self._lines[self._timings.network] = Line.fit(sums, list(measured.values()))
        self._write()

    def model(self, space: SearchSpace) -> LatencyModel:
        """What this table predicts for a space that it covers."""
        keys = map(str, self._timings.of_space(space))
        return self._model({key: self.entries[key] for key in keys}, self.line or Line())

    def _model(self, entries: Mapping[str, float], line: Line) -> LatencyModel:
        maps = self.maps or ()
        return LatencyModel(self._structure, entries, line, self.conditions, self._int8, maps)

    def _time(self, timings: Iterable[LayerTiming]) -> None:
        new = [timing for timing in dict.fromkeys(timings) if str(timing) not in self.entries]
        for timing in new * PASSES:
            taken = measure_layer(timing, self._batch, self._threads)
            key = str(timing)
            self.entries[key] = min(self.entries.get(key, taken), taken)
            self._write()

    def _write(self) -> None:
        content = {
            "conditions": self.conditions,
            "entries": self.entries,
            "lines": {network: asdict(line) for network, line in self._lines.items()},
            "maps": {
                network: [layer.to_dict() for layer in maps] for network, maps in self._maps.items()
            },
        }
        try:
            with replacing(self._path) as file:  # others may write it at once
                file.write(json.dumps(content, indent=1).encode())
        except OSError as reason:
            raise InputError(
                f"a latency table must be a file that can be written, but '{self._path}' is not "
                f"({reason.strerror}); choose another"
            ) from reason


def measuring_conditions(batch: int, threads: int) -> dict[str, Any]:
    """This machine and its runtime, and how it is used: what a latency holds for."""
    return {
        "machine": platform.processor() or platform.machine(),
        "host": platform.node(),
        "runtime": f"onnxruntime {library_version()}",
        "batch": batch,
        "threads": threads,
    }


_Stored = tuple[dict[str, float], dict[str, Line], dict[str, tuple[MapLayer, ...]]]


def _stored(path: Path, conditions: dict[str, Any]) -> _Stored:
    """Entries, and lines and maps by network."""
    if not path.exists():
        return {}, {}, {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        made = content["conditions"]
        entries = {str(key): float(value) for key, value in content["entries"].items()}
        lines = {str(key): Line(**line) for key, line in content.get("lines", {}).items()}
        maps = {
            str(key): tuple(map(MapLayer.from_dict, layers))
            for key, layers in content.get("maps", {}).items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
        raise InputError(
            f"a latency table must be a JSON file of ours, but '{path}' is not; remove it"
        ) from reason
    if made != conditions:
        other = ", ".join(str(made.get(k)) for k in conditions if made.get(k) != conditions[k])
        raise InputError(
            f"a latency table holds for one machine, runtime, batch and threads, but '{path}' was "
            f"made with {other}; choose another file"
        )
    return entries, lines, maps


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
