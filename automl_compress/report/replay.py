"""What a replay of many seeds states: means, spreads, ranks and tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import QUALITIES, quality_name
from automl_compress.report.table import Column, Table
from automl_compress.report.ties import levelled

Curves = Mapping[str, NDArray[np.float64]]
"""(n_seeds, budget) one number after each evaluation, by strategy; larger is better."""


def compare_curves(
    hypervolume: Curves,
    quality: Curves,
    points: Sequence[int],
    line: str,
    judged_by: str = "accuracy",
) -> list[dict[str, Any]]:
    """One row per strategy and number of evaluations.

    Args:
        hypervolume: by strategy.
        quality: by strategy, best so far.
        points: numbers of evaluations, each within the budget.
        line: the strategy that all others are tested against.
        judged_by: which quality it is, see `QUALITIES`; rows are named by it.

    Returns:
        Rows with `strategy`, `evaluations`, mean and standard deviation of both (None of a single
        seed, which has none), `rank` (mean over the seeds of the rank by hypervolume, 1 is best)
        and `p`, the two-sided Mann-Whitney probability against the line, corrected after Holm over
        all rows; None for the line itself. Ranks and tests take hypervolumes as equal that differ
        by their rounding only, see `ties.levelled`.
    """
    from scipy.stats import rankdata  # here, because reports need none, and it takes a second

    rows: list[dict[str, Any]] = []
    for point in points:
        ends = {name: curves[:, point - 1] for name, curves in hypervolume.items()}
        level = dict(zip(ends, levelled(np.stack(list(ends.values()))), strict=True))
        ranks = rankdata(-np.stack(list(level.values())), axis=0).mean(axis=1)
        for (name, end), rank in zip(ends.items(), ranks, strict=True):
            best = quality[name][:, point - 1]
            rows.append(
                {
                    "strategy": name,
                    "evaluations": point,
                    "seeds": len(end),
                    "hypervolume": float(end.mean()),
                    "hypervolume_sd": _deviation(end),
                    judged_by: float(best.mean()),
                    f"{judged_by}_sd": _deviation(best),
                    "rank": float(rank),
                    "p": None if name == line else _difference(level[name], level[line]),
                }
            )
    tested = [row for row in rows if row["p"] is not None]
    for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p"] = corrected
    return rows


def _deviation(numbers: NDArray[np.float64]) -> float | None:
    """Standard deviation of a sample; a single number has none."""
    return float(numbers.std(ddof=1)) if len(numbers) > 1 else None


def _difference(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(one, other).pvalue)


def holm(probabilities: Sequence[float]) -> list[float]:
    """Probabilities corrected for their number (Holm 1979), in the order given."""
    corrected = [0.0] * len(probabilities)
    largest = 0.0
    for place, index in enumerate(np.argsort(probabilities, kind="stable")):
        largest = max(largest, min(1.0, (len(probabilities) - place) * probabilities[index]))
        corrected[index] = largest
    return corrected


def curves_table(rows: Sequence[Mapping[str, Any]], line: str, caption: str) -> Table:
    """A table of `compare_curves`, a row per strategy, the best at the end first."""
    points = sorted({row["evaluations"] for row in rows})
    by_place = {(row["strategy"], row["evaluations"]): row for row in rows}
    names = dict.fromkeys(row["strategy"] for row in rows)
    quality = quality_name(rows[0])
    means = np.array([by_place[name, points[-1]]["hypervolume"] for name in names])
    order = [list(names)[row] for row in np.argsort(-levelled(means), kind="stable")]
    titles = [f"at {point}" for point in points]
    titles += ["mean rank", f"p against {line}", f"best {QUALITIES[quality]}, %"]
    body = []
    for name in order:
        last = by_place[name, points[-1]]
        shares = [by_place[name, point] for point in points]
        cells = [_spread(row["hypervolume"], row["hypervolume_sd"], 4) for row in shares]
        cells += [f"{last['rank']:.1f}", "" if last["p"] is None else f"{last['p']:.2g}"]
        deviation = last[f"{quality}_sd"]
        percent = None if deviation is None else 100 * deviation
        cells.append(_spread(100 * last[quality], percent, 2))
        body.append((name, *cells))
    columns = (Column("strategy", "label"), *(Column(title) for title in titles))
    return Table(caption, columns, tuple(body))


def _spread(mean: float, deviation: float | None, digits: int) -> str:
    """A mean and, where there is one, its standard deviation: `0.5035 ± 0.0024`."""
    text = f"{mean:.{digits}f}"
    return text if deviation is None else f"{text} ± {deviation:.{digits}f}"


def curves_caption(scored_by: str, seeds: int, objectives: Sequence[str]) -> str:
    """What a table of `compare_curves` shows.

    Args:
        scored_by: what its hypervolumes are.
        seeds: how many, at least 1.
        objectives: names.
    """
    numbers = "one seed" if seeds == 1 else f"mean ± standard deviation of {seeds} seeds"
    return f"{scored_by}, {numbers}; p: Mann-Whitney, Holm-corrected; {', '.join(objectives)}"
