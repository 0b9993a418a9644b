"""What a sweep's settings are where it does not state them."""

from __future__ import annotations

from typing import Any

import pytest

from automl_compress.engine.config import config_of_mapping
from automl_compress.recover import (
    DETECTOR_RECOVERY,
    DETECTOR_SPARSITY,
    SPARSITY,
    RecoverySettings,
)


@pytest.mark.parametrize(
    ("model", "data", "sparsity", "recovery"),
    [
        ("digits_cnn", {"digits": True}, SPARSITY, RecoverySettings()),
        (
            "fcos_resnet",
            {"voc": "somewhere", "image_size": [64, 96]},
            DETECTOR_SPARSITY,
            DETECTOR_RECOVERY,
        ),
    ],
)
def test_the_stages_of_a_pipeline_suit_what_is_trained(
    model: str, data: dict[str, Any], sparsity: object, recovery: object
) -> None:
    stated = {
        "study": "stages",
        "workload": {"model": model, "data": data},
        "budget": {"evaluations": 3},
    }
    stages: dict[str, Any] = {"sparsify": {}, "distill": {}}
    for more in ({}, {"quantize": {}}):
        settings = config_of_mapping({**stated, "pipeline": {**stages, **more}}).pipeline
        assert settings is not None
        assert settings.sparsify is not None
        assert settings.sparsify.training == sparsity
        assert (settings.distill, settings.quantize) == (recovery, recovery)
