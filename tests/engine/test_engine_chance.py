from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from automl_compress.engine.prepare import _warn_of_chance, _warn_of_heads
from automl_compress.evaluate import Evaluation
from automl_compress.space import Policy
from automl_compress.workload import WorkloadConfig, load_workload
from automl_compress.workload.detection import Detection


@pytest.mark.parametrize(("accuracy", "said"), [(0.05, True), (0.14, True), (0.2, False)])
def test_a_network_that_only_guesses_is_reported(
    accuracy: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The commonest of ten digits has 12 % of the images, with 200 of them 2.3 % either way."""
    workload = load_workload(WorkloadConfig.of(model="digits_cnn", train={"epochs": 1}))
    metrics = {"accuracy": accuracy, "error": 1 - accuracy}
    _warn_of_chance(Evaluation(Policy({}), "one", metrics, images=200), workload)
    assert ("check weights, data.mean, data.std" in caplog.text) == said
    _warn_of_heads(workload)
    assert "training mode" not in caplog.text
    assert (f"right on {accuracy:.1%} of".replace("%", " %") in caplog.text) == said


@pytest.mark.parametrize(("quality", "said"), [(0.0, True), (0.01, False)])
def test_a_detector_that_finds_nothing_is_reported(
    quality: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    workload: Any = SimpleNamespace(task=Detection(2, (32, 32), (8,)))
    metrics = {"map50": quality, "error": 1 - quality}
    _warn_of_chance(Evaluation(Policy({}), "one", metrics, images=200), workload)
    assert ("finds no object of the search images; check weights" in caplog.text) == said


def test_parts_that_run_in_training_mode_alone_are_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Headed(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return (super().forward(x), self.head(x)) if self.training else super().forward(x)

    model = Headed(2, 2)
    model.head = nn.Linear(2, 3)
    workload: Any = SimpleNamespace(model=model, example_input=lambda: torch.ones(1, 2))
    _warn_of_heads(workload)
    assert "alone are neither searched nor trained: head; they are in" in caplog.text
    assert "file, 36 bytes" in caplog.text
