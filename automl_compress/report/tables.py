"""The tables of a study's report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from automl_compress.evaluate import LATENCY, Evaluation, quality_of
from automl_compress.evaluate.ranking import kendall
from automl_compress.ledger import FrontPoint, RungRecord
from automl_compress.report import formats
from automl_compress.report.finalists import Finalist
from automl_compress.report.formats import MISSING
from automl_compress.report.recovered import RecoveredNetwork
from automl_compress.report.statistics import common_reasons, quality_interval
from automl_compress.report.strategy_scores import StrategyScores
from automl_compress.report.summary import HEADLINE_LOSSES, Summary
from automl_compress.report.table import Table, columns_of
from automl_compress.settings import significant
from automl_compress.space import KINDS

CHECKPOINTS: Final = (("1/3", 1, 3), ("2/3", 2, 3))
"""Parts of the budget that the comparison shows, besides the end."""

NO_FRONT: Final = "No evaluation has succeeded and met every constraint, so there is no front."


def finalists_table(summary: Summary) -> Table:
    """Finalists on the final test images, the smallest first, below the baseline.

    Above all, where that is a sparsified network, stands the one the user gave.
    """
    columns = columns_of(
        "<finalist",
        f"test {summary.quality}",
        "95 % interval",
        "points lost",
        *(formats.TITLES[name] for name in summary.costs),
        *_latency_columns(summary),
        "search estimate",
        *(f"on rung {name}" for name in summary.rungs),
        "<found by",
        "~remarks",
    )
    rows = [*_whole_rows(summary), *(_finalist_row(summary, f) for f in summary.finalists)]
    return Table(
        "Finalists on the untouched test examples, the smallest first", columns, tuple(rows)
    )


def _whole_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Networks that nothing is cut from: what the user gave, and what policies compress."""
    given = [] if summary.given_quality is None else [_given_row(summary)]
    return [*given, _baseline_row(summary)]


def _given_row(summary: Summary) -> tuple[str, ...]:
    manifest = summary.result.manifest
    costs = manifest.baseline
    return (
        "given network",
        formats.percent(summary.given_quality),
        formats.interval(summary.given_interval),
        formats.points(0.0),
        *(formats.cost_and_ratio(n, costs[n], costs[n]) for n in summary.costs),
        *_latency_cells(summary, summary.latency),  # sparsity training leaves the layers' shapes
        formats.percent(quality_of(manifest.given)),
        *(MISSING for _ in summary.rungs),
        MISSING,
        "",
    )


def _baseline_row(summary: Summary) -> tuple[str, ...]:
    baseline = summary.result.manifest.baseline
    return (
        "baseline" if summary.given_quality is None else summary.whole,
        formats.percent(summary.test_quality),
        formats.interval(summary.test_interval),
        formats.points(summary.result.manifest.test_sparsity_loss),
        *(formats.cost_and_ratio(n, baseline[n], baseline[n]) for n in summary.costs),
        *_latency_cells(summary, summary.latency),
        formats.percent(quality_of(baseline)),
        *(formats.percent(summary.rung_baseline(name)) for name in summary.rungs),
        MISSING,
        "",
    )


def _finalist_row(summary: Summary, finalist: Finalist) -> tuple[str, ...]:
    return (
        str(finalist.number),
        formats.percent(finalist.quality),
        formats.interval(finalist.interval),
        formats.points(summary.lost(finalist)),
        *_cost_cells(summary, finalist.estimate.metrics),
        *_latency_cells(summary, finalist.latency),
        formats.estimate(finalist.estimate.quality, finalist.estimate.quality_se),
        *(formats.percent(summary.rung_quality(name, finalist)) for name in summary.rungs),
        f"{finalist.strategy}, seed {finalist.seed}",
        _remarks(finalist),
    )


def _cost_cells(summary: Summary, metrics: Mapping[str, float]) -> list[str]:
    baseline = summary.result.manifest.baseline
    return [formats.cost_and_ratio(n, metrics.get(n), baseline[n]) for n in summary.costs]


def _latency_columns(summary: Summary) -> tuple[str, ...]:
    latency = summary.result.manifest.latency
    if not latency:
        return ()
    runtime = latency["model"]["conditions"]["runtime"]
    return (
        f"measured latency ({runtime}, threads {latency['threads']}, batch {latency['batch']})",
    )


def _latency_cells(summary: Summary, latency: Evaluation | None) -> tuple[str, ...]:
    """Median and interval: `0.8531 ms (0.8502..0.8613)`."""
    if not summary.result.manifest.latency:
        return ()
    if latency is None:
        return (MISSING,)
    median, low, high = (
        latency.metrics[name] for name in (LATENCY, f"{LATENCY}_lower", f"{LATENCY}_upper")
    )
    return (f"{formats.milliseconds(median)} ({significant(low)}..{significant(high)})",)


def _remarks(finalist: Finalist) -> str:
    if finalist.test is None:
        return "not measured yet"
    if not finalist.test.ok:
        return f"measurement failed: {finalist.test.reason}"
    remarks = ["dominated on the test examples"] if finalist.dominated else []
    remarks += [
        f"breaks '{text}' {'as measured' if text in finalist.too_slow else 'on the test examples'}"
        for text in finalist.broken
    ]
    return "; ".join(remarks)


