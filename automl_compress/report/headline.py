"""The head of a report: what was compressed, and how the finalists did on the test images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from automl_compress.report import formats, tables
from automl_compress.report.document import Block, Bullets, Code, Details, Heading, Paragraph
from automl_compress.report.drawing import Drawing
from automl_compress.report.summary import Summary


def headline(summary: Summary, drawings: Mapping[str, Drawing]) -> list[Block]:
    """How far the study is, what was compressed, and the finalists on the test images.

    Args:
        summary: the study.
        drawings: its figures by name.
    """
    blocks: list[Block] = [
        Paragraph(_status(summary)),
        Bullets(tuple(_workload(summary))),
        Heading("Results on the test examples"),
        Paragraph(_baseline(summary)),
    ]
    if not summary.finalists:
        return [*blocks, Paragraph(f"{_untested(summary)} What follows are search estimates.")]
    blocks += [Paragraph(_headline_note(summary)), *_latency_note(summary)]
    blocks.append(tables.finalists_table(summary))
    if summary.measured and summary.test_quality is not None:
        blocks += [tables.picks_table(summary), Paragraph(_picks_note(summary))]
        blocks += [Paragraph(_optimism_note(summary))]
    blocks += [drawings[name] for name in ("finalists",) if name in drawings]
    return [*blocks, _policies(summary)]


def _untested(summary: Summary) -> str:
    """Why no compressed network has a test result."""
    if summary.result.manifest.status != "finished" or summary.front:
        return "No finalist is chosen yet, so there is no test result of a compressed network."
    if (summary.frame["status"] == "ok").any():
        return "No network meets the constraints, so none was tested."
    return "No network could be measured, so none was tested."


def _status(summary: Summary) -> str:
    manifest = summary.result.manifest
    counts = [number for group in summary.race for number in group.evaluations]
    made = f"{sum(counts):,} of {manifest.budget * len(counts):,} evaluations are made"
    extra = sum(sum(g.evaluations) for g in summary.strategies if not g.in_race)
    if extra:
        made += f", and {extra:,} for the reference"
    if manifest.status == "finished":
        return f"The study is finished: {made}."
    if manifest.status == "interrupted":
        return f"The study was interrupted: {made}. It can be resumed, see the end."
    return f"The study is still running: {made}. This is what there was when this was written."


def _workload(summary: Summary) -> list[str]:
    workload = summary.result.manifest.workload
    splits = ", ".join(f"{name} {size:,}" for name, size in summary.splits.items())
    return [
        f"Network: {_named(workload, 'name', 'model')}",
        f"Data: {_named(workload, 'data')}",
        f"Examples: {splits or 'the manifest does not say'}",
    ]


def _named(workload: Mapping[str, Any], *keys: str) -> str:
    """The first of some keys that is there; of a mapping its values."""
    value = next((workload[key] for key in keys if workload.get(key)), None)
    if value is None:
        return "the manifest does not say"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)


def _baseline(summary: Summary) -> str:
    baseline = summary.result.manifest.baseline
    costs = " and ".join(
        f"{formats.cost(name, baseline[name], baseline[name])}"
        f"{'' if name == 'size_bytes' else ' ' + formats.TITLES[name]}"
        for name in summary.costs
        if name in ("size_bytes", "macs")
    )
    takes = f" It takes {costs}." if costs else ""
    if summary.test_quality is None:
        return f"The uncompressed network is not measured on the test examples yet.{takes}"
    told = _told(summary, summary.test_quality, summary.test_interval)
    if summary.given_quality is None:
        return f"The uncompressed network {told}.{takes}"
    given = _told(summary, summary.given_quality, summary.given_interval)
    return (
        f"The given network {given}. Before the search, sparsity training made the sparsified "
        f"network of it, which {told} and is what was compressed.{takes} Points lost are against "
        "the given network."
    )


def _told(summary: Summary, quality: float, bounds: tuple[float, float] | None) -> str:
    """How good a network is on the test images, as a predicate."""
    images = f" {summary.test_images:,}" if summary.test_images else ""
    share = formats.percent(quality)
    interval = f" (95 % interval {formats.interval(bounds)})" if bounds else ""
    if summary.quality == "accuracy":
        return f"is right on {share} of the{images} test examples{interval}"
    return f"has {share} {summary.quality} on the{images} test examples{interval}"


def _headline_note(summary: Summary) -> str:
    waiting = len(summary.finalists) - len(summary.measured)
    has = "has" if waiting == 1 else "have"
    missing = f" {formats.count(waiting, 'finalist')} {has} no test result." if waiting else ""
    return (
        f"The search never saw these examples. Shares in brackets are of the {summary.reference} "
        "in 32-bit floats. The search estimate comes from the search examples; "
        f"{_estimate_note(summary)}. What stands after ± is its standard error, for "
        f"the number of search examples. {_interval_note(summary)}{_dominance_note(summary)}"
        f"{missing}"
    )


def _estimate_note(summary: Summary) -> str:
    """What else a finalist's test and its search estimate differ by."""
    if not summary.alike:
        return "its network was repaired as in the search, that of the test as final_repair says"
    if summary.rungs:
        return "who climbed the ladder was chosen by it at first, so it tends to be too high"
    return "finalists were chosen by it, so it tends to be too high"


