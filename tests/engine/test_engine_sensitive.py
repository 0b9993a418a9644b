"""Studies tell the strategy that protects sensitive layers which ones are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from automl_compress.engine import Study


@pytest.fixture(scope="module")
def settings() -> dict[str, Any]:
    return {
        "study": "tiny",
        "workload": {"model": "digits_cnn", "train": {"epochs": 1}},
        "estimate": {"images": 50, "calibration_images": 16},
        "seeds": 1,
        "budget": {"evaluations": 3},
        "engine": {"kind": "serial"},
    }


def test_ranks_are_counted_for_the_strategy_that_asks(settings: dict[str, Any]) -> None:
    problem = Study(**settings, strategies=["sensitive"])._prepare().problem
    channels = np.array([gene.kind == "channels" for gene in problem.space])
    assert problem.sensitivity.shape == (len(problem.space),)
    assert ((problem.sensitivity >= 0) & (problem.sensitivity <= 1)).all()
    assert (problem.sensitivity[channels] > 0).any()


def test_other_studies_do_not_pay_for_ranks(settings: dict[str, Any]) -> None:
    problem = Study(**settings, strategies=["random"])._prepare().problem
    assert problem.sensitivity.size == 0
