"""What a report says, in which order: its head, the fronts, the strategies, its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from automl_compress.evaluate import DIVERGENCE, loss_of, useful_loss
from automl_compress.report import formats, tables
from automl_compress.report.audit import audit_note, audit_verdict
from automl_compress.report.audit_views import audit_table
from automl_compress.report.document import (
    Block,
    Bullets,
    Details,
    Document,
    Heading,
    Paragraph,
)
from automl_compress.report.drawing import Drawing
from automl_compress.report.headline import headline
from automl_compress.report.method import method
from automl_compress.report.scores import is_left_out
from automl_compress.report.statistics import wall_clock
from automl_compress.report.summary import Summary

_FEW_SEEDS: Final = 5


def build_document(summary: Summary, drawings: Mapping[str, Drawing]) -> Document:
    """The report of a study.

    Args:
        summary: the study.
        drawings: its figures by name, see `figures.draw_all`.
    """
    return Document(
        f"Compression study {summary.result.manifest.study}",
        (
            *headline(summary, drawings),
            *_recovered(summary, drawings),
            *_fronts(summary, drawings),
            *_comparison(summary, drawings),
            *_trust(summary, drawings),
            *method(summary),
        ),
    )


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
        "training examples after it. The test examples are those of the finalists: no training saw "
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
        return tables.NO_FRONT
    count = formats.count(len(summary.front), "network")
    return (
        f"The merged front of all contestants holds {count}. All numbers in this section are "
        "estimates on the search examples."
    )


# Comparison


def _comparison(summary: Summary, drawings: Mapping[str, Drawing]) -> list[Block]:
    blocks: list[Block] = [Heading("Comparison of the strategies")]
    if summary.frame.empty:
        return [*blocks, Paragraph("No evaluation is made yet, so there is nothing to compare.")]
    note = _hypervolume_note(summary)
    texts = (note, _nothing_note(summary), _seeds_note(summary))
    blocks += [Paragraph(text) for text in texts if text]
    blocks += _plans(summary)
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


def _plans(summary: Summary) -> list[Block]:
    """What strategies set out to do, those that say it."""
    plans = summary.result.manifest.plans
    if not plans:
        return []
    said = tuple(
        f"{name}: {'; '.join(sentence.rstrip(' .') for sentence in plan)}."
        for name, plan in plans.items()
    )
    return [Paragraph("What strategies set out to do on this network:"), Bullets(said)]


def _hypervolume_note(summary: Summary) -> str:
    loss = loss_of(summary.result.manifest.objectives)
    return (
        "Hypervolume is the share of a box that the networks found so far dominate; more is "
        f"better. The plain box reaches from 0 to {loss} 1 and to the costs of the "
        f"{summary.whole}.{_useful_note(summary, loss)} {loss.capitalize()}s are search "
        "estimates. Failed evaluations and those that break a constraint count nothing. A dash "
        "means that not every seed has come that far."
    )


def _nothing_note(summary: Summary) -> str:
    """Why strategies that found usable networks have no hypervolume; empty where all have some."""
    names = [
        group.label
        for group in summary.strategies
        if any(member.usable.any() for member in group.members)
        and (last := group.last("plain")) is not None
        and last.mean == 0
    ]
    if not names:
        return ""
    return (
        f"All hypervolumes of {' and '.join(names)} are 0, for none of the networks found is "
        f"better than the {summary.whole} by every cost among the objectives. The fronts above "
        "show these networks all the same."
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
    ran = "One strategy" if len(summary.race) == 1 else "Every strategy"
    note = f"{ran} ran with {each}."
    if summary.has_ranges:
        note += " The range shown is from the lowest to the highest."
    if fewest < _FEW_SEEDS and len(summary.strategies) > 1:
        other = "another seed" if fewest == 1 else "another set of seeds"
        note += (
            f" That is too few to call a difference significant: {other} may turn the order around."
        )
    if summary.level and len(summary.race) > 1:
        mean = "mean useful" if summary.has_ranges else "useful"
        note += f" The rank is by {mean} hypervolume at the end."
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
            "best of the one before it anew, on search-validation examples, and passed on the best "
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