def recovered_table(summary: Summary) -> Table:
    """Networks that were trained after the search, on the final test images."""
    columns = columns_of(
        "<network",
        f"test {summary.quality} before",
        "after",
        "95 % interval",
        "points lost",
        *(formats.TITLES[name] for name in summary.costs),
        "epochs",
        "time, last run",
        "~device",
    )
    whole = _whole_rows(summary) if summary.given_quality is not None else []
    rest = (MISSING,) * 3
    rows = (
        *((r[0], r[1], MISSING, *r[2 : 4 + len(summary.costs)], *rest) for r in whole),
        *(_recovered_row(summary, network) for network in summary.recovered),
    )
    return Table(
        "Recovered networks on the untouched test examples, the smallest first", columns, rows
    )


def _recovered_row(summary: Summary, n: RecoveredNetwork) -> tuple[str, ...]:
    whole = n.original["test"] if summary.given_quality is None else summary.given_quality
    return (
        f"finalist {n.finalist}" if n.finalist is not None else n.policy.key[:12],
        formats.percent(n.before["test"]),
        formats.percent(n.after["test"]),
        formats.interval(quality_interval(n.tested, n.test_images)),
        formats.points(whole - n.after["test"]),
        *_cost_cells(summary, n.costs),
        f"{n.epochs:,}",
        formats.duration(n.seconds),
        n.device,
    )


def ladder_table(summary: Summary) -> Table:
    """What each rung measured, beside what the rung before it said of the same policies."""
    before = summary.result.usable_evaluations()
    rows = []
    for rung in summary.result.manifest.rungs:
        found = {key: e for key, e in summary.result.rung(rung.name).items() if e.ok}
        keys = [key for key in found if key in before]
        one, other = (
            np.array([answers[key].quality for key in keys]) for answers in (before, found)
        )
        tau = kendall(one, other)
        rows.append(
            (
                rung.name,
                _rung_text(rung),
                f"{len(found):,}",
                formats.percent(rung.keep),
                formats.points(float((other - one).mean())) if keys else MISSING,
                MISSING if math.isnan(tau) else f"{tau:.3f}",
                formats.duration(float(np.mean([e.seconds for e in found.values()])))
                if found
                else MISSING,
            )
        )
        before = found
    titles = ("policies", "passed on", "points above the rung before", "Kendall's tau with it",
              "time a policy")  # fmt: skip
    return Table(
        "The fidelity ladder, from cheap to dear",
        columns_of("<rung", "~measures", *titles),
        tuple(rows),
    )


def _rung_text(rung: RungRecord) -> str:
    """What a rung does, in a few words."""
    settings = rung.settings
    if settings["learned"]:
        return "predicts from the evaluations of others"
    if settings["train"]:
        steps, training = settings["train"]["steps"], settings["train"]["training"]
        length = (
            formats.count(steps, "step") if steps else formats.count(training["epochs"], "epoch")
        )
        return f"trains for {length} of batch {training['batch']}"
    images = "all" if settings["images"] is None else f"{settings['images']:,}"
    return f"{images} examples" + (f", repair {settings['repair']}" if settings["repair"] else "")


def picks_table(summary: Summary) -> Table:
    """The cheapest finalists that lose at most so many points on the test images."""
    titles = (formats.SUPERLATIVES[name] for name in summary.pick_costs)
    rows = tuple(
        (
            f"at most {100 * loss:g}",
            *(_pick(summary, loss, name) for name in summary.pick_costs),
        )
        for loss in HEADLINE_LOSSES
    )
    return Table(
        f"Cheapest finalists by test {summary.quality} lost",
        columns_of("<points lost", *(f"<{title}" for title in titles)),
        rows,
    )


def _pick(summary: Summary, loss: float, name: str) -> str:
    finalist = summary.cheapest(loss, name)
    if finalist is None:
        every = len(summary.allowed) == len(summary.measured)
        return (
            "no finalist reaches it" if every else "no finalist within the constraints reaches it"
        )
    baseline = summary.measured_baseline(name)
    text = formats.cost_and_ratio(name, finalist.metrics[name], baseline)
    return f"{text}: finalist {finalist.number}"


