from __future__ import annotations

import pytest

from automl_compress.engine.study import _warn_of_chance
from automl_compress.evaluate import Evaluation
from automl_compress.space import Policy
from automl_compress.workload import WorkloadConfig, load_workload


@pytest.mark.parametrize(("accuracy", "said"), [(0.05, True), (0.14, True), (0.2, False)])
def test_a_network_that_only_guesses_is_reported(
    accuracy: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The commonest of ten digits has 12 % of the images, with 200 of them 2.3 % either way."""
    workload = load_workload(WorkloadConfig.of(model="digits_cnn", train={"epochs": 1}))
    metrics = {"accuracy": accuracy, "error": 1 - accuracy}
    _warn_of_chance(Evaluation(Policy({}), "one", metrics, images=200), workload)
    assert ("check weights, data.mean, data.std" in caplog.text) == said
    assert (f"right on {accuracy:.1%} of".replace("%", " %") in caplog.text) == said
