"""The table of speedups, with timers that compute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from automl_compress.bench import speedup
from automl_compress.bench.speedup import RULES, fastest_policy, kept_share
from automl_compress.cli import main
from automl_compress.compress import Compressor, Structure, space_of_structure
from automl_compress.deploy import latency_calibration, latency_table
from automl_compress.deploy.latency import Latency
from automl_compress.deploy.latency_model import LatencyModel, LayerTimings, Line
from automl_compress.deploy.measuring import MeasureSettings
from automl_compress.space import Gene, Policy, SearchSpace
from automl_compress.workload import MODELS, build_model

pytestmark = pytest.mark.usefixtures("operators_read_once")


def blocks(channels: int) -> int:
    return -(-channels // 16)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every convolution costs 1 ms per block of outputs, a network 0.01 ms per weight tensor."""
    batches: list[int] = []

    def alone(
        networks: Mapping[str, nn.Module], example_input: Tensor, settings: MeasureSettings
    ) -> dict[str, Latency]:
        batches.append(settings.batch)
        found = {}
        for key, network in networks.items():
            ms = settings.batch * sum(p.numel() for p in network.parameters() if p.dim() == 4)
            found[key] = Latency(ms, 0.9 * ms, 1.1 * ms, settings.batch, 1, 7, "onnxruntime", 0.97)
        return found

    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency_table, "measure_layer", lambda t, b, n: float(blocks(t.outputs)))
    monkeypatch.setattr(latency_calibration, "measure_alone", alone)
    return batches


def test_all_forms_are_measured_for_every_batch(
    tmp_path: Path,
    timed: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AUTOML_COMPRESS_CACHE", str(tmp_path / "cache"))
    words = ["--batches", "2", "5", "--runs", "7"]
    file = tmp_path / "rows.json"
    words += ["-o", str(tmp_path), "--json", str(file)]
    assert main(["bench", "speedup", "digits_cnn", *words]) == 0
    first = json.loads(file.read_text())["rows"][0]
    assert first["form"] == "float32, all channels"
    assert first["latencies"]["2"]["batch"] == 2
    assert timed == [2, 5, 2, 5]  # the tables' lines, then the forms
    page = (tmp_path / "digits_cnn_speedup.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith(("| INT8", "| float32"))]
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [
        *("float32, all channels", "INT8, all channels", "float32, 50% of every group"),
        *("INT8, 50% of every group", "INT8, 50%, round_to 16"),
        "INT8, 50% in all, chosen by latency at batch 2",
        "INT8, 50% in all, chosen by latency at batch 5",
    ]
    assert rows[0].endswith("| 1.00 |")
    assert rows[1].count("100.0%") == 2
    assert rows[2].split(" | ")[1:] == rows[3].split(" | ")[1:]  # the timer sees no bits
    assert page in capsys.readouterr().out


def test_widths_are_chosen_by_what_they_save() -> None:
    model = build_model("resnet20", {"num_classes": 10})
    spec = MODELS["resnet20"]
    compressor = Compressor(model, torch.zeros(1, *spec.input_shape), repair="none")
    space = space_of_structure(compressor.model, compressor.structure, RULES).space
    entries = {
        str(timing): timing.size[0] * float(blocks(timing.outputs))
        for timing in LayerTimings(compressor.structure).of_space(space)
    }
    predictor = LatencyModel(compressor.structure, entries, Line(), {})
    policy = fastest_policy(space, predictor, 0.6)
    assert 0.4 < kept_share(compressor, policy) <= 0.6
    for _, kept in policy.of_kind("channels").items():
        assert kept % 16 == 0  # a part of a block saves nothing
    uniform = speedup._policy(compressor, 0.5, 1, 8)
    assert predictor(policy) < predictor(uniform)


def test_widths_that_pay_together_only_are_chosen_together() -> None:
    class Stage(LatencyModel):
        """Every layer takes as long as the widest."""

        def layers_ms(self, policy: Policy) -> float:
            return max(policy.of_kind("channels").values())

    names = ("a", "b", "c")
    genes = [Gene(f"channels:{name}", "channels", (8, 16)) for name in names]
    space = SearchSpace([*genes, Gene("channels:d", "channels", (10, 100))])
    structure = Structure((), (), (), 0)
    policy = fastest_policy(space, Stage(structure, {}, Line(), {}), 0.2)
    assert policy.of_kind("channels") == {"a": 8, "b": 8, "c": 8, "d": 10}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--share", "1.5"], "--share must be above 0 and below 1"),
        (["--batches", "0"], "--batches must be at least 1"),
        (["--runs", "3"], "--runs must be at least 6"),
    ],
)
def test_wrong_words_are_refused(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "speedup", "digits_cnn", *words, "-o", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err
