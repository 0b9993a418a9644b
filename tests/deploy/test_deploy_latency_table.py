"""The latency table: which layers it asks for, what it keeps, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compress_networks import example, network, random_policy

from automl_compress.compress import Compressor
from automl_compress.deploy import latency_table
from automl_compress.deploy.latency_table import LatencyTable, LayerTiming, measure_layer
from automl_compress.errors import InputError, SpaceError
from automl_compress.space import Policy

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)


@pytest.mark.parametrize("name", ["resnet8", "mobile", "patch-mixer", "vgg"])
def test_timed_layers_have_the_multiply_accumulates_of_the_policy(
    name: str, tmp_path: Path
) -> None:
    compressor = Compressor(network(name), example(name))
    policy = random_policy(compressor.structure, np.random.default_rng(2), False)
    timings = LatencyTable(compressor.structure, tmp_path / "t.json").timings(policy)
    costs = compressor.cost.layers(policy)
    assert timings.keys() == costs.keys()
    for layer, timing in timings.items():
        height, width = timing.size
        fan_in = timing.inputs // timing.groups * timing.kernel[0] * timing.kernel[1]
        assert timing.outputs * fan_in * height * width == costs[layer].macs
        assert timing.int8 == (f"weight_bits:{layer}" in policy)


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


def test_a_prediction_sums_its_layers_and_times_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[LayerTiming] = []

    def fake(timing: LayerTiming, batch: int, threads: int) -> float:
        assert (batch, threads) == (4, 2)
        timed.append(timing)
        return float(timing.inputs * timing.outputs)

    monkeypatch.setattr(latency_table, "measure_layer", fake)
    compressor = Compressor(network("mlp"), example("mlp"))
    path = tmp_path / "table.json"
    table = LatencyTable(compressor.structure, path, batch=4, threads=2)
    policy = Policy({"channels:1": 10, "weight_bits:3": 4})
    assert table(policy) == 768 * 10 + 10 * 12 + 12 * 5
    assert [timing.int8 for timing in timed] == [False, True, False]
    again = LatencyTable(compressor.structure, path, batch=4, threads=2)
    assert again(policy) == table(policy)
    assert len(timed) == 3
    again(Policy({"channels:1": 9}))
    assert len(timed) == 3 + 2  # the last layer reads as many as before
    conditions = json.loads(path.read_text())["conditions"]
    assert conditions["batch"] == 4
    assert conditions["runtime"].startswith("onnxruntime ")


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