def hypervolume_table(summary: Summary, kind: str) -> Table:
    """Hypervolume of the strategies over the budget.

    Args:
        summary: the study.
        kind: `useful`, by which the strategies are ranked, or `plain`.
    """
    budget = summary.result.manifest.budget
    spots = [(part, max(1, budget * over // under)) for part, over, under in CHECKPOINTS]
    rows = []
    for group in summary.ranking:
        scores = [*(group.at(kind, number) for _, number in spots), group.last(kind)]
        cells = [MISSING if spread is None else str(spread) for spread in scores]
        rank = str(summary.rank(group)) if group.in_race and summary.level else MISSING
        rows.append((group.label, rank, str(len(group.members)), _counts(group), *cells))
    finished = summary.result.manifest.status == "finished"
    titles = [f"at {part} of the budget ({number:,})" for part, number in spots]
    over = ": mean (lowest..highest) over seeds" if summary.has_ranges else ""
    return Table(
        f"{kind.capitalize()} hypervolume by strategy{over}",
        columns_of(
            "<strategy",
            "rank",
            "seeds",
            "evaluations a seed",
            *titles,
            "at the end" if finished else "so far",
        ),
        tuple(rows),
    )


def _counts(group: StrategyScores) -> str:
    low, high = min(group.evaluations), max(group.evaluations)
    return str(low) if low == high else f"{low}..{high}"


def charges_table(summary: Summary) -> Table:
    """What the strategies were charged, how much of it was shared, and what failed."""
    rows = []
    for group in summary.ranking:
        frame = _rows_of(summary.frame, group)
        failed = int((frame["status"] == "failed").sum())
        charged = sum(group.evaluations)
        elsewhere = charged - len(frame)
        over = sum(int((~m.usable).sum()) for m in group.members) - failed - elsewhere
        shared = int(frame["shared"].astype(bool).sum())
        rows.append((group.label, f"{charged:,}", f"{shared:,}", f"{failed:,}", f"{over:,}"))
    return Table(
        "Evaluations by strategy, all seeds together",
        columns_of("<strategy", "charged", "shared", "failed", "break a constraint"),
        tuple(rows),
    )


def _rows_of(frame: pd.DataFrame, group: StrategyScores) -> pd.DataFrame:
    return frame[frame["contestant"].isin(group.names)]


def failures_table(summary: Summary) -> Table | None:
    """The most common reasons of failed evaluations by strategy; None when nothing failed."""
    rows = [
        (group.label, f"{times:,}", reason)
        for group in summary.ranking
        for reason, times in common_reasons(_rows_of(summary.frame, group))
    ]
    if not rows:
        return None
    columns = columns_of("<strategy", "times", "~reason")
    return Table("Most common reasons of failed evaluations", columns, tuple(rows))


def timing_table(summary: Summary) -> Table:
    """Times and hits by strategy. They differ between two runs of one study."""
    rows = []
    for group in summary.ranking:
        charges = [charge for name in group.names for charge in summary.result.charges(name)]
        charged = sum(charge.evaluation.seconds for charge in charges)
        spent = sum(charge.evaluation.seconds for charge in charges if not charge.hit)
        hits = f"{sum(charge.hit for charge in charges):,}"
        rows.append((group.label, formats.duration(charged), formats.duration(spent), hits))
    return Table(
        "Timing by strategy, all seeds together; differs from run to run",
        columns_of("<strategy", "time charged", "time spent", "answered from the ledger"),
        tuple(rows),
    )


def front_points_table(summary: Summary) -> Table:
    """Points of the merged front that are no finalists: estimates only."""
    further = "Further points" if summary.finalists else "Points"
    caption = f"{further} of the merged front, search estimates only"
    return _estimates_table(summary, caption, summary.other_front)


def _estimates_table(summary: Summary, caption: str, front: Iterable[FrontPoint]) -> Table:
    names = [name for name in summary.result.manifest.objectives if name != "error"]
    columns = columns_of("search estimate", *(formats.TITLES[name] for name in names), "<found by")
    baseline = summary.result.manifest.baseline
    rows = tuple(
        (
            formats.estimate(point.search_quality, point.quality_se),
            *(formats.cost_and_ratio(n, point.objectives[n], baseline[n]) for n in names),
            f"{point.strategy}, seed {point.seed}",
        )
        for point in front
    )
    return Table(caption, columns, rows)


def terminal_table(summary: Summary) -> Table:
    """The front for a terminal: finalists, or the estimated front while there are none."""
    if not summary.finalists:
        return _estimates_table(summary, "Merged front, search estimates", summary.front)
    columns = columns_of(
        "<finalist",
        f"test {summary.quality}",
        "points lost",
        *(formats.TITLES[name] for name in summary.costs),
        *_latency_columns(summary),
        "search estimate",
        *(f"on rung {name}" for name in summary.rungs),
        "<found by",
        "~remarks",
    )
    whole = [*_whole_rows(summary), *(_finalist_row(summary, f) for f in summary.finalists)]
    return Table(
        "Finalists on the test examples", columns, tuple((r[0], r[1], *r[3:]) for r in whole)
    )


def policy_text(estimate: Evaluation) -> str:
    """A policy as text, one line a target: `layer1.0.conv1: channels=12 weight_bits=4`."""
    targets: dict[str, list[str]] = {}
    for kind in KINDS:
        for target, value in estimate.policy.of_kind(kind).items():
            targets.setdefault(target, []).append(f"{kind}={value}")
    return "\n".join(f"{target}: {' '.join(values)}" for target, values in sorted(targets.items()))


def facts_table(caption: str, facts: Mapping[str, Any]) -> Table:
    """Settings as rows of dotted name and value."""
    return Table(caption, columns_of("~what", "~value"), tuple(_flat(facts)))


def _flat(facts: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for name, value in facts.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _plain(value)))
    return rows


def _plain(value: Any) -> str:
    if value is None or value in ("", [], {}, ()):
        return MISSING
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)