def _interval_note(summary: Summary) -> str:
    if summary.quality == "accuracy":
        return "Intervals are Wilson's and cover the finite number of test examples only."
    return (
        f"{summary.quality} is the mean over the classes of the average precision at an overlap "
        "(IoU) of 0.5, by the definition of COCO. Its standard error is taken from the scatter "
        "over eight disjoint folds of the examples, which know it to within a quarter only; "
        "intervals are 1.96 of it each way and cover the finite number of test examples only."
    )


def _dominance_note(summary: Summary) -> str:
    """What the remark means that another finalist is better, where it is made."""
    if not any(finalist.dominated for finalist in summary.finalists):
        return ""
    return (
        " A finalist is dominated where another is no worse by test "
        f"{summary.quality} and by every cost among the objectives, and better by one of them."
    )


def _latency_note(summary: Summary) -> list[Block]:
    """What latencies mean, where there are any."""
    latency = summary.result.manifest.latency
    if not latency:
        return []
    conditions, line = latency["model"]["conditions"], latency["model"]["line"]
    form = "run on integers" if latency["int8"] else "run in float32"
    return [
        Paragraph(
            f"Latencies are those of {conditions['runtime']} with "
            f"{formats.count(latency['threads'], 'thread')} and batch {latency['batch']} on the "
            f"machine of the search; layers of low bits {form}, everything else in float32. The "
            "search saw predictions only: a sum over a table of single layers, fitted to "
            f"{line['networks']} measured networks. A measured latency is the median of "
            f"{latency['runs']} runs, networks in turn, in a process of its own when the search "
            "was over, with a 95 % interval of the median by order statistics. It takes runs as "
            "independent, which those of one session are not quite, and holds within that session "
            "only: in another, medians may differ by several per cent; networks of one session "
            "can be compared. Picks go by measured latencies."
        )
    ]


def _picks_note(summary: Summary) -> str:
    count = len(summary.allowed)
    out = len(summary.measured) - count
    if not count:
        return "Every finalist breaks a constraint as measured, see the remarks, so none is picked."
    left_out = (
        f" {formats.count(out, 'finalist')} that {'breaks' if out == 1 else 'break'} a constraint "
        f"as measured {'is' if out == 1 else 'are'} left out."
        if out
        else ""
    )
    return (
        f"These picks are the best of {formats.count(count, 'finalist')} by test "
        f"{summary.quality}, so their test {summary.quality} tends to be slightly too high as well."
        f"{left_out}"
    )


def _optimism_note(summary: Summary) -> str:
    """What choosing by noisy estimates did to the estimates of the chosen."""
    found = summary.optimism
    assert found is not None
    error = f" ± {formats.points(found.error)}" if math.isfinite(found.error) else ""
    reason = (
        "is what choosing by noisy estimates made of them (the winner's curse); only the test is "
        "free of it"
    )
    if not summary.alike:
        reason = (
            "is two things in one: tested networks are repaired anew (final_repair), and "
            "choosing by noisy estimates raises those of the chosen (the winner's curse); only the "
            "test is free of it"
        )
    they = "lie below" if found.finalists < 0 else "exceed"
    it = "lies below" if found.baseline < 0 else "exceeds"
    return (
        f"The finalists' estimates {they} their test {summary.quality} by "
        f"{formats.points(abs(found.finalists))}{error} points on average, and that of the "
        f"{summary.whole}, which nobody chose, {it} its own by "
        f"{formats.points(abs(found.baseline))}. The difference, "
        f"{formats.points(found.beyond)} points, {reason}."
    )


def _policies(summary: Summary) -> Details:
    folded = tuple(
        Details(
            f"Finalist {finalist.number} ({finalist.estimate.policy.key})",
            (Code(tables.policy_text(finalist.estimate)),),
        )
        for finalist in summary.finalists
    )
    return Details(f"Policies of {formats.count(len(folded), 'finalist')}", folded)
