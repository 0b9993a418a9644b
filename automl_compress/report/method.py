"""The end of a report: how it was measured, in which space, with which settings."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Final

from automl_compress.evaluate import error_name
from automl_compress.ledger import Manifest
from automl_compress.report import formats, tables
from automl_compress.report.document import Block, Bullets, Code, Details, Heading, Paragraph
from automl_compress.report.summary import Summary
from automl_compress.space import counted

_KNOWN_COVERAGE: Final = ("groups", "parameters_share", "macs_share", "skipped", "idle")
_MEANINGS: Final[Mapping[str, str]] = {
    "bitops": "Bit operations are multiply-accumulates times the bits of the weights and of the "
    "inputs, 32 where these are floats.",
    "divergence": "Divergence is 1 - exp(-d), d being the mean Kullback-Leibler divergence of a "
    "network's answers from the uncompressed network's, over the search's examples: 0 where they "
    "are the same.",
}
"""What metrics mean that not every study has."""


def method(summary: Summary) -> list[Block]:
    """How a study measured: its rules, its search space, its settings, and how to run it again."""
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
        "The examples are split into sets that share none: for calibration and training, for the "
        "search, for the final test. The search sees the first two only.",
        *_draw(manifest),
        "Size is what the packed file holds: weights at their bit-widths, with their scales, "
        "BatchNorm and biases. 1 kB is 1,000 bytes.",
        "MACs are multiply-accumulates for one example, counted after the inputs of the following "
        "layers are removed too.",
        *(text for name, text in _MEANINGS.items() if name in _named(manifest)),
        f"Objectives, all minimised: {', '.join(manifest.objectives)}.",
        f"Constraints: {constraints or 'none'}.",
        f"Budget: {formats.count(manifest.budget, 'evaluation')} for each contestant.",
        f"Estimator of the search: {manifest.estimator}. Of the test: {manifest.test_estimator}.",
    ]


def _named(manifest: Manifest) -> set[str]:
    """Metrics that a study minimises or constrains."""
    return {*manifest.objectives, *(constraint.metric for constraint in manifest.constraints)}


def _draw(manifest: Manifest) -> list[str]:
    """How the search's images were drawn, where they do not count alike (`evaluate.draw`)."""
    if error_name("accuracy") not in manifest.baseline:
        return []
    return [
        "The search's examples were drawn more often where the uncompressed network's answer is a "
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
