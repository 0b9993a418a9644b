"""Which layers of which widths a network's policies need, and what a table of them predicts.

Nothing is timed here, so one model says the same in every process. The sum of a policy's layers
leaves out sums, poolings, changes of layout and what a run costs by itself. A line from that sum to
measured latencies of a few whole networks makes up for it: `run_ms + slope * sum`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from automl_compress.compress import CostModel, Structure
from automl_compress.compress.structure import LayerShape
from automl_compress.deploy.onnx_graph.folds import (
    MapLayer,
    Reading,
    chosen_folds,
    fold_of,
    folded,
    readable,
    widest_fold,
)
from automl_compress.deploy.runtime import block_channels
from automl_compress.errors import EstimateError
from automl_compress.space import Policy, SearchSpace


@dataclass(frozen=True)
class LayerTiming:
    """One entry's key: everything its latency depends on.

    Args:
        kind: `Conv` or `Gemm`.
        int8: whether it runs on integers.
        inputs: input channels, with columns that the exporter folds and those it fills up.
        outputs: output channels likewise.
        groups: convolution groups.
        kernel: (height, width), of folded columns where they are.
        size: (height, width) of its output likewise; (rows, 1) of a linear layer.
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


class LayerTimings:
    """The entries that one network's policies need.

    Args:
        structure: the traced network.
        int8: whether layers with low-bit weights run on integers.
        maps: convolutions between maps that the exporter may fold and fill up.
    """

    def __init__(
        self, structure: Structure, int8: bool = True, maps: Sequence[MapLayer] = ()
    ) -> None:
        self.maps = tuple(maps) if int8 else ()
        self._between = {layer.name: layer for layer in self.maps}
        self._layers = {layer.name: layer for layer in structure.layers}
        self._cost = CostModel(structure)
        self._int8 = int8
        self.network = network_key(structure, int8)

    def of(self, policy: Policy) -> dict[str, LayerTiming]:
        """The entry every layer of a policy needs, by layer name.

        Raises:
            SpaceError: the policy does not fit the network.
        """
        self._cost.check(policy)
        low_bit = policy.of_kind("weight_bits") if self._int8 else {}
        widths = self._cost.widths(policy)
        folds = self._folds(widths, low_bit)
        return {
            name: self._timing(name, outputs, inputs, name in low_bit, folds.get(name, (1, 1)))
            for name, (outputs, inputs) in widths.items()
        }

    def of_space(self, space: SearchSpace) -> tuple[LayerTiming, ...]:
        """All entries that the policies of a space and the uncompressed network need.

        Of maps that a convolution may fold, every fold has one, whether or not its neighbours
        allow it.
        """
        channels = {gene.target: gene.values for gene in space if gene.kind == "channels"}
        low_bit = {gene.target for gene in space if gene.kind == "weight_bits" and self._int8}
        needed = dict.fromkeys(self.of(Policy({})).values())
        for name, widths in self._cost.reachable_widths(channels).items():
            for outputs, inputs in sorted(widths):
                for folds in self._possible_folds(name, outputs, inputs, name in low_bit):
                    needed[self._timing(name, outputs, inputs, name in low_bit, folds)] = None
        return tuple(needed)

    def _folds(
        self, widths: Mapping[str, tuple[int, int]], low_bit: Container[str]
    ) -> dict[str, tuple[int, int]]:
        """Columns in one of the input and of the output of every layer between maps."""
        channels: dict[int, int] = {}
        kept: set[int | None] = set()
        for layer in self.maps:
            if layer.name not in widths:
                continue  # a shortcut, which reads and writes the maps of others
            outputs, inputs = widths[layer.name]
            if layer.name not in low_bit:
                kept |= {layer.source, layer.output}
            for number, width in ((layer.source, inputs), (layer.output, outputs)):
                if number is not None:
                    channels[number] = width
        folds = chosen_folds(
            self.maps, {number: width for number, width in channels.items() if number not in kept}
        )
        return {
            layer.name: (fold_of(layer.source, folds), fold_of(layer.output, folds))
            for layer in self.maps
        }

    def _possible_folds(
        self, name: str, outputs: int, inputs: int, int8: bool
    ) -> Iterator[tuple[int, int]]:
        layer = self._between.get(name) if int8 else None
        if layer is None:
            yield 1, 1
            return
        for before in _folds_up_to(layer.source, inputs, layer.reading.columns[0]):
            for after in _folds_up_to(layer.output, outputs, layer.reading.columns[1]):
                if readable(layer.reading, before, after):
                    yield before, after

    def _timing(
        self, name: str, outputs: int, inputs: int, int8: bool, folds: tuple[int, int]
    ) -> LayerTiming:
        layer, between = self._layers[name], self._between.get(name) if int8 else None
        if between is None:
            return _timing(layer, outputs, inputs, int8)
        before, after = folds
        timing = _timing(layer, outputs * after, inputs * before, int8)
        if folds != (1, 1):
            timing = _folded(timing, between.reading, before, after)
        read, written = between.fillable
        return replace(
            timing,
            inputs=block_channels(timing.inputs) if read else timing.inputs,
            outputs=block_channels(timing.outputs) if written else timing.outputs,
        )


