"""The figures of a study's report: fronts, hypervolume over the evaluations, finalists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from automl_compress.evaluate import LOSSES, USEFUL_LOSS, quality_of
from automl_compress.report.drawing import (
    INK,
    Drawing,
    called,
    cost_axis,
    draw_legend,
    palette_colour,
    palette_marker,
    styled,
    svg_text,
)
from automl_compress.report.finalists import Finalist
from automl_compress.report.formats import TITLES
from automl_compress.report.scores import is_left_out, useful_start
from automl_compress.report.statistics import cost_front
from automl_compress.report.strategy_scores import StrategyScores
from automl_compress.report.summary import Summary

_REFERENCE: Final = {"color": "#6b6b6b", "marker": "d", "linestyle": "--"}
_MOST_POINTS: Final = 160
_MOST_SPOTS: Final = 110

Look = Mapping[str, Any]
"""Colour, marker and line style of one strategy, as matplotlib takes them."""


def draw_all(summary: Summary) -> dict[str, Drawing]:
    """Every figure of a report by name; none while no evaluation can be drawn."""
    if not summary.has_values:
        return {}
    names = [name for name in summary.result.manifest.objectives if name not in LOSSES]
    drawings = [draw_front(summary, name) for name in names]
    drawings += [draw_hypervolume(summary, kind) for kind in ("useful", "plain")]
    if summary.measured and summary.test_quality is not None:
        drawings.append(draw_finalists(summary, names[0]))
    return {drawing.name: drawing for drawing in drawings}


def looks(strategies: Sequence[StrategyScores]) -> dict[str, Look]:
    """One look per label, the same in every figure of a study."""
    chosen: dict[str, Look] = {}
    for position, group in enumerate(strategies):
        chosen[group.label] = (
            {
                "color": palette_colour(position),
                "marker": palette_marker(position),
                "linestyle": "-",
            }
            if group.in_race
            else _REFERENCE
        )
    return chosen


# Fronts


def draw_front(summary: Summary, cost: str) -> Drawing:
    """Best quality at every cost by strategy: the useful region, and the whole range beside it."""
    name, title = f"front_{cost}", TITLES[cost]
    fronts = {group.label: _front(summary, group, cost) for group in summary.strategies}
    quality = summary.quality
    uncut = _uncut(summary, tested=False)
    baseline = uncut[0].quality
    with styled(name):
        figure, (zoom, whole) = _panels()
        for axes in (zoom, whole):
            _draw_fronts(axes, fronts, looks(summary.strategies), uncut)
        region, floor = _useful_region(summary, fronts.values(), baseline)
        limits = _zoom(zoom, fronts.values(), max(line.quality for line in uncut), floor)
        _whole(whole, fronts.values(), baseline, limits)
        zoom.set_ylabel(f"{quality} on the search examples, %")
        zoom.set_title(region, fontsize=10)
        whole.set_title("whole range", fontsize=10)
        figure.supxlabel(f"{title}, % of the {called(summary.reference)}", fontsize=10)
        _legend(figure, summary.strategies, _uncut_handles(uncut))
        svg = svg_text(figure, name)
    return Drawing(
        name,
        svg,
        f"Fronts of {_listed(summary)}: {quality} on the search examples against {title}",
        f"Highest {quality} within each limit on {title}{_front_caption(summary)}",
    )


def _front_caption(summary: Summary) -> str:
    """How to read a figure of fronts, as far as it applies to a study."""
    seeds = ", all seeds of a strategy together" if summary.has_ranges else ""
    only = " Only networks that meet the constraints count."
    return (
        f"{seeds}; bars are one standard error each way. Search estimates, not test numbers. The "
        "frame at the right is the region at the left."
        f"{only if summary.result.manifest.constraints else ''}"
    )


def _front(summary: Summary, group: StrategyScores, cost: str) -> NDArray[np.float64]:
    """(n, 3) cost as % of the baseline, quality and its standard error in %, cheapest first."""
    costs = group.values[:, summary.result.manifest.objectives.index(cost)]
    rows = cost_front(group.qualities, costs)
    shares = costs[rows] / summary.result.manifest.baseline[cost]
    return 100 * np.column_stack([shares, group.qualities[rows], group.standard_errors[rows]])


def _panels() -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(8.6, 4.6), layout="constrained")
    zoom, whole = figure.subplots(1, 2, width_ratios=(2.1, 1))
    return figure, (zoom, whole)


def _draw_fronts(
    axes: Axes,
    fronts: Mapping[str, NDArray[np.float64]],
    chosen: Mapping[str, Look],
    uncut: Sequence[_Uncut],
) -> None:
    for label, front in reversed(list(fronts.items())):
        points = _thinned(front)
        look = chosen[label]
        axes.plot(*points.T[:2], drawstyle="steps-post", markersize=4.5, linewidth=1.3, **look)
        x, y, error = points[np.isfinite(points[:, 2])].T
        axes.vlines(x, y - error, y + error, color=look["color"], linewidth=0.8, alpha=0.45)
    for line in uncut:
        axes.axhline(line.quality, color=INK, linewidth=0.9, linestyle=line.style)
        axes.plot([100], [line.quality], **line.star, markersize=11, linestyle="none")


def _useful_region(
    summary: Summary, fronts: Iterable[NDArray[np.float64]], baseline: float
) -> tuple[str, float]:
    """Its name, and the quality (%) above which it lies.

    Where constraints leave the uncompressed network out, the best network stands in its place.
    """
    points = 100 * USEFUL_LOSS
    manifest = summary.result.manifest
    if not is_left_out(manifest):
        start = 100 * (1.0 - useful_start(manifest)["error"])
        return f"within {points:g} points of the {called(summary.useful_start)}", start - points
    best = max((front[:, 1].max() for front in fronts if len(front)), default=baseline)
    return f"within {points:g} points of the best found", min(baseline, best) - points


def _zoom(
    axes: Axes, fronts: Iterable[NDArray[np.float64]], uncut: float, floor: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limit a panel to the qualities above a floor; returns its limits in x and y.

    Args:
        axes: the panel.
        fronts: what is drawn there.
        uncut: the highest quality (%) of a network that nothing is cut from.
        floor: a quality in %.
    """
    useful = np.concatenate([front[front[:, 1] > floor, :2] for front in fronts])
    if not len(useful):
        axes.text(0.5, 0.5, "no network here yet", transform=axes.transAxes, ha="center")
        useful = np.array([[100.0, uncut]])
    low, top = max(0.0, min(floor, uncut)), max(uncut, useful[:, 1].max())
    limits = (
        cost_axis(axes, useful[:, 0].min(), useful[:, 0].max()),
        (low, top + 0.06 * max(top - low, 1.0)),  # both may be 0
    )
    axes.set_ylim(*limits[1])
    return limits


