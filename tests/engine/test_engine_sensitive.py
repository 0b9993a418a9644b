"""Studies tell the strategy that protects sensitive layers which ones are."""

from __future__ import annotations

from typing import Any

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
    prepared = Study(**settings, strategies=["sensitive", "random"])._prepare()
    problem = prepared.problem
    found = zip(problem.space, problem.sensitivity, strict=True)
    shares = {gene.name: float(share) * (gene.kind == "channels") for gene, share in found}
    assert problem.sensitivity.shape == (len(problem.space),)
    assert ((problem.sensitivity >= 0) & (problem.sensitivity <= 1)).all()
    most = max(problem.space, key=lambda gene: shares[gene.name])
    assert shares[most.name] > 0
    assert list(prepared.manifest.plans) == ["sensitive"]
    share = f"{100 * shares[most.name]:.0f} %"
    assert prepared.manifest.plans["sensitive"][0].startswith(
        f"protects {most.target}, {most.values[-1]} channels: {share} of its"
    )


def test_other_studies_do_not_pay_for_ranks(settings: dict[str, Any]) -> None:
    problem = Study(**settings, strategies=["random"])._prepare().problem
    assert problem.sensitivity.size == 0
