"""Networks are measured where little more than PyTorch is installed."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys

sys.modules.update(dict.fromkeys({absent}))
import automl_compress as ac
from automl_compress.evaluate.network import EstimateSettings, NetworkEstimator
from automl_compress.workload.workload import WorkloadConfig, load_workload

workload = load_workload(WorkloadConfig.of(model="digits_cnn", train={{"epochs": 1}}))
estimator = NetworkEstimator(workload, EstimateSettings(images=50, calibration_images=16))
x = workload.example_input()
space = ac.SearchSpace.from_model(workload.model, x)
evaluation = estimator.estimate(space.decode(space.sizes - 1))
assert evaluation.ok, evaluation.reason
ac.compress(workload.model, space.largest, x)(x)
"""


def test_estimates_need_no_search_or_report_libraries() -> None:
    absent = ("ray", "optuna", "pymoo", "moocore", "yaml", "pandas", "pyarrow", "matplotlib")
    program = PROGRAM.format(absent=repr(absent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