def network_key(structure: Structure, int8: bool) -> str:
    """Under which a table keeps what it knows of one network."""
    parts = (structure.layers, structure.other_macs, int8, "folds columns")
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _folds_up_to(number: int | None, channels: int, columns: int) -> Iterator[int]:
    fold = 1 if number is None else widest_fold(channels, columns)
    while fold:
        yield fold
        fold //= 2


def _folded(timing: LayerTiming, reading: Reading, before: int, after: int) -> LayerTiming:
    """A layer whose columns are folded."""
    found = folded(reading, before, after)
    assert found is not None
    high, wide = timing.size
    columns = reading.columns[1]
    return replace(
        timing,
        kernel=(timing.kernel[0], found.kernel),
        size=(high * wide // columns, columns // after),
    )


def _timing(layer: LayerShape, outputs: int, inputs: int, int8: bool) -> LayerTiming:
    rows = layer.positions if layer.kind == "Linear" else 0
    return LayerTiming(
        kind="Gemm" if rows else "Conv",
        int8=int8,
        inputs=outputs if layer.depthwise else inputs,
        outputs=outputs,
        groups=outputs if layer.depthwise else layer.groups,
        kernel=_kernel(layer),
        size=(rows, 1) if rows else _rectangle(layer.positions),
    )


def _kernel(layer: LayerShape) -> tuple[int, int]:
    side = math.isqrt(layer.kernel)
    return (side, side) if side * side == layer.kernel else (1, layer.kernel)


def _rectangle(positions: int) -> tuple[int, int]:
    """The most nearly square rectangle of that many positions."""
    height = next(h for h in range(math.isqrt(positions), 0, -1) if positions % h == 0)
    return height, positions // height


@dataclass(frozen=True)
class Line:
    """From the sum of a network's layers to the latency of the network.

    Args:
        run_ms: milliseconds of a run whatever its layers.
        slope: measured milliseconds per millisecond of the sum.
        networks: how many measured networks it was fitted to; 0 for the bare sum.
    """

    run_ms: float = 0.0
    slope: float = 1.0
    networks: int = 0

    @classmethod
    def fit(cls, sums: Sequence[float], measured: Sequence[float]) -> Line:
        """The line of least squared relative error, neither falling nor starting below 0.

        Args:
            sums: (n,) milliseconds of each network's layers, n >= 1.
            measured: (n,) milliseconds of each network, above 0.
        """
        x, y = np.asarray(sums, np.float64), np.asarray(measured, np.float64)
        if len(np.unique(x)) > 1:
            slope, start = np.polyfit(x, y, 1, w=1.0 / y)
            if slope > 0 and start >= 0:
                return cls(float(start), float(slope), len(x))
        if not x.any():
            return cls(float(np.median(y)), 0.0, len(x))
        ratio = (x / y).sum() / ((x / y) ** 2).sum()
        return cls(0.0, float(ratio), len(x))

    def __call__(self, layers_ms: float) -> float:
        """Milliseconds of a network from those of its layers."""
        return self.run_ms + self.slope * layers_ms


class LatencyModel:
    """Predicts `latency_ms` of the policies of one network; never times anything.

    Args:
        structure: the traced network.
        entries: milliseconds by layer, keys are those of `LayerTiming`.
        line: from sums of layers to networks.
        conditions: machine, runtime, batch and threads that everything was measured with.
        int8: whether layers with low-bit weights run on integers.
        maps: convolutions between maps that the exporter may fold and fill up.
    """

    def __init__(
        self,
        structure: Structure,
        entries: Mapping[str, float],
        line: Line,
        conditions: Mapping[str, Any],
        int8: bool = True,
        maps: Sequence[MapLayer] = (),
    ) -> None:
        self._timings = LayerTimings(structure, int8, maps)
        self._entries = dict(sorted(entries.items()))
        self.line = line
        self.conditions = dict(conditions)
        self.int8 = int8

    @property
    def identity(self) -> str:
        """Hash of everything that decides a prediction."""
        text = json.dumps([self._timings.network, self.to_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    def __call__(self, policy: Policy) -> float:
        """Predicted milliseconds of one run.

        Raises:
            SpaceError: the policy does not fit the network.
            EstimateError: it has a layer that was not timed.
        """
        return self.line(self.layers_ms(policy))

    def layers_ms(self, policy: Policy) -> float:
        """Milliseconds of all layers, one by one.

        Raises:
            SpaceError: the policy does not fit the network.
            EstimateError: it has a layer that was not timed.
        """
        keys = {name: str(timing) for name, timing in self._timings.of(policy).items()}
        for name, key in keys.items():
            if key not in self._entries:
                raise EstimateError(f"layer '{name}' was not timed as {key}")
        return sum(self._entries[key] for key in keys.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_dict` makes the same model for the same network."""
        return {
            "conditions": self.conditions,
            "int8": self.int8,
            "line": asdict(self.line),
            "entries": self._entries,
            "maps": [layer.to_dict() for layer in self._timings.maps],
        }

    @classmethod
    def from_dict(cls, structure: Structure, data: Mapping[str, Any]) -> LatencyModel:
        """The model of a network that `to_dict` wrote."""
        line = Line(**data["line"])
        maps = [MapLayer.from_dict(layer) for layer in data["maps"]]
        return cls(structure, data["entries"], line, data["conditions"], data["int8"], maps)
