"""How numbers are written, the same in every table and sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from automl_compress.evaluate import LATENCY, LOSSES
from automl_compress.settings import significant

MISSING: Final = "–"
"""Stands for a number that does not exist (yet)."""

TITLES: Final[Mapping[str, str]] = {
    "error": "error",
    "divergence": "divergence",
    "size_bytes": "size",
    "macs": "MACs",
    "params": "parameters",
    "bitops": "bit operations",
    "latency_ms": "predicted latency",
}
"""What a reader calls each metric."""

SUPERLATIVES: Final[Mapping[str, str]] = {
    "size_bytes": "smallest size",
    "macs": "fewest MACs",
    "params": "fewest parameters",
    "bitops": "fewest bit operations",
    "latency_ms": "lowest latency",
}

_PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_LEAST_DIGITS: Final = 100.0


def capital(text: str) -> str:
    """Text that begins a sentence; an abbreviation such as mAP50 stays as it is."""
    return text if any(letter.isupper() for letter in text) else text[:1].upper() + text[1:]


def percent(share: float | None) -> str:
    """A share in [0, 1] with two decimals: `93.40 %`."""
    return MISSING if share is None else f"{100 * share:.2f} %"


def estimate(share: float, error: float) -> str:
    """A share with its standard error in percentage points: `93.36 % ± 1.10`."""
    return f"{percent(share)} ± {100 * error:.2f}" if math.isfinite(error) else percent(share)


def interval(bounds: tuple[float, float] | None) -> str:
    """Two shares as `92.88..93.88 %`."""
    return MISSING if bounds is None else f"{100 * bounds[0]:.2f}..{100 * bounds[1]:.2f} %"


def points(share: float | None) -> str:
    """A difference of shares in percentage points, without a unit: `0.52`."""
    if share is None:
        return MISSING
    return f"{round(100 * share, 2) + 0.0:.2f}"


def cost(name: str, value: float | None, baseline: float) -> str:
    """A cost in a unit that the baseline decides, so that a column has one: `301.2 kB`.

    Args:
        name: a metric of `COSTS` or `LOSSES`.
        value: in the metric's unit, or None.
        baseline: the uncompressed network's value, in the metric's unit.
    """
    if value is None:
        return MISSING
    if name in LOSSES:
        return f"{value:.4f}"
    if name == LATENCY:
        return milliseconds(value)
    unit = "B" if name == "size_bytes" else ""
    for factor, prefix in _PREFIXES:
        if baseline >= _LEAST_DIGITS * factor:
            return f"{value / factor:,.1f} {prefix}{unit}"
    return f"{value:,.0f} {unit}".strip()


def milliseconds(value: float) -> str:
    """A latency as `0.8531 ms`."""
    return f"{significant(value)} ms"


def ratio(value: float, baseline: float) -> str:
    """A cost as a share of the baseline's: `8.8 %`."""
    return f"{100 * value / baseline:.1f} %" if baseline else MISSING


def cost_and_ratio(name: str, value: float | None, baseline: float | None) -> str:
    """`301.2 kB (8.8 %)`; without a baseline, and of a loss, only the number."""
    if value is None:
        return MISSING
    if not baseline or name in LOSSES:
        return cost(name, value, value)
    return f"{cost(name, value, baseline)} ({ratio(value, baseline)})"


def duration(seconds: float) -> str:
    """A time as `42.0 s`, `3 min 20 s` or `2 h 05 min`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def count(number: int, noun: str) -> str:
    """A number with its noun: `1 seed`, `2 seeds`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
