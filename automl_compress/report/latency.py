"""Predicted against measured latencies: a figure and a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from automl_compress.report.drawing import Drawing, palette_colour, styled, svg_text
from automl_compress.report.table import Column, Table
from automl_compress.settings import significant

Interval = tuple[float, float, float]
"""Median of a measured latency and the ends of its interval within the session, in ms."""
_LINE: Final = "#6b6b6b"


def draw_latencies(
    network: str, conditions: str, predicted: Sequence[float], measured: Sequence[Interval]
) -> Drawing:
    """Measured over predicted latencies with the line where both are equal.

    Args:
        network: its name.
        conditions: runtime, threads and batch, in words.
        predicted: (n,) milliseconds, n >= 1.
        measured: (n,) medians with their intervals.
    """
    name = "latency"
    medians = [median for median, _, _ in measured]
    errors = [[median - low for median, low, _ in measured], [h - m for m, _, h in measured]]
    top = 1.05 * max(*predicted, *(high for _, _, high in measured))
    with styled(name):
        figure = Figure(figsize=(5.6, 5.2), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, top], [0, top], color=_LINE, linestyle="--", linewidth=0.9)
        axes.errorbar(
            predicted, medians, errors, fmt="o", color=palette_colour(0), markersize=5, capsize=2
        )
        axes.set_xlim(0, top)
        axes.set_ylim(0, top)
        axes.set_xlabel("predicted, ms")
        axes.set_ylabel("measured, ms")
        axes.set_title(f"{network}\n{conditions}", fontsize=9)
        svg = svg_text(figure, name)
    return Drawing(
        name,
        svg,
        f"Measured against predicted latencies of {len(measured)} forms of {network}",
        f"Medians with 95 % intervals within the session, {conditions}. On the dashed line both "
        "are equal.",
    )


def latency_table(
    conditions: str, rows: Sequence[tuple[str, float, float]], measured: Sequence[Interval]
) -> Table:
    """One row per network.

    Args:
        conditions: runtime, threads and batch, in words.
        rows: (n,) a name, millions of multiply-accumulates, predicted milliseconds.
        measured: (n,) medians with their intervals.
    """
    return Table(
        f"Predicted and measured latencies, {conditions}",
        (
            Column("policy", "label"),
            *map(Column, ("MACs, M", "predicted, ms", "measured, ms", "95 % interval", "ratio")),
        ),
        tuple(
            (
                name,
                f"{macs:,.2f}",
                significant(predicted),
                significant(median),
                f"{significant(low)}..{significant(high)}",
                f"{predicted / median:.2f}",
            )
            for (name, macs, predicted), (median, low, high) in zip(rows, measured, strict=True)
        ),
    )
