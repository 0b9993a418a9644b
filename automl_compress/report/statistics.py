"""Intervals, spreads and counts of what was measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from automl_compress.evaluate import error_name, quality_name, quality_of
from automl_compress.pareto import Values, front_mask

_Z95: Final = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def wilson_interval(share: float, images: int) -> tuple[float, float]:
    """95 % score interval of a share that was counted (Wilson 1927).

    Args:
        share: counted share in [0, 1].
        images: how many were counted, at least 1.

    Returns:
        Lower and upper bound in [0, 1].
    """
    spread = _Z95**2 / images
    centre = (share + spread / 2) / (1 + spread)
    variance = share * (1 - share) / images + spread / (4 * images)
    half = _Z95 * math.sqrt(variance) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def quality_interval(metrics: Mapping[str, float], images: int) -> tuple[float, float] | None:
    """95 % interval of the quality among metrics; None where its error is not known.

    Of a counted accuracy Wilson's, of others the normal one by the standard error.

    Args:
        metrics: hold a quality, and its standard error where it is no accuracy.
        images: it was measured on, at least 1.
    """
    name, share = quality_name(metrics), quality_of(metrics)
    if error_name(name) not in metrics:
        return wilson_interval(share, images) if name == "accuracy" else None
    half = _Z95 * metrics[error_name(name)]
    return max(0.0, share - half), min(1.0, share + half)


@dataclass(frozen=True)
class Spread:
    """Mean and range of one number over seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Spread of at least one number."""
        return cls(float(np.mean(numbers)), min(numbers), max(numbers), len(numbers))

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ({self.low:.4f}..{self.high:.4f})"


def dominated(values: Values) -> NDArray[np.bool_]:
    """(n,) True where another row is no worse anywhere and better somewhere.

    Unlike in `front_mask`, equal rows do not dominate each other.

    Args:
        values: (n, n_objectives) minimised and finite.
    """
    no_worse = (values[:, None] <= values[None]).all(axis=2)
    better = (values[:, None] < values[None]).any(axis=2)
    return np.asarray((no_worse & better).any(axis=0))


def cost_front(qualities: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) rows of the best quality at every cost: the front of these two, cheapest first.

    Args:
        qualities: (n_points,) shares; NaN where a point does not count.
        costs: (n_points,) minimised.
    """
    pair = np.column_stack([costs, 1.0 - qualities])
    pair[np.isnan(qualities)] = np.inf
    kept = np.flatnonzero(front_mask(pair))
    return kept[np.argsort(pair[kept, 0])]


def common_reasons(frame: pd.DataFrame, most: int = 3) -> list[tuple[str, int]]:
    """The most common reasons of failed evaluations with their counts; ties by their text.

    Args:
        frame: rows of `StudyResult.to_dataframe`.
        most: how many to give.
    """
    counts = Counter(frame.loc[frame["status"] == "failed", "reason"].astype(str))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def wall_clock(frame: pd.DataFrame) -> float:
    """Seconds from the start of the first to the end of the last evaluation, pauses included."""
    if frame.empty:
        return 0.0
    finished = frame["finished"].astype(float)
    return max(0.0, float(finished.max() - (finished - frame["seconds"].astype(float)).min()))
