"""Latencies: what is timed and how it is stated; never how long it takes."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compress_networks import example, network
from scipy.stats import binom

from automl_compress.compress import Compressor
from automl_compress.deploy.latency import (
    PROVIDERS,
    WARMUP,
    interleaved,
    latencies,
    latency,
    median_interval,
)
from automl_compress.deploy.measuring import MeasureSettings, measure_alone
from automl_compress.deploy.onnx import export_onnx
from automl_compress.errors import EngineError, InputError
from automl_compress.space import Policy

for library in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(library)


def test_calls_take_turns_and_warm_up() -> None:
    calls: list[str] = []
    seconds = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert calls == ["a", "b"] * (WARMUP + 3)
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert all(taken >= 0 for every in seconds.values() for taken in every)


def test_a_latency_says_how_it_was_measured(tmp_path: Path) -> None:
    images = example("mlp", 4)
    compressor = Compressor(network("mlp"), images[:1])
    model = compressor.build(Policy({"weight_bits:1": 8}))
    path = tmp_path / "model.onnx"
    export_onnx(model, path, images[:1], images)
    found = latencies({"network": model, "file": path}, images[:1], batch=3, runs=4)
    for taken in found.values():
        assert (taken.batch, taken.threads, taken.runs) == (3, 1, 4)
        assert 0 < taken.lower_ms <= taken.median_ms <= taken.upper_ms
        assert taken.runtime.startswith("onnxruntime ")
        assert "for batch 3, threads 1, onnxruntime" in str(taken)


def test_pytorch_runs_in_evaluation_mode_with_its_threads_restored() -> None:
    seen: list[tuple[Any, ...]] = []

    class Watched(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.get_num_threads(), tuple(x.shape)))
            return x

        def __deepcopy__(self, memo: Any) -> Watched:
            return Watched()

    model = Watched()
    before = torch.get_num_threads()
    taken = latency(model, torch.zeros(1, 2), batch=5, threads=2, runs=3, provider="torch")
    assert seen == [(False, 2, (5, 2))] * (WARMUP + 3)
    assert model.training
    assert torch.get_num_threads() == before
    assert taken.runtime == f"torch {torch.__version__}"


@pytest.mark.parametrize("count", [1, 4, 5, 6, 9, 17, 100, 101])
def test_intervals_of_medians_have_the_confidence_they_state(count: int) -> None:
    rng = np.random.default_rng(count)
    values = [float(x) for x in rng.permutation(count)]
    lower, upper, confidence = median_interval(values)
    outside = int(lower)  # values are 0..count-1
    assert upper == count - 1 - outside
    stated = 1 - 2 * binom.cdf(outside, count, 0.5)
    assert confidence == pytest.approx(max(0.0, stated))
    if count >= 6:
        assert confidence >= 0.95
        assert 1 - 2 * binom.cdf(outside + 1, count, 0.5) < 0.95  # the narrowest such interval


def test_intervals_hold_the_median_of_a_skewed_distribution() -> None:
    drawn = np.random.default_rng(0).exponential(size=(2000, 25))
    ends = [median_interval(list(map(float, row))) for row in drawn]
    held = np.mean([lower <= np.log(2) <= upper for lower, upper, _ in ends])
    assert abs(held - ends[0][2]) < 0.012


def test_networks_are_measured_in_a_process_of_their_own() -> None:
    images = example("mlp", 1)
    compressor = Compressor(network("mlp"), images)
    networks = {"whole": compressor.model, "low": compressor.build(Policy({"weight_bits:1": 8}))}
    found = measure_alone(networks, images, MeasureSettings(batch=3, runs=6))
    assert list(found) == ["whole", "low"]
    for taken in found.values():
        assert (taken.batch, taken.threads, taken.runs) == (3, 1, 6)
        assert 0 < taken.lower_ms <= taken.median_ms <= taken.upper_ms
        assert taken.confidence == pytest.approx(1 - 2 / 64)


def test_a_process_that_fails_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="in a process of their own, but it failed") as caught:
        measure_alone({"one": network("mlp")}, example("mlp"), MeasureSettings())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("batch must be at least 1, but is 0", {"batch": 0}),
        ("threads must be at least 1, but is -1", {"threads": -1}),
        ("runs must be at least 1, but is 0", {"runs": 0}),
        ("runs must be at least 1, but is '9'", {"runs": "9"}),
        ("provider must be one of onnxruntime, torch, but is 'tflite'", {"provider": "tflite"}),
        ("'model.onnx' is a file", {"provider": "torch"}),
        ("'model.onnx' does not", {}),
    ],
)
def test_wrong_settings_are_refused_in_one_line(text: str, named: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=re.escape(text)) as caught:
        latency("model.onnx", example("mlp"), **named)
    assert "\n" not in str(caught.value)


def test_what_is_no_network_or_input_is_refused_in_one_line() -> None:
    images = example("mlp")
    for wrong, told in (
        ((3, images), "one is of 3; give the network itself or a path"),
        ((network("mlp"), images.numpy()), "must be one tensor, but is array("),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            latency(*wrong)
    for provider in PROVIDERS:
        with pytest.raises(InputError, match=r"the network on inputs of shape .* must not fail"):
            latency(network("mlp"), torch.zeros(1, 7, 3), provider=provider)


def test_files_that_are_no_networks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(InputError, match="must be able to load"):
        latency(path, example("mlp"))
