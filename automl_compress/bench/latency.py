"""How well a table of single layers predicts the latency of whole networks.

The networks that are compared are none of those that the table's line is fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from torch import Tensor

from automl_compress.compress import Compressor
from automl_compress.deploy.latency_calibration import (
    LatencySettings,
    calibrated_table,
    measure_policies,
)
from automl_compress.space import Policy, SearchSpace

SCATTER: Final = 0.2
"""Standard deviation of a gene's place around its policy's, as a share of its range."""


@dataclass(frozen=True)
class LatencyRow:
    """One compressed network.

    Args:
        policy: its policy's key.
        macs: multiply-accumulates for one input.
        predicted_ms: milliseconds by the table and its line.
        layers_ms: milliseconds of its layers alone, by the table.
        measured_ms: median of its runs.
        lower_ms: lower end of the median's 95 % interval.
        upper_ms: its upper end.
    """

    policy: str
    macs: float
    predicted_ms: float
    layers_ms: float
    measured_ms: float
    lower_ms: float
    upper_ms: float


@dataclass(frozen=True)
class LatencyBench:
    """What was predicted and measured of one network's policies.

    Args:
        network: its name.
        conditions: machine, runtime, batch and threads.
        int8: whether layers with low-bit weights ran on integers.
        runs: runs of each network.
        entries: layers that the space needs.
        run_ms: of the table's line, milliseconds whatever the layers.
        slope: of the table's line.
        calibrated_by: how many networks the line was fitted to.
        rows: one per network.
    """

    network: str
    conditions: Mapping[str, Any]
    int8: bool
    runs: int
    entries: int
    run_ms: float
    slope: float
    calibrated_by: int
    rows: tuple[LatencyRow, ...]

    @property
    def pearson(self) -> float:
        """Correlation of predicted and measured, in [-1, 1]; NaN where one is constant."""
        return correlation(*self._pairs)

    @property
    def spearman(self) -> float:
        """Correlation of their ranks, in [-1, 1]; NaN where one is constant."""
        predicted, measured = self._pairs
        return correlation(ranks(predicted), ranks(measured))

    @property
    def macs_spearman(self) -> float:
        """The same for multiply-accumulates in place of predictions."""
        return correlation(ranks([row.macs for row in self.rows]), ranks(self._pairs[1]))

    @property
    def median_error(self) -> float:
        """Median of |predicted / measured - 1|."""
        predicted, measured = map(np.asarray, self._pairs)
        return float(np.median(np.abs(predicted / measured - 1)))

    @property
    def _pairs(self) -> tuple[list[float], list[float]]:
        return [row.predicted_ms for row in self.rows], [row.measured_ms for row in self.rows]


def bench_latency(
    network: str,
    compressor: Compressor,
    space: SearchSpace,
    example_input: Tensor,
    settings: LatencySettings,
    policies: int,
    seed: int = 0,
) -> LatencyBench:
    """Make the table, then predict and measure policies spread over a space.

    Args:
        network: its name.
        compressor: of the network.
        space: policies come from it.
        example_input: (1, ...) what the network takes.
        settings: how latencies are measured, and the table's file.
        policies: how many.
        seed: decides them.

    Raises:
        InputError: see `calibrated_table`.
        EngineError: the measuring process fails.
    """
    model = calibrated_table(settings, compressor, space, example_input).model(space)
    chosen = spread_policies(space, policies, seed)
    taken = measure_policies(settings.measure, compressor, chosen, example_input)
    rows = [
        LatencyRow(
            policy=policy.key,
            macs=compressor.cost(policy)["macs"],
            predicted_ms=model(policy),
            layers_ms=model.layers_ms(policy),
            measured_ms=latency.median_ms,
            lower_ms=latency.lower_ms,
            upper_ms=latency.upper_ms,
        )
        for policy, latency in taken.items()
    ]
    return LatencyBench(
        network=network,
        conditions=model.conditions,
        int8=settings.measure.int8,
        runs=settings.measure.runs,
        entries=len(model.to_dict()["entries"]),
        run_ms=model.line.run_ms,
        slope=model.line.slope,
        calibrated_by=model.line.networks,
        rows=tuple(rows),
    )


def spread_policies(space: SearchSpace, count: int, seed: int) -> list[Policy]:
    """Different policies from the smallest to the largest, each gene scattered around its level.

    Args:
        space: where they are from.
        count: how many are drawn; equal ones count once.
        seed: decides them.
    """
    rng = np.random.default_rng(seed)
    levels = (np.arange(count) + 0.5) / count
    points = np.clip(levels[:, None] + rng.normal(0, SCATTER, (count, len(space))), 0, 1)
    return list(dict.fromkeys(space.decode(space.from_unit(point)) for point in points))


def correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Pearson's correlation of (n,) numbers; NaN where one side is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])


def ranks(values: Sequence[float]) -> list[float]:
    """(n,) ranks from 1; equal values share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    means = np.cumsum(counts) - (counts - 1) / 2
    return [float(rank) for rank in means[places]]