def _whole(
    axes: Axes,
    fronts: Iterable[NDArray[np.float64]],
    baseline: float,
    limits: tuple[tuple[float, float], tuple[float, float]],
) -> None:
    """Limit a panel to everything there is, and frame the region of the other panel."""
    everything = np.concatenate([*(front[:, :2] for front in fronts), [[100.0, baseline]]])
    cost_axis(axes, everything[:, 0].min(), everything[:, 0].max())
    axes.set_ylim(0, 103)
    (left, right), (low, top) = limits
    axes.add_patch(
        Rectangle(
            (left, low), right - left, top - low, fill=False, edgecolor="#999999", linewidth=0.8
        )
    )


# Hypervolume


def draw_hypervolume(summary: Summary, kind: str) -> Drawing:
    """Hypervolume against evaluations: mean over seeds, with a band from lowest to highest.

    Args:
        summary: the study.
        kind: `useful` or `plain`.
    """
    name = f"hypervolume_{kind}"
    with styled(name):
        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        axes = figure.subplots()
        chosen = looks(summary.strategies)
        curves = _curves(summary, kind)
        for label, lines in reversed(list(curves.items())):
            _draw_curves(axes, lines, chosen[label])
        axes.set_xlim(0, 1.02 * max(lines.shape[1] for lines in curves.values()))
        axes.set_ylim(*_curve_limits(list(curves.values())))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("evaluations of one contestant")
        axes.set_ylabel(f"{kind} hypervolume")
        _legend(figure, summary.strategies)
        svg = svg_text(figure, name)
    return Drawing(
        name,
        svg,
        f"{kind.capitalize()} hypervolume of {_listed(summary)} against evaluations",
        f"{kind.capitalize()} hypervolume after every evaluation{_curve_note(summary)} The "
        "vertical axis need not start at 0.",
    )


