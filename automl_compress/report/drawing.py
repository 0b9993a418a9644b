"""What all figures share: palette, style, axes, legends, and SVG text that is always the same."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

# Okabe and Ito 2008, "Color Universal Design", without black and yellow; then two darker ones. The
# other eight were searched for in OKLab (Ottosson 2020), hues counting 1.6 times: the nearest two
# of all are 95 % as far apart as those of the first eight, and to the colour-blind, by Machado et
# al. 2009, 75 %.
_COLOURS: Final = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"),
    *("#882255", "#6B4E16"),
    *("#CC0044", "#66CC66", "#552288", "#DD00CC", "#AABBAA", "#0011BB", "#9977FF", "#6600FF"),
)
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "h")
INK: Final = "#222222"
_LOG_ABOVE: Final = 4.0
_STYLE: Final[dict[str, Any]] = {
    "text.parse_math": False,  # names of strategies are not formulas
    "svg.fonttype": "none",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_NO_METADATA: Final = {"Date": None, "Creator": None, "Format": None, "Type": None}

_LONG: Final = re.compile(r"(\d\.\d\d)\d+")


@dataclass(frozen=True)
class Drawing:
    """One finished figure.

    Args:
        name: file name without its ending; also the prefix of every id inside.
        svg: the whole file.
        alt: what the figure shows, for those who cannot see it.
        caption: how to read it.
    """

    name: str
    svg: str
    alt: str
    caption: str


def palette_colour(number: int) -> str:
    """A colour of the palette, by its number from 0; those beyond its end begin again."""
    return _COLOURS[number % len(_COLOURS)]


def palette_marker(number: int) -> str:
    """The marker that goes with a colour, for those who cannot tell the colours apart."""
    return _MARKERS[number % len(_MARKERS)]


def called(network: str) -> str:
    """A network's name in figures, which have less space than texts."""
    return "baseline" if network == "uncompressed network" else network


def cost_axis(axes: Axes, low: float, high: float) -> tuple[float, float]:
    """Give a horizontal axis limits and ticks for costs; logarithmic where they span much.

    Args:
        axes: the panel.
        low: the smallest cost drawn, as % of the baseline or in any other unit.
        high: the largest.

    Returns:
        The axis' limits.
    """
    low = max(low, 1e-6)
    if high / low > _LOG_ABOVE:
        axes.set_xscale("log")
        limits = (low / (high / low) ** 0.04, high * (high / low) ** 0.04)
        axes.xaxis.set_major_locator(FixedLocator(_log_ticks(*limits)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        margin = 0.05 * (high - low) or 0.1 * high
        limits = (max(0.0, low - margin), high + margin)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlim(*limits)
    return limits


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    series: tuple[float, ...] = (1, 2, 5) if high / low > 8 else (1, 1.5, 2, 3, 4, 5, 7)
    if high / low > 1e4:
        series = (1,)
    return [s * 10.0**d for d in decades for s in series if low <= s * 10.0**d <= high]


def draw_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """A legend above the panels, so that it covers no data, as wide as the figure allows.

    The figure grows by all lines of it but the first two, which leaves the panels their height.
    """
    for columns in range(len(handles), 0, -1):
        legend = figure.legend(handles=handles, loc="outside upper center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            break
        legend.remove()
    lines = -(-len(handles) // columns)
    height = legend.get_window_extent().height / figure.dpi
    figure.set_figheight(figure.get_figheight() + height * max(0, lines - 2) / lines)


def styled(name: str) -> AbstractContextManager[None]:
    """Settings for one figure; without a salt its ids would differ from run to run."""
    settings: dict[Any, Any] = {**_STYLE, "svg.hashsalt": name}
    return mpl.rc_context(settings)


def svg_text(figure: Figure, name: str) -> str:
    """The file: ids prefixed so that figures can share a page, coordinates to a hundredth."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", facecolor="white", metadata=_NO_METADATA)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{name}-", stream.getvalue())
    text = re.sub(r'\bd="[^"]*"', lambda path: _LONG.sub(r"\1", path[0]), text)
    text = text.replace("<svg ", f'<svg id="{name}" ', 1)
    return text.replace("*{", f"#{name} *{{", 1)
