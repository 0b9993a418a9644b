"""Predicted against measured latencies, with timers that compute."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from automl_compress.bench.latency import correlation, ranks, spread_policies
from automl_compress.cli import main
from automl_compress.deploy import latency_calibration, latency_table
from automl_compress.deploy.latency import Latency
from automl_compress.deploy.latency_model import LayerTiming
from automl_compress.deploy.measuring import MeasureSettings
from automl_compress.space import Gene, SearchSpace

pytestmark = pytest.mark.usefixtures("operators_read_once")


def computed(shape: tuple[int, ...]) -> int:
    """Products of a layer for one place."""
    return math.prod(shape)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[MeasureSettings]:
    """Layers cost their weights; networks cost what their layers do and 0.5 ms."""
    asked: list[MeasureSettings] = []

    def layer(timing: LayerTiming, batch: int, threads: int) -> float:
        pairs = timing.inputs * timing.outputs / timing.groups
        return 1e-6 * pairs * timing.kernel[0] * timing.kernel[1]

    def alone(
        networks: Mapping[str, nn.Module], example_input: Tensor, settings: MeasureSettings
    ) -> dict[str, Latency]:
        asked.append(settings)
        found = {}
        for key, network in networks.items():
            shapes = [tuple(p.shape) for p in network.parameters() if p.dim() > 1]
            ms = 0.5 + 3e-6 * sum(map(computed, shapes))
            found[key] = Latency(ms, 0.9 * ms, 1.2 * ms, settings.batch, 1, 7, "onnxruntime", 0.97)
        return found

    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(latency_table, "measure_layer", layer)
    monkeypatch.setattr(latency_calibration, "measure_alone", alone)
    # Parameters do not show what the exporter folds and fills up; tests of the table do.
    monkeypatch.setattr(latency_calibration, "foldable_maps", lambda *_: ())
    return asked


def test_a_table_that_is_right_predicts_what_is_measured(
    tmp_path: Path, measured: list[MeasureSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--table", str(tmp_path / "t.json"), "--json", str(tmp_path / "rows.json")]
    words = ["--policies", "6", "--batch", "3", "--runs", "7", "-o", str(tmp_path / "out")]
    assert main(["bench", "latency", "digits_cnn", *files, *words]) == 0
    found = json.loads((tmp_path / "rows.json").read_text())
    assert measured == [MeasureSettings(batch=3, runs=7)] * 2  # the line first, then the rows
    assert found["run_ms"] == pytest.approx(0.5)
    assert found["slope"] == pytest.approx(3)
    assert found["calibrated_by"] == 4
    assert len(found["rows"]) == 6
    for row in found["rows"]:
        assert row["predicted_ms"] == pytest.approx(row["measured_ms"])
        assert row["predicted_ms"] == pytest.approx(0.5 + 3 * row["layers_ms"])
    assert found["spearman"] == pytest.approx(1)
    printed = capsys.readouterr().out
    page = (tmp_path / "out" / "digits_cnn.md").read_text()
    for text in (printed, page):
        assert "threads 1, batch 3, low-bit layers in INT8" in text
        assert "Spearman 1.000" in text
    assert "](digits_cnn.svg)" in page
    figure = (tmp_path / "out" / "digits_cnn.svg").read_text()
    assert "threads 1, batch 3" in figure
    assert figure.count("<svg") == 1


def test_a_sweep_names_network_space_and_settings(
    tmp_path: Path, measured: list[MeasureSettings], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep.yaml").write_text(
        "study: tiny\nworkload: {model: digits_cnn, train: {epochs: 1}}\n"
        "budget: {evaluations: 1}\nlatency: {batch: 5, int8: false, table: t.json}\n"
    )
    words = ["--policies", "2", "--runs", "6", "-o", str(tmp_path)]
    assert main(["bench", "latency", str(tmp_path / "sweep.yaml"), *words]) == 0
    assert measured[-1] == MeasureSettings(batch=5, int8=False, runs=6)
    assert (tmp_path / "t.json").exists()
    assert "batch 5, low-bit layers in float32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["digits_cnn", "--policies", "1"], "--policies must be at least 2, but is 1"),
        (["digits_cnn", "--runs", "5"], "--runs must be at least 6, but is 5"),
        (["digits_cnn", "--threads", "0"], "--threads must be at least 1, but is 0"),
        (["digits_cn"], "did you mean 'digits_cnn'"),
        (["own.module:net"], "--input-shape must be given"),
        (["missing.yaml"], "missing.yaml"),
    ],
)
def test_wrong_words_are_refused_in_one_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "latency", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    one = [float(x) for x in rng.integers(0, 6, 30)]  # with ties
    other = [x + float(y) for x, y in zip(one, rng.normal(size=30), strict=True)]
    assert correlation(one, other) == pytest.approx(pearsonr(one, other).statistic)
    expected = spearmanr(one, other).statistic
    assert correlation(ranks(one), ranks(other)) == pytest.approx(expected)
    assert np.isnan(correlation([1.0, 1.0], [1.0, 2.0]))


def test_policies_spread_from_the_smallest_to_the_largest() -> None:
    space = SearchSpace([Gene(f"channels:{i}", "channels", tuple(range(1, 12))) for i in range(20)])
    found = spread_policies(space, 10, 0)
    means = [np.mean(list(policy.of_kind("channels").values())) for policy in found]
    assert means[0] < 3
    assert means[-1] > 9
    assert np.corrcoef(means, range(len(means)))[0, 1] > 0.9
    assert found == spread_policies(space, 10, 0) != spread_policies(space, 10, 1)
