"""Latency in a study: what is predicted while strategies race, and what finalists really take.

Nothing is timed while a study computes anything else. The table of layers is made before the race,
for all widths the space allows; finalists are measured after it, in a process of their own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from automl_compress.compress import Compressor
from automl_compress.deploy.latency import Latency
from automl_compress.deploy.latency_calibration import (
    LatencySettings,
    calibrated_table,
    measure_policies,
)
from automl_compress.deploy.latency_model import LatencyModel
from automl_compress.deploy.latency_table import measuring_conditions
from automl_compress.errors import StudyError
from automl_compress.evaluate import LATENCY, Evaluation
from automl_compress.ledger import Ledger, Place
from automl_compress.space import Policy, SearchSpace

LATENCIES: Final = "latencies"
"""Name under which measured latencies are asked for in the ledger."""


def predicting(
    settings: LatencySettings, compressor: Compressor, space: SearchSpace, example_input: Tensor
) -> LatencyModel:
    """What predicts latencies while the study races; makes the table where it is not complete.

    Raises:
        InputError: see `calibrated_table`.
        EngineError: whole networks could not be measured.
    """
    return calibrated_table(settings, compressor, space, example_input).model(space)


def latency_record(settings: LatencySettings, model: LatencyModel, search: str) -> dict[str, Any]:
    """What a manifest says of latencies.

    Args:
        settings: how they are measured.
        model: what predicts them.
        search: identity of the search's estimator, which stands for network and calibration.
    """
    parts = (search, asdict(settings.measure), model.conditions)
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    return {"estimator": digest, **asdict(settings.measure), "model": model.to_dict()}


def recorded_model(record: Mapping[str, Any], compressor: Compressor) -> LatencyModel:
    """The predictor a study raced with, from its manifest."""
    return LatencyModel.from_dict(compressor.structure, record["model"])


def check_machine(model: LatencyModel, settings: LatencySettings) -> None:
    """Refuse to go on where latencies would be measured by another machine or runtime.

    Raises:
        StudyError: the conditions differ.
    """
    here = measuring_conditions(settings.measure.batch, settings.measure.threads)
    if here != model.conditions:
        there = ", ".join(str(v) for k, v in model.conditions.items() if here.get(k) != v)
        raise StudyError(
            f"a study with latencies must be resumed where its table was made, but that was with "
            f"{there}; resume it there or start another study"
        )


def measure_latencies(
    settings: LatencySettings,
    record: Mapping[str, Any],
    compressor: Compressor,
    policies: Sequence[Policy],
    example_input: Tensor,
    ledger: Path,
) -> None:
    """Measure policies and the uncompressed network in turn, into the ledger.

    A machine's speed differs from one session to the next, by more than intervals say. So where one
    of them is not known yet, all are measured again, and the ledger holds the last session alone.

    Raises:
        InputError: a network cannot be exported.
        EngineError: the measuring process fails.
    """
    everyone = [Policy({}), *policies]
    with Ledger(ledger) as store:
        found = store.find([policy.key for policy in everyone], record["estimator"])
        if len(found) == len(everyone) or not policies:
            return
        taken = measure_policies(settings.measure, compressor, everyone, example_input)
        session = [
            (Evaluation(policy, record["estimator"], _metrics(latency)), Place(LATENCIES, place, 0))
            for place, (policy, latency) in enumerate(taken.items())
        ]
        store.replace(record["estimator"], session)


def _metrics(latency: Latency) -> dict[str, float]:
    return {
        LATENCY: latency.median_ms,
        f"{LATENCY}_lower": latency.lower_ms,
        f"{LATENCY}_upper": latency.upper_ms,
    }
