"""The latency table: which layers it asks for, what it keeps, and what it refuses."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compress_networks import example, network, random_policy, shared_compressor

from automl_compress.compress import Compressor
from automl_compress.deploy import latency_table
from automl_compress.deploy.latency_model import LatencyModel, LayerTiming, LayerTimings, Line
from automl_compress.deploy.latency_table import LatencyTable, measure_layer
from automl_compress.deploy.onnx import foldable_maps, onnx_content
from automl_compress.errors import EstimateError, InputError, SpaceError
from automl_compress.space import Gene, Policy, SearchSpace

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)


@pytest.mark.parametrize("name", ["resnet8", "mobile", "patch-mixer", "vgg"])
def test_timed_layers_have_the_multiply_accumulates_of_the_policy(
    name: str, tmp_path: Path
) -> None:
    compressor = shared_compressor(name)
    policy = random_policy(compressor.structure, np.random.default_rng(2), False)
    floats = LatencyTable(compressor.structure, tmp_path / "t.json", int8=False).timings(policy)
    timings = LatencyTable(compressor.structure, tmp_path / "t.json").timings(policy)
    costs = compressor.cost.layers(policy)
    assert timings.keys() == floats.keys() == costs.keys()
    for layer, timing in floats.items():
        height, width = timing.size
        fan_in = timing.inputs // timing.groups * timing.kernel[0] * timing.kernel[1]
        assert timing.outputs * fan_in * height * width == costs[layer].macs
        assert not timing.int8
        on_integers = timings[layer]
        assert on_integers.int8 == (f"weight_bits:{layer}" in policy)
        assert on_integers == replace(timing, int8=on_integers.int8)  # nothing is known of maps


def exported_layers(content: bytes) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Weight shape, and rows and columns of the output, of every convolution of a file."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(content)).graph
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    read = {node.output[0]: weights.get(node.input[0]) for node in graph.node}
    shapes = {
        value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
        for value in graph.value_info
    }
    return [
        (read[node.input[1]] or (), shapes[node.output[0]][2:])
        for node in graph.node
        if node.op_type == "Conv"
    ]


@pytest.mark.usefixtures("one_network")
@pytest.mark.parametrize(
    ("name", "kept"),
    [
        *(("resnet8", 2), ("mobile", 5)),
        *(pytest.param(name, 6, marks=pytest.mark.slow) for name in ("resnet8", "vgg")),
    ],
)
def test_timed_layers_are_those_of_the_file(name: str, kept: int) -> None:
    compressor = shared_compressor(name)
    structure, images = compressor.structure, example(name)
    space = SearchSpace(
        [
            *(Gene(f"channels:{g.name}", "channels", (kept,)) for g in structure.groups
              if not g.protected),
            *(Gene(f"weight_bits:{layer.name}", "weight_bits", (8,)) for layer in structure.layers
              if layer.quantizable),
        ]
    )  # fmt: skip
    model = compressor.build(space.smallest)
    timings = LayerTimings(structure, True, foldable_maps(model, images[:1]))
    expected = [
        ((timing.outputs, timing.inputs // timing.groups, *timing.kernel), timing.size)
        for timing in timings.of(space.smallest).values()
        if timing.kind == "Conv"
    ]
    found = exported_layers(onnx_content(model, images[:1], images))
    assert not Counter(expected) - Counter(found)  # shortcuts of ours are convolutions too
    assert {str(timing) for timing in timings.of(space.smallest).values()} <= {
        str(timing) for timing in timings.of_space(space)
    }


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize(
    ("kind", "groups", "kernel", "size"),
    [
        ("Conv", 1, (3, 3), (4, 4)),
        ("Conv", 8, (3, 3), (4, 2)),
        ("Conv", 1, (1, 4), (1, 7)),
        ("Gemm", 1, (1, 1), (5, 1)),
    ],
)
def test_layers_of_all_kinds_can_be_timed(
    kind: str, groups: int, kernel: tuple[int, int], size: tuple[int, int], int8: bool
) -> None:
    timing = LayerTiming(kind, int8, 8, 8 if groups > 1 else 5, groups, kernel, size)
    assert 0 <= measure_layer(timing) < 1000


def test_a_prediction_sums_its_layers_and_times_each_in_two_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[LayerTiming] = []

    def fake(timing: LayerTiming, batch: int, threads: int) -> float:
        assert (batch, threads) == (4, 2)
        timed.append(timing)
        slowed = 2 if len(timed) in (1, 5) else 1  # other work, now in one pass, now in the other
        return float(timing.inputs * timing.outputs * slowed)

    monkeypatch.setattr(latency_table, "measure_layer", fake)
    compressor = Compressor(network("mlp"), example("mlp"))
    path = tmp_path / "table.json"
    table = LatencyTable(compressor.structure, path, batch=4, threads=2)
    policy = Policy({"channels:1": 10, "weight_bits:3": 4})
    assert table(policy) == 768 * 10 + 10 * 12 + 12 * 5
    assert [timing.int8 for timing in timed] == [False, True, False] * 2
    again = LatencyTable(compressor.structure, path, batch=4, threads=2)
    assert again(policy) == table(policy)
    assert len(timed) == 6
    again(Policy({"channels:1": 9}))
    assert len(timed) == 6 + 4  # the last layer reads as many as before
    conditions = json.loads(path.read_text())["conditions"]
    assert conditions["batch"] == 4
    assert conditions["runtime"].startswith("onnxruntime ")


def test_studies_write_one_table_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two do that begin on one machine."""
    monkeypatch.setattr(latency_table, "measure_layer", lambda t, *_: t.inputs * t.outputs / 1e3)
    compressor = Compressor(network("mlp"), example("mlp"))
    tables = [LatencyTable(compressor.structure, tmp_path / "t.json") for _ in range(2)]

    def cover(table: LatencyTable) -> None:
        for kept in range(5, 10):
            table(Policy({"channels:1": kept}))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(cover, tables))
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_wrong_tables_and_policies_are_refused_in_one_line(tmp_path: Path) -> None:
    structure = Compressor(network("mlp"), example("mlp")).structure
    path = tmp_path / "table.json"
    content: dict[str, Any] = {"conditions": {}, "entries": {}}
    for text, rule in ((json.dumps(content), "holds for one machine"), ("[]", "JSON file of ours")):
        path.write_text(text)
        with pytest.raises(InputError, match=re.escape(rule)) as caught:
            LatencyTable(structure, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(SpaceError, match="is none"):
        LatencyTable(structure, tmp_path / "new.json")(Policy({"weight_bits:9": 8}))
    assert not (tmp_path / "new.json").exists()


@pytest.mark.parametrize("name", ["resnet8", "mobile", "dense", "grouped"])
def test_a_space_needs_just_what_its_policies_ask_for(name: str) -> None:
    compressor = shared_compressor(name)
    structure = compressor.structure
    free = [group for group in structure.groups if not group.protected][:3]
    genes = [
        Gene(f"channels:{g.name}", "channels", tuple(sorted({1, 1 + g.channels // 2, g.channels})))
        for g in free
    ]
    low = next(layer.name for layer in structure.layers if layer.quantizable)
    space = SearchSpace([*genes, Gene(f"weight_bits:{low}", "weight_bits", (4, 8))])
    timings = LayerTimings(structure)
    policies = [
        Policy(dict(zip((gene.name for gene in space), values, strict=True)))
        for values in itertools.product(*(gene.values for gene in space))
    ]
    needed = {timing for policy in policies for timing in timings.of(policy).values()}
    needed |= set(timings.of(Policy({})).values())
    assert set(timings.of_space(space)) == needed
    assert not any(timing.int8 for timing in LayerTimings(structure, False).of_space(space))


def test_a_model_predicts_as_its_table_does_in_any_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_table, "measure_layer", lambda t, *_: t.inputs * t.outputs / 1e3)
    structure = Compressor(network("mlp"), example("mlp")).structure
    space = SearchSpace([Gene("channels:1", "channels", (4, 10, 16))])
    table = LatencyTable(structure, tmp_path / "t.json")
    table.cover(space)
    table.calibrate({policy: 1 + 2 * table(policy) for policy in (Policy({}), space.smallest)})
    model = table.model(space)
    assert (model.line.run_ms, model.line.slope) == pytest.approx((1, 2))
    policy = Policy({"channels:1": 10})
    expected = 1 + 2 * (768 * 10 + 10 * 12 + 12 * 5) / 1e3
    again = LatencyTable(structure, tmp_path / "t.json").model(space)
    copies = (
        *(model, again, pickle.loads(pickle.dumps(model))),
        LatencyModel.from_dict(structure, json.loads(json.dumps(model.to_dict()))),
    )
    for copy in copies:
        assert copy(policy) == table(policy) == pytest.approx(expected)
        assert copy.identity == model.identity
    with pytest.raises(EstimateError, match="layer '1' was not timed as Gemm float32 768-9"):
        model(Policy({"channels:1": 9}))
    other = LatencyTable(Compressor(network("vgg"), example("vgg")).structure, tmp_path / "t.json")
    assert other.line is None
    assert other.entries == table.entries


def test_lines_are_those_of_numpy_and_never_fall() -> None:
    sums, measured = [1.0, 2.0, 3.0, 5.0], [3.1, 4.9, 7.2, 11.0]
    line = Line.fit(sums, measured)
    matrix = np.stack([np.ones(4), sums], axis=1) / np.array(measured)[:, None]
    expected = np.linalg.lstsq(matrix, np.ones(4), rcond=None)[0]
    assert (line.run_ms, line.slope) == pytest.approx(tuple(expected))
    assert (line(4.0), line.networks) == (pytest.approx(expected[0] + 4 * expected[1]), 4)
    for falling in ([3.0, 2.0, 1.5, 1.0], [1.0, 3.0, 7.0, 20.0]):  # the second starts below 0
        ratio = Line.fit(sums, falling)
        assert ratio.run_ms == 0
        x = np.array(sums) / falling
        assert ratio.slope == pytest.approx(np.linalg.lstsq(x[:, None], np.ones(4))[0][0])
    assert Line.fit([2.0], [3.0]) == Line(0.0, 1.5, 1)
    assert Line.fit([0.0, 0.0], [3.0, 5.0]) == Line(4.0, 0.0, 2)


def test_a_space_of_too_many_layers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency_table, "MOST_ENTRIES", 5)
    structure = Compressor(network("mlp"), example("mlp")).structure
    space = SearchSpace([Gene("channels:1", "channels", (1, 2, 3))])
    with pytest.raises(InputError, match="needs 9 different layers; allow fewer channel counts"):
        LatencyTable(structure, tmp_path / "t.json").cover(space)
