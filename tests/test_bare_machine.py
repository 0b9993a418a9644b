"""Networks are measured where little more than PyTorch is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys

sys.modules.update(dict.fromkeys({absent}))
import torch

import automl_compress as ac
from automl_compress.evaluate.network import EstimateSettings, NetworkEstimator
from automl_compress.workload import build_model
from automl_compress.workload.workload import WorkloadConfig, load_workload

model = build_model("digits_cnn", {{}})
ac.SearchSpace.from_model(model, torch.zeros(1, 1, 8, 8))
assert "torch._dynamo" not in sys.modules  # a compiler that takes seconds to import

workload = load_workload(WorkloadConfig.of(model="digits_cnn", train={{"epochs": 1}}))
estimator = NetworkEstimator(workload, EstimateSettings(images=50, calibration_images=16))
x = workload.example_input()
space = ac.SearchSpace.from_model(workload.model, x)
evaluation = estimator.estimate(space.decode(space.sizes - 1))
assert evaluation.ok, evaluation.reason
smaller = ac.compress(workload.model, space.largest, x)
ac.save_packed(smaller, "smaller.packed", space.largest, architecture="digits_cnn")
assert (ac.load_packed("smaller.packed")(x) == smaller(x)).all()

from automl_compress.errors import StudyError
from automl_compress.search import build_strategy, strategy_names
from automl_compress.testing import ToyNetwork

lacking = set()
for name in strategy_names():
    try:
        build_strategy(name, ToyNetwork(2).problem(), 0)
    except StudyError as reason:
        assert "but it is not installed; leave" in str(reason), reason
        lacking.add(name)
assert {{"nsga2", "optuna-tpe"}} <= lacking < set(strategy_names()), lacking
ac.recover(workload.model, space.largest, workload.splits.train, epochs=1, device="cpu")(x)
"""


def test_estimates_and_files_need_no_search_or_report_libraries(tmp_path: Path) -> None:
    absent = ("ray", "optuna", "pymoo", "moocore", "yaml", "pandas", "pyarrow", "matplotlib")
    program = PROGRAM.format(absent=repr(absent))
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
