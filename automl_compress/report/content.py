"""What a report says, in which order."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any, Final

from automl_compress.evaluate import DIVERGENCE, error_name, loss_of, useful_loss
from automl_compress.ledger import Manifest
from automl_compress.report import formats, tables
from automl_compress.report.audit import audit_note, audit_verdict
from automl_compress.report.audit_views import audit_table
from automl_compress.report.document import (
    Block,
    Bullets,
    Code,
    Details,
    Document,
    Heading,
    Paragraph,
)
from automl_compress.report.figures import Drawing
from automl_compress.report.scores import is_left_out
from automl_compress.report.statistics import wall_clock
from automl_compress.report.summary import Summary
from automl_compress.space import counted

_FEW_SEEDS: Final = 5
_KNOWN_COVERAGE: Final = ("groups", "parameters_share", "macs_share", "skipped", "idle")


def build_document(summary: Summary, drawings: Mapping[str, Drawing]) -> Document:
    """The report of a study.

    Args:
        summary: the study.
        drawings: its figures by name, see `figures.draw_all`.
    """
    return Document(
        f"Compression study {summary.result.manifest.study}",
        (
            *_headline(summary, drawings),
            *_recovered(summary, drawings),
            *_fronts(summary, drawings),
            *_comparison(summary, drawings),
            *_trust(summary, drawings),
            *_method(summary),
        ),
    )


# Headline


def _headline(summary: Summary, drawings: Mapping[str, Drawing]) -> list[Block]:
    blocks: list[Block] = [
        Paragraph(_status(summary)),
        Bullets(tuple(_workload(summary))),
        Heading("Results on the test images"),
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
        f"Images: {splits or 'the manifest does not say'}",
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
        return f"The uncompressed network is not measured on the test images yet.{takes}"
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
        return f"is right on {share} of the{images} test images{interval}"
    return f"has {share} {summary.quality} on the{images} test images{interval}"


def _headline_note(summary: Summary) -> str:
    waiting = len(summary.finalists) - len(summary.measured)
    has = "has" if waiting == 1 else "have"
    missing = f" {formats.count(waiting, 'finalist')} {has} no test result." if waiting else ""
    return (
        f"The search never saw these images. Shares in brackets are of the {summary.reference} "
        "in 32-bit floats. The search estimate comes from the search images; "
        f"{_estimate_note(summary)}. What stands after ± is its standard error, for "
        f"the number of search images. {_interval_note(summary)}{missing}"
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
        return "Intervals are Wilson's and cover the finite number of test images only."
    return (
        f"{summary.quality} is the mean over the classes of the average precision at an overlap "
        "(IoU) of 0.5, by the definition of COCO. Its standard error is taken from the scatter "
        "over eight disjoint folds of the images, which know it to within a quarter only; "
        "intervals are 1.96 of it each way and cover the finite number of test images only."
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
            f"Latencies are those of {conditions['runtime']} with {latency['threads']} threads "
            f"and batch {latency['batch']} on the machine of the search; layers of low bits "
            f"{form}, everything else in float32. The search saw predictions only: a sum over a "
            f"table of single layers, fitted to {line['networks']} measured networks. A measured "
            f"latency is the median of {latency['runs']} runs, networks in turn, in a process of "
            "its own when the search was over, with a 95 % interval of the median by order "
            "statistics. It takes runs as independent, which those of one session are not quite, "
            "and holds within that session only: in another, medians may differ by several per "
            "cent; networks of one session can be compared. Picks go by measured latencies."
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


# Recovery


def _recovered(summary: Summary, drawings: Mapping[str, Drawing]) -> list[Block]:
    if not summary.recovered:
        return []
    return [
        Heading("Recovered networks"),
        Paragraph(_recovered_note(summary)),
        tables.recovered_table(summary),
        *(drawings[name] for name in ("recovered",) if name in drawings),
    ]


def _recovered_note(summary: Summary) -> str:
    return (
        f"{formats.count(len(summary.recovered), 'network')} of the search, trained on the "
        "training images after it. The test images are those of the finalists: no training saw "
        "them, and no decision of a training was made by them. Points lost are against the "
        f"{summary.reference}."
    )


# Fronts


def _fronts(summary: Summary, drawings: Mapping[str, Drawing]) -> list[Block]:
    blocks: list[Block] = [Heading("Fronts of the search"), Paragraph(_front_note(summary))]
    blocks += [drawing for name, drawing in drawings.items() if name.startswith("front_")]
    if summary.other_front:
        table = tables.front_points_table(summary)
        blocks.append(Details(f"{table.caption} ({len(table.rows):,})", (table,)))
    return blocks


def _front_note(summary: Summary) -> str:
    if not summary.front:
        return "No evaluation has succeeded and met every constraint, so there is no front."
    count = formats.count(len(summary.front), "network")
    return (
        f"The merged front of all contestants holds {count}. All numbers in this section are "
        "estimates on the search images."
    )


# Comparison


def _comparison(summary: Summary, drawings: Mapping[str, Drawing]) -> list[Block]:
    blocks: list[Block] = [Heading("Comparison of the strategies")]
    if summary.frame.empty:
        return [*blocks, Paragraph("No evaluation is made yet, so there is nothing to compare.")]
    note = _hypervolume_note(summary)
    blocks += [Paragraph(text) for text in (note, _seeds_note(summary))]
    blocks += [tables.hypervolume_table(summary, kind) for kind in ("useful", "plain")]
    if not summary.level:
        blocks.append(Paragraph(
            "The contestants have not made equally many evaluations. Their ends cannot be "
            "compared, so nothing is ranked."
        ))  # fmt: skip
    blocks += [d for name, d in drawings.items() if name.startswith("hypervolume_")]
    blocks += [Paragraph(_sharing_note()), tables.charges_table(summary)]
    failures = tables.failures_table(summary)
    blocks += [failures] if failures else [Paragraph("No evaluation failed.")]
    return [*blocks, Paragraph(_timing_note(summary)), tables.timing_table(summary)]


def _hypervolume_note(summary: Summary) -> str:
    loss = loss_of(summary.result.manifest.objectives)
    return (
        "Hypervolume is the share of a box that the networks found so far dominate; more is "
        f"better. The plain box reaches from 0 to {loss} 1 and to the costs of the "
        f"{summary.whole}.{_useful_note(summary, loss)} {loss.capitalize()}s are search "
        "estimates. Failed evaluations and those that break a constraint count nothing. A dash "
        "means that not every seed has come that far."
    )


def _useful_note(summary: Summary, loss: str) -> str:
    """How far the useful box reaches, if that is known."""
    share = useful_loss(loss)
    useful = f"{share:g}" if loss == DIVERGENCE else f"{100 * share:g} points"
    least = f"the {loss} of the {summary.whole if loss == DIVERGENCE else summary.useful_start}"
    if is_left_out(summary.result.manifest):
        if not summary.has_values:
            return ""
        least = f"the least {loss} that was found to meet the constraints"
    why = ", as sparsity training alone lost more than that" if summary.lost_too_much else ""
    return (
        f" The useful box reaches only to {least} plus {useful}{why}, so that ruined networks "
        "count nothing."
    )


def _seeds_note(summary: Summary) -> str:
    seeds = {len(group.members) for group in summary.race}
    fewest = min(seeds, default=0)
    each = f"{min(seeds)} to {max(seeds)} seeds" if len(seeds) > 1 else formats.count(
        fewest, "seed"
    )  # fmt: skip
    note = f"Every strategy ran with {each}. The range shown is from the lowest to the highest."
    if fewest < _FEW_SEEDS:
        note += (
            " That is too few to call a difference significant: another set of seeds may turn "
            "the order around."
        )
    note += " The rank is by mean useful hypervolume at the end."
    if len(summary.race) < len(summary.strategies):
        note += " The reference is not in the race and is not ranked."
    return note


def _sharing_note() -> str:
    return (
        "Every evaluation a contestant asked for is charged to it, also when the answer was "
        "known. Shared ones had been asked for before, counted in the order of a serial run."
    )


def _timing_note(summary: Summary) -> str:
    return (
        "Time charged is what the evaluations took where they were made; time spent leaves out "
        "those that were answered from the ledger. From the first evaluation to the last "
        f"{formats.duration(wall_clock(summary.frame))} passed, pauses included."
    )


# What estimates are worth


def _trust(summary: Summary, drawings: Mapping[str, Drawing]) -> list[Block]:
    blocks = [*_ladder(summary), *_predictor(summary), *_audit(summary, drawings)]
    return [Heading("What the estimates are worth"), *blocks] if blocks else []


def _ladder(summary: Summary) -> list[Block]:
    if not summary.rungs:
        return []
    return [
        Paragraph(
            "Before finalists were chosen, candidates climbed a ladder: each rung measured the "
            "best of the one before it anew, on search-validation images, and passed on the best "
            "of what it measured itself. Luck on one rung is of no use on the next: where a rung "
            "that builds the same networks says less than the one before it, that one's choice was "
            "partly luck. Rungs that train or repair otherwise differ by that, too."
        ),
        tables.ladder_table(summary),
    ]


def _predictor(summary: Summary) -> list[Block]:
    found = summary.result.manifest.predictor
    if not found:
        return []
    return [
        Paragraph(
            f"What can be learned from {found['evaluations']:,} evaluations of the race: a "
            "regression over gene values and costs, each policy predicted by a model that has not "
            f"seen it, ranks them with Kendall's tau {found['kendall']:.3f} and Spearman's rho "
            f"{found['spearman']:.3f}; the size alone with tau {found['kendall_size']:.3f}. "
            f"{formats.percent(found['within_two_errors'])} of the estimates lie within two "
            "standard errors of the prediction."
        )
    ]


def _audit(summary: Summary, drawings: Mapping[str, Drawing]) -> list[Block]:
    if summary.audit is None:
        return []
    return [
        Paragraph(audit_verdict(summary.audit)),
        Paragraph(audit_note(summary.audit)),
        audit_table(summary.audit),
        drawings["audit"],
    ]


# Method


def _method(summary: Summary) -> list[Block]:
    return [
        Heading("How it was measured"),
        Bullets(tuple(_rules(summary))),
        *_space(summary),
        *_setting_tables(summary),
        *_commands(summary),
    ]


def _rules(summary: Summary) -> list[str]:
    manifest = summary.result.manifest
    constraints = ", ".join(c.text or f"{c.metric} <= {c.limit:g}" for c in manifest.constraints)
    return [
        "The images are split into sets that share none: for calibration and training, for the "
        "search, for the final test. The search sees the first two only.",
        *_draw(manifest),
        "Size is what the packed file holds: weights at their bit-widths, with their scales, "
        "BatchNorm and biases. 1 kB is 1,000 bytes.",
        "MACs are multiply-accumulates for one image, counted after the inputs of the following "
        "layers are removed too.",
        f"Objectives, all minimised: {', '.join(manifest.objectives)}.",
        f"Constraints: {constraints or 'none'}.",
        f"Budget: {formats.count(manifest.budget, 'evaluation')} for each contestant.",
        f"Estimator of the search: {manifest.estimator}. Of the test: {manifest.test_estimator}.",
    ]


def _draw(manifest: Manifest) -> list[str]:
    """How the search's images were drawn, where they do not count alike (`evaluate.draw`)."""
    if error_name("accuracy") not in manifest.baseline:
        return []
    return [
        "The search's images were drawn more often where the uncompressed network's answer is a "
        "close call, and count the less for it: its estimates are weighted shares of right answers."
    ]