def _curve_note(summary: Summary) -> str:
    """What the lines are, and where they end, as far as there is more than one answer."""
    note = "."
    if summary.has_ranges:
        note = (
            ": mean over the seeds, and a band from the lowest seed to the highest. A line ends "
            "where the shortest of its seeds ends."
        )
    if len(summary.race) < len(summary.strategies):
        note += " That of the reference is drawn on to the end of the longest."
    return note


def _curves(summary: Summary, kind: str) -> dict[str, NDArray[np.float64]]:
    """(n_seeds, n_evaluations) by label; the reference keeps its last value to the end."""
    curves = {group.label: group.curves(kind) for group in summary.strategies}
    longest = max(lines.shape[1] for lines in curves.values())
    for group in summary.strategies:
        lines = curves[group.label]
        if lines.size and not group.in_race:
            missing = longest - lines.shape[1]
            curves[group.label] = np.pad(lines, ((0, 0), (0, missing)), mode="edge")
    return curves


def _draw_curves(axes: Axes, lines: NDArray[np.float64], look: Look) -> None:
    """Draw (n_seeds, n_evaluations) curves of one strategy; before the first is nothing, 0."""
    if not lines.size:
        return
    whole = np.column_stack([np.zeros(len(lines)), lines])
    spots = _spots(whole.shape[1])
    mean = whole.mean(axis=0)[spots]
    if len(lines) > 1:
        low, high = whole.min(axis=0)[spots], whole.max(axis=0)[spots]
        axes.fill_between(
            spots, low, high, step="post", color=look["color"], alpha=0.18, linewidth=0
        )
    axes.plot(
        spots,
        mean,
        drawstyle="steps-post",
        linewidth=1.6,
        markersize=5,
        markevery=_mark_spots(spots),
        **look,
    )


def _spots(length: int) -> NDArray[np.int64]:
    """At most `_MOST_SPOTS` positions of 0..length-1, first and last among them."""
    return np.unique(np.linspace(0, length - 1, _MOST_SPOTS).round().astype(np.int64))


def _mark_spots(spots: NDArray[np.int64]) -> list[int]:
    """Indices into `spots` that get a marker, the last among them."""
    return sorted({round(i * (len(spots) - 1) / 8) for i in range(1, 9)})


