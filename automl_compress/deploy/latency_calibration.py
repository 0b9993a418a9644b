"""A table of layers made ready for a search space: complete, and fitted to whole networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from torch import Tensor

from automl_compress.compress import Compressor
from automl_compress.deploy.latency import Latency
from automl_compress.deploy.latency_table import LatencyTable, measuring_conditions
from automl_compress.deploy.measuring import MeasureSettings, measure_alone
from automl_compress.deploy.onnx import foldable_maps
from automl_compress.space import Policy, SearchSpace
from automl_compress.workload import cache_folder

CALIBRATION_SHARES: Final = (0.0, 0.5, 1.0)
"""Where in the space the networks are, besides the uncompressed one, that a table's line is
fitted to: 0 is the smallest."""


@dataclass(frozen=True)
class LatencySettings:
    """How latencies are measured and predicted.

    Args:
        measure: threads, batch, integers and runs.
        table: the file of the table; None keeps one per machine in the cache folder.
    """

    measure: MeasureSettings = field(default_factory=MeasureSettings)
    table: Path | None = None

    def path(self) -> Path:
        """The table's file."""
        if self.table is not None:
            return self.table
        conditions = measuring_conditions(self.measure.batch, self.measure.threads)
        digest = hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:16]
        return cache_folder() / f"latency-{digest}.json"


def calibrated_table(
    settings: LatencySettings, compressor: Compressor, space: SearchSpace, example_input: Tensor
) -> LatencyTable:
    """The table of a network, with all layers its space allows, and its line.

    What the file holds already is not timed again.

    Args:
        settings: how.
        compressor: of the network.
        space: whose policies will be predicted.
        example_input: (1, ...) what the network takes.

    Raises:
        InputError: ONNX Runtime is missing, a network cannot be exported, the space needs too
            many layers, or the table is another machine's.
        EngineError: whole networks could not be measured.
    """
    measure = settings.measure
    table = LatencyTable(
        compressor.structure, settings.path(), measure.batch, measure.threads, measure.int8
    )
    if table.maps is None:
        smallest = compressor.build(scaled_policy(space, 0.0))
        table.reckon_with(foldable_maps(smallest, example_input) if measure.int8 else ())
    table.cover(space)
    if table.line is None:
        policies = [Policy({}), *(scaled_policy(space, share) for share in CALIBRATION_SHARES)]
        taken = measure_policies(measure, compressor, policies, example_input)
        table.calibrate({policy: latency.median_ms for policy, latency in taken.items()})
    return table


def scaled_policy(space: SearchSpace, share: float) -> Policy:
    """The policy at a share of every gene's range: 0 is the smallest, 1 the largest."""
    return space.decode(space.from_unit(np.full(len(space), share)))


def measure_policies(
    settings: MeasureSettings,
    compressor: Compressor,
    policies: Sequence[Policy],
    example_input: Tensor,
) -> dict[Policy, Latency]:
    """Measure the networks of policies in turn, in a process of their own.

    Args:
        settings: threads, batch and runs.
        compressor: builds the networks.
        policies: each once.
        example_input: (1, ...) what the networks take.

    Returns:
        Latencies in milliseconds, by policy.

    Raises:
        InputError: a network cannot be exported.
        EngineError: the process fails.
    """
    networks = {policy.key: compressor.build(policy) for policy in policies}
    found = measure_alone(networks, example_input, settings)
    return {policy: found[policy.key] for policy in policies}
