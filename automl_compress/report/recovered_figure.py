"""The figure of networks that were trained after the search: test quality before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from automl_compress.pareto import front_mask
from automl_compress.report.drawing import (
    INK,
    Drawing,
    called,
    cost_axis,
    draw_legend,
    palette_colour,
    styled,
    svg_text,
)
from automl_compress.report.formats import TITLES
from automl_compress.report.statistics import quality_interval
from automl_compress.report.summary import Summary

_BEFORE: Final = "#777777"


def draw_recovered(summary: Summary) -> Drawing:
    """Fronts of test quality before and after recovery, a panel for every cost.

    Costs are the objectives that are known of all networks; where none is, the size, which always
    is.

    Args:
        summary: of a study with recovered networks.
    """
    name = "recovered"
    known = _known(summary)
    costs = [cost for cost in summary.result.manifest.objectives if cost in known] or ["size_bytes"]
    with styled(name):
        figure = Figure(figsize=(max(6.0, 4.3 * len(costs)), 4.2), layout="constrained")
        panels: Sequence[Axes] = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
        for axes, cost in zip(panels, costs, strict=True):
            _draw_panel(axes, summary, cost)
        panels[0].set_ylabel(f"{summary.quality} on the test examples, %")
        draw_legend(figure, _handles(summary))
        svg = svg_text(figure, name)
    titles = " and ".join(TITLES[cost] for cost in costs)
    return Drawing(
        name,
        svg,
        f"Test {summary.quality} against {titles} before and after recovery",
        f"Test {summary.quality} of the finalists and of the recovered networks. The grey line is "
        "the best "
        "at every cost without training, the coloured one with it; arrows lead from a network's "
        f"{summary.quality} before its training to that after it, with its 95 % interval.",
    )


def _known(summary: Summary) -> set[str]:
    """Costs that are known of every recovered network."""
    return set.intersection(*(set(network.costs) for network in summary.recovered))


def _draw_panel(axes: Axes, summary: Summary, cost: str) -> None:
    whole = summary.result.manifest.baseline[cost]
    recovered, colour = summary.recovered, palette_colour(0)
    trained = {network.policy.key for network in recovered}
    untrained = [f for f in summary.measured if f.estimate.policy.key not in trained]
    others = _points(
        [f.estimate.metrics[cost] / whole for f in untrained],
        [f.quality or 0.0 for f in untrained],
    )
    shares = [network.costs[cost] / whole for network in recovered]
    before = _points(shares, [network.before["test"] for network in recovered])
    after = _points(shares, [network.after["test"] for network in recovered])
    _draw_front(axes, np.concatenate([others, before]), _BEFORE, "--")
    _draw_front(axes, np.concatenate([others, after]), colour, "-")
    marks: dict[str, Any] = {"marker": "o", "linestyle": "none", "markersize": 6.0}
    axes.plot(*others.T, color=_BEFORE, **marks)
    axes.plot(*before.T, color=colour, markerfacecolor="white", **marks)
    axes.plot(*after.T, color=colour, **marks)
    for network, (x, low), (_, high) in zip(recovered, before, after, strict=True):
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 1.1, "shrinkA": 4, "shrinkB": 4}
        axes.annotate("", (x, high), (x, low), arrowprops=arrow)
        interval = quality_interval(network.tested, network.test_images)
        if interval is not None:
            axes.plot([x, x], [100 * bound for bound in interval], color=colour, linewidth=1.1)
    given, original = summary.given_quality, recovered[0].original["test"]
    quality, style = (original, ":") if given is None else (given, "--")  # as in other figures
    axes.axhline(100 * quality, color=INK, linewidth=0.9, linestyle=style)
    everything = np.concatenate([others, before])[:, 0]
    cost_axis(axes, everything.min(), everything.max())
    axes.set_xlabel(f"{TITLES[cost]}, % of the {called(summary.reference)}")


def _points(shares: Sequence[float], qualities: Sequence[float]) -> NDArray[np.float64]:
    """(n, 2) cost as % of the baseline and quality in %."""
    return 100 * np.column_stack([np.asarray(shares, float), np.asarray(qualities, float)])


def _draw_front(axes: Axes, points: NDArray[np.float64], colour: str, style: str) -> None:
    """The best quality at every cost, as steps."""
    best = points[front_mask(np.column_stack([points[:, 0], -points[:, 1]]))]
    best = best[np.argsort(best[:, 0])]
    axes.plot(*best.T, drawstyle="steps-post", color=colour, linestyle=style, linewidth=1.2)


def _handles(summary: Summary) -> list[Line2D]:
    style: Literal[":", "--"] = ":" if summary.given_quality is None else "--"
    colour = palette_colour(0)
    marks: dict[str, Any] = {"marker": "o", "linewidth": 1.2}
    return [
        Line2D([], [], color=_BEFORE, linestyle="--", label="not trained", **marks),
        Line2D([], [], color=colour, linestyle="none", markerfacecolor="white", label="before",
               marker="o"),
        Line2D([], [], color=colour, linestyle="-", label="after recovery", **marks),
        Line2D([], [], color=INK, linestyle=style, label=called(summary.reference)),
    ]  # fmt: skip