def _curve_limits(curves: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """Limits that cut off the steep beginning, the first tenth of each curve."""
    drawn = [lines for lines in curves if lines.size]
    top = max(float(lines.max()) for lines in drawn)
    low = min(float(lines[:, lines.shape[1] // 10].min()) for lines in drawn)
    if top <= 0:
        return 0.0, 1.0
    if low >= top:
        low = 0.0
    return max(0.0, low - 0.05 * (top - low)), top + 0.05 * (top - low)


# Finalists


def draw_finalists(summary: Summary, cost: str) -> Drawing:
    """Test quality of the finalists with its interval, and the search estimate beside it."""
    name, title = "finalists", TITLES[cost]
    chosen = looks(summary.strategies)
    with styled(name):
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        axes = figure.subplots()
        for finalist in summary.measured:
            _draw_finalist(axes, summary, finalist, cost, chosen)
        for line in _uncut(summary, tested=True):
            axes.axhline(line.quality, color=INK, linewidth=0.9, linestyle=line.style)
        shares = [_cost_share(summary, finalist, cost) for finalist in summary.measured]
        cost_axis(axes, min(shares), max(shares))
        axes.set_xlabel(f"{title}, % of the {called(summary.reference)}")
        axes.set_ylabel(f"{summary.quality}, %")
        _legend(figure, summary.strategies, _finalist_handles(summary))
        svg = svg_text(figure, name)
    return Drawing(
        name,
        svg,
        f"Test {summary.quality} of the finalists against {title}, beside the search estimates",
        f"Finalists on the untouched test examples against {title}: filled marks with 95 % "
        "intervals. Hollow marks are their search estimates.",
    )


def _draw_finalist(
    axes: Axes, summary: Summary, finalist: Finalist, cost: str, chosen: Mapping[str, Look]
) -> None:
    x = _cost_share(summary, finalist, cost)
    tested = 100 * (finalist.quality or 0.0)
    estimate = 100 * finalist.estimate.quality
    look = chosen[_found_by(summary, finalist)]
    marks = {"color": look["color"], "marker": look["marker"], "linestyle": "none"}
    if finalist.interval is not None:
        axes.plot([x, x], [100 * b for b in finalist.interval], color=look["color"], linewidth=1.1)
    axes.plot([x], [estimate], markersize=8, markerfacecolor="white", **marks)
    axes.plot([x], [tested], markersize=6, **marks)  # in front: what counts is never hidden


def _cost_share(summary: Summary, finalist: Finalist, cost: str) -> float:
    return 100 * finalist.estimate.metrics[cost] / summary.result.manifest.baseline[cost]


def _found_by(summary: Summary, finalist: Finalist) -> str:
    """Label of the strategy whose contestant found a finalist."""
    return next(
        group.label
        for group in summary.strategies
        for member in group.members
        if (member.record.strategy, member.record.seed) == (finalist.strategy, finalist.seed)
    )


class _Uncut(NamedTuple):
    """A network that nothing is cut from: its quality in %, its name and its line's style."""

    quality: float
    name: str
    style: Literal[":", "--"]

    @property
    def star(self) -> dict[str, Any]:
        """Its mark: filled where the network is the one that was compressed."""
        face = INK if self.style == ":" else "white"
        return {"color": INK, "marker": "*", "markerfacecolor": face}


def _uncut(summary: Summary, *, tested: bool) -> list[_Uncut]:
    """What was compressed, and what the user gave where that is another network."""
    manifest = summary.result.manifest
    whole = manifest.test_baseline if tested else manifest.baseline
    given = manifest.test_given if tested else manifest.given
    found = [_Uncut(100 * quality_of(whole), called(summary.whole), ":")]
    return [*found, _Uncut(100 * quality_of(given), "given network", "--")] if given else found


def _uncut_handles(uncut: Sequence[_Uncut]) -> list[Line2D]:
    return [
        Line2D([], [], **line.star, markersize=10, linestyle=line.style, label=line.name)
        for line in uncut
    ]


def _finalist_handles(summary: Summary) -> list[Line2D]:
    return [
        Line2D([], [], color=INK, marker="o", linestyle="-", label="test, 95 % interval"),
        Line2D(
            [], [], color=INK, marker="o", linestyle="none", markerfacecolor="white",
            label="search estimate",
        ),
        *(
            Line2D([], [], color=INK, linestyle=line.style, label=f"{line.name}, test")
            for line in _uncut(summary, tested=True)
        ),
    ]  # fmt: skip


# Shared parts


def _legend(
    figure: Figure, strategies: Sequence[StrategyScores], extra: Sequence[Line2D] = ()
) -> None:
    """The legend of strategies and of what else is drawn."""
    handles = [Line2D([], [], label=_said(label), **k) for label, k in looks(strategies).items()]
    draw_legend(figure, [*handles, *extra])


def _said(label: str) -> str:
    """The label as a legend shows it: matplotlib leaves out what begins with an underscore."""
    return f" {label}" if label.startswith("_") else label


def _thinned(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """At most `_MOST_POINTS` rows, evenly chosen, the first and the last among them."""
    if len(rows) <= _MOST_POINTS:
        return rows
    kept: NDArray[np.float64] = rows[
        np.linspace(0, len(rows) - 1, _MOST_POINTS).round().astype(int)
    ]
    return kept


def _listed(summary: Summary) -> str:
    return ", ".join(group.label for group in summary.strategies)