def _space(summary: Summary) -> list[Block]:
    genes = summary.result.manifest.space.get("genes")
    text = "The manifest does not state the search space."
    if isinstance(genes, Mapping) and genes:
        text = _space_text(genes)
    return [Heading("Search space", 3), Paragraph(text), *_coverage(summary)]


def _space_text(genes: Mapping[str, Any]) -> str:
    kinds: dict[str, int] = {}
    policies = 1
    for name, values in genes.items():
        kind = name.partition(":")[0]
        kinds[kind] = kinds.get(kind, 0) + 1
        policies *= len(values)
    parts = ", ".join(f"{number:,} {kind}" for kind, number in kinds.items())
    return f"{formats.count(len(genes), 'gene')} ({parts}) that make {counted(policies)} policies."


def _coverage(summary: Summary) -> list[Block]:
    coverage = summary.result.manifest.coverage
    blocks: list[Block] = []
    if idle := coverage.get("idle"):
        blocks.append(
            Paragraph(
                f"No objective and no constraint rewards fewer {' or '.join(idle)}: every policy "
                "keeps the least compressed value of these genes."
            )
        )
    facts = _coverage_facts(coverage)
    if facts:
        blocks.append(tables.facts_table("What of the network the space covers", facts))
    skipped = coverage.get("skipped") or ()
    rows = {str(i.get("name", formats.MISSING)): i.get("reason") for i in skipped}
    if rows:
        table = tables.facts_table("Layers the space leaves alone", rows)
        blocks.append(Details(f"{formats.count(len(rows), 'layer')} left alone", (table,)))
    return blocks


