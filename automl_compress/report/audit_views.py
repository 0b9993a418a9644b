"""The table and the figure of a proxy audit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from automl_compress.evaluate import QUALITIES
from automl_compress.report import formats
from automl_compress.report.audit import (
    NULLS,
    TITLES,
    TRAINED,
    Audit,
    Values,
    number_text,
    ranked_by,
    rung_of,
)
from automl_compress.report.drawing import (
    Drawing,
    cost_axis,
    draw_legend,
    palette_colour,
    palette_marker,
    styled,
    svg_text,
)
from automl_compress.report.table import Column, Table

_DRAWN: Final = ("search", "search divergence", "full", "size_bytes")
_SPREAD: Final = "#8a8a8a"


def audit_table(audit: Audit) -> Table:
    """Rank correlations with the trained quality, a row for each rung and each cost."""
    scopes = ("overall", "within bands")
    columns = (
        Column("ranked by", "label"),
        *(Column(f"{name}, {scope}") for scope in scopes for name in ("Kendall", "Spearman")),
        Column("time a policy"),
    )
    rows = tuple(
        (
            ranked_by(name),
            *_cells(by_scope["overall"]),
            *_cells(by_scope["within_bands"]),
            _seconds(audit, name),
        )
        for name, by_scope in audit.correlations.items()
    )
    title = f"Rank correlation with the {QUALITIES[audit.quality]} after training (95 % interval)"
    return Table(title, columns, rows)


def _cells(measures: Mapping[str, Values]) -> list[str]:
    """Each correlation with its interval: `0.731 (0.60..0.84)`."""
    cells = []
    for name in ("kendall", "spearman"):
        value, low, high = (measures[name][part] for part in ("value", "low", "high"))
        known = low is not None and high is not None
        cells.append(number_text(value) + (f" ({low:.2f}..{high:.2f})" if known else ""))
    return cells


def _seconds(audit: Audit, name: str) -> str:
    rung = audit.rungs.get(rung_of(name))
    return formats.MISSING if rung is None else f"{rung['seconds']:.2f} s"


def draw_audit(audit: Audit) -> Drawing:
    """Trained quality against estimates and against the size, bands in colours."""
    name, title = "audit", QUALITIES[audit.quality]
    bands = np.array([policy["band"] for policy in audit.policies])
    with styled(name):
        drawn = [estimate for estimate in _DRAWN if estimate in audit.correlations]
        shown = [0, 1] if bands.any() else [0]  # everyone, and those in bands
        size = 3.2 * len(drawn), 0.7 + 3.2 * len(shown)
        figure = Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(shown), len(drawn), sharey="row", squeeze=False)
        for row, least in zip(panels, shown, strict=True):
            for axes, estimate in zip(row, drawn, strict=True):
                _scatter(axes, audit, estimate, np.where(bands >= least, bands, -1))
            row[0].set_ylabel(f"{title} after training, %")
        draw_legend(figure, _handles(bands))
        svg = svg_text(figure, name)
    return Drawing(
        name,
        svg,
        f"{formats.capital(title)} after brief training against cheap estimates and the size",
        f"Each mark is a policy; bars are one standard error of the estimate.{_bands_note(bands)}",
    )


def _bands_note(bands: NDArray[np.int64]) -> str:
    """What the lower row of panels shows, where there is one."""
    if not bands.any():
        return ""
    return (
        " Coloured ones stand in budget bands, of which each has a colour and a form, and are "
        "shown larger below: within a band a good estimate still rises, and the size, on the "
        "right, does not."
    )


def _scatter(axes: Axes, audit: Audit, name: str, bands: NDArray[np.int64]) -> None:
    """Draw policies of (n,) bands; those of band -1 are left out."""
    drawn = bands >= 0
    bands = bands[drawn]
    x, y = audit.column(name)[drawn], 100 * audit.column(TRAINED)[drawn]
    errors = np.zeros(len(x))
    if name in NULLS:
        x = x / 1e3
        cost_axis(axes, x.min(), x.max())
        axes.set_xlabel("size, kB")
    elif rung_of(name) != name:
        x = 100 * (1.0 - x)  # the better, the farther to the right, as for accuracies
        axes.set_xlabel("1 - divergence of the search estimate, %")
    else:
        x = 100 * x
        errors = 100 * audit.standard_errors(name)[drawn]
        axes.set_xlabel(f"{TITLES[name]}, %")
    for number in (0, *range(1, int(bands.max(initial=0)) + 1)):
        rows = bands == number
        colour = _mark(number)["color"]
        axes.hlines(y[rows], (x - errors)[rows], (x + errors)[rows], color=colour, linewidth=0.8,
                    alpha=0.5)  # fmt: skip
        axes.plot(x[rows], y[rows], **_mark(number), markersize=4.5, alpha=0.9)
    margin = 0.06 * (y.max() - y.min()) or 1.0
    axes.set_ylim(y.min() - margin, y.max() + margin)
    scope, where = ("overall", "overall") if drawn.all() else ("within_bands", "within bands")
    rho = audit.correlation(name, scope, "spearman")
    axes.set_title(f"Spearman's rho {number_text(rho)} {where}", fontsize=10)


def _mark(band: int) -> dict[str, Any]:
    """Colour and marker of a band; 0 is the spread."""
    if band == 0:
        return {"color": _SPREAD, "marker": ".", "linestyle": "none"}
    return {
        "color": palette_colour(band - 1),
        "marker": palette_marker(band - 1),
        "linestyle": "none",
    }


def _handles(bands: NDArray[np.int64]) -> Sequence[Line2D]:
    labels = {0: "spread", **{b: f"band {b}" for b in range(1, int(bands.max(initial=0)) + 1)}}
    return [Line2D([], [], **_mark(number), label=label) for number, label in labels.items()]