def _coverage_facts(coverage: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if "groups" in coverage:
        groups = coverage["groups"]
        facts["channel groups"] = len(groups) if isinstance(groups, list | dict) else groups
    for key, title in (("parameters_share", "parameters"), ("macs_share", "MACs")):
        if isinstance(coverage.get(key), int | float):
            facts[f"share of the {title}"] = formats.percent(coverage[key])
    return facts | {k: v for k, v in coverage.items() if k not in _KNOWN_COVERAGE}


def _setting_tables(summary: Summary) -> list[Block]:
    manifest = summary.result.manifest
    workload = {
        key: value for key, value in manifest.workload.items() if key not in ("name", "splits")
    }
    named = (
        ("Estimate", manifest.config.get("estimate")),
        ("Workload", workload),
        ("Environment", manifest.environment),
    )
    return [
        block
        for title, facts in named
        if isinstance(facts, Mapping) and facts
        for block in (Heading(title, 3), tables.facts_table(f"{title} as recorded", facts))
    ]


def _commands(summary: Summary) -> list[Block]:
    manifest = summary.result.manifest
    settings = json.dumps(dict(manifest.config), indent=1, ensure_ascii=False)
    blocks: list[Block] = [Heading("To do it again", 3)]
    if manifest.status != "finished":
        folder = shlex.quote(summary.result.folder.resolve().name)
        blocks += [
            Paragraph("This goes on where the study stopped:"),
            Code(f"automl-compress resume {folder}"),
        ]
    return [
        *blocks,
        Paragraph(
            f"This runs the same study from its settings below{_base(manifest)}. The same seeds "
            "give the same evaluations:"
        ),
        Code("automl-compress search study.yaml"),
        Details("study.yaml: its settings, JSON being YAML too", (Code(settings),)),
    ]


def _base(manifest: Manifest) -> str:
    """Where relative paths of the settings begin, if that is known."""
    base = manifest.environment.get("base")
    return f", whose relative paths begin at the sweep's folder, '{base}'" if base else ""
