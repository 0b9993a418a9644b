"""How much faster a network becomes at a share of its channels, by how the widths are chosen.

Kernels compute channels in blocks, so equal shares give unequal times: a width just above a block
costs as much as the next one. `round_to` in a space's rules, and a choice by the table of layer
latencies, keep to what the kernels like.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from automl_compress.compress import Compressor, space_of_structure
from automl_compress.deploy.latency import Latency
from automl_compress.deploy.latency_calibration import (
    LatencySettings,
    calibrated_table,
    measure_policies,
)
from automl_compress.deploy.latency_model import LatencyModel
from automl_compress.deploy.measuring import MeasureSettings
from automl_compress.errors import InputError
from automl_compress.settings import significant
from automl_compress.space import ChannelRule, Policy, SearchSpace, SpaceRules, Value

BLOCK: Final = 16
"""Channels of a block of integer kernels with 512-bit registers."""
BITS: Final = 8
ORIGINAL: Final = "float32, all channels"
RULES: Final = SpaceRules(
    channels=ChannelRule(ratios=(0.25, 0.5, 0.75, 1.0), round_to=4), weight_bits=(BITS,)
)
"""What a choice by latency chooses from."""


@dataclass(frozen=True)
class SpeedupRow:
    """One form of the network.

    Args:
        form: what was done to it.
        channels: share of all channels of its groups that stay.
        macs: share of multiply-accumulates.
        latencies: how long it takes, by batch.
    """

    form: str
    channels: float
    macs: float
    latencies: Mapping[int, Latency]


@dataclass(frozen=True)
class Speedups:
    """What was measured of one network.

    Args:
        network: its name.
        rows: one per form; the first is the original network.
    """

    network: str
    rows: tuple[SpeedupRow, ...]

    def ratio(self, row: SpeedupRow, batch: int) -> float:
        """How many times faster than the original network."""
        return self.rows[0].latencies[batch].median_ms / row.latencies[batch].median_ms


def measure_speedups(
    network: str,
    compressor: Compressor,
    example_input: Tensor,
    share: float,
    batches: Sequence[int],
    measure: MeasureSettings,
) -> Speedups:
    """Measure all forms in turn, in a process of their own, for every batch.

    Args:
        network: its name.
        compressor: of the network.
        example_input: (1, ...) what it takes.
        share: of the channels that stay, in (0, 1).
        batches: inputs per run; for each one, widths are chosen by its latencies.
        measure: threads and runs; its batch does not count.

    Raises:
        InputError: a setting is wrong, or see `calibrated_table`.
        EngineError: the measuring process fails.
    """
    if not 0 < share < 1:
        raise InputError(f"--share must be above 0 and below 1, but is {share}; correct it")
    space = space_of_structure(compressor.model, compressor.structure, RULES).space
    models = {}
    for batch in batches:
        settings = LatencySettings(replace(measure, batch=batch))
        models[batch] = calibrated_table(settings, compressor, space, example_input).model(space)
    forms = _forms(compressor, space, models, share)
    taken = {
        batch: measure_policies(
            replace(measure, batch=batch),
            compressor,
            list(dict.fromkeys(forms.values())),
            example_input,
        )
        for batch in batches
    }
    rows = [
        SpeedupRow(
            form,
            kept_share(compressor, policy),
            compressor.cost(policy)["macs"] / compressor.cost(Policy({}))["macs"],
            {batch: taken[batch][policy] for batch in batches},
        )
        for form, policy in forms.items()
    ]
    return Speedups(network, tuple(rows))


def _forms(
    compressor: Compressor, space: SearchSpace, models: Mapping[int, LatencyModel], share: float
) -> dict[str, Policy]:
    """By name, the policies that are measured; widths by the latency model of each batch."""
    forms = {
        ORIGINAL: Policy({}),
        "INT8, all channels": _policy(compressor, 1.0, 1, BITS),
        f"float32, {share:.0%} of every group": _policy(compressor, share, 1),
        f"INT8, {share:.0%} of every group": _policy(compressor, share, 1, BITS),
        f"INT8, {share:.0%}, round_to {BLOCK}": _policy(compressor, share, BLOCK, BITS),
    }
    return forms | {
        f"INT8, {share:.0%} in all, chosen by latency at batch {batch}": fastest_policy(
            space, model, share
        )
        for batch, model in models.items()
    }


def _policy(compressor: Compressor, share: float, round_to: int, *bits: int) -> Policy:
    """The same share of every group, and bits of every layer where they are given."""
    rules = SpaceRules(channels=ChannelRule((share,), round_to), weight_bits=bits)
    space = space_of_structure(compressor.model, compressor.structure, rules).space
    return Policy({gene.name: gene.values[0] for gene in space})


def kept_share(compressor: Compressor, policy: Policy) -> float:
    """Share of all channels of groups that can be cut which a policy keeps."""
    groups = [group for group in compressor.structure.groups if not group.protected]
    kept = policy.of_kind("channels")
    return sum(kept.get(g.name, g.channels) for g in groups) / sum(g.channels for g in groups)


def fastest_policy(space: SearchSpace, model: LatencyModel, share: float) -> Policy:
    """Widths that keep at most a share of the channels, chosen by predicted latency.

    From the whole network on, that step is taken that saves most milliseconds per channel, until
    few enough channels are left: one gene is lowered to any of its values, or all genes of the same
    values are, which makes narrow all that read and write their maps.

    Args:
        space: bits are the largest it has.
        model: predicts.
        share: of the channels of the space's groups.
    """
    chosen = {gene.name: gene.values[-1] for gene in space}
    genes = [gene for gene in space if gene.kind == "channels"]
    alike: dict[tuple[Value, ...], list[str]] = {}
    for gene in genes:
        alike.setdefault(gene.values, []).append(gene.name)
    spare = (1 - share) * sum(gene.values[-1] for gene in genes)
    while spare > 0:
        steps = [{gene.name: v} for gene in genes for v in gene.values if v < chosen[gene.name]]
        for values, names in alike.items():
            for value in values:
                lower = {name: value for name in names if value < chosen[name]}
                if 0 < _channels_saved(chosen, lower) <= spare:
                    steps.append(lower)
        if not steps:
            break
        gains = [_saved_per_channel(model, chosen, step) for step in steps]
        step = steps[gains.index(max(gains))]
        spare -= _channels_saved(chosen, step)
        chosen |= step
    return Policy(chosen)


def _channels_saved(chosen: Mapping[str, Value], step: Mapping[str, Value]) -> float:
    return sum(chosen[name] - value for name, value in step.items())


def _saved_per_channel(
    model: LatencyModel, chosen: Mapping[str, Value], step: Mapping[str, Value]
) -> float:
    """Milliseconds that lowering some genes saves, per channel."""
    saved = model.layers_ms(Policy(chosen)) - model.layers_ms(Policy({**chosen, **step}))
    return saved / _channels_saved(chosen, step)


def speedup_page(found: Speedups) -> str:
    """A page of Markdown."""
    batches = list(found.rows[0].latencies)
    first = found.rows[0].latencies[batches[0]]
    lines = [
        f"# How much faster {found.network} becomes",
        "",
        f"{first.runtime}, threads {first.threads}, medians of {first.runs} runs, networks in",
        "turn; in brackets the 95 % interval of the median within this session: another may give",
        "medians outside of it. Times faster than the original network in float32. Weights are",
        "random. Other work on the machine disturbs the numbers.",
        "",
        "| form | channels | MACs | " + " | ".join(_head(batch) for batch in batches) + " |",
        "| --- | ---: | ---: |" + " ---: | ---: |" * len(batches),
    ]
    for row in found.rows:
        cells = [f"{row.channels:.1%}", f"{row.macs:.1%}"]
        for batch in batches:
            taken = row.latencies[batch]
            interval = f"({significant(taken.lower_ms)}-{significant(taken.upper_ms)})"
            cells += [
                f"{significant(taken.median_ms)} {interval}",
                f"{found.ratio(row, batch):.2f}",
            ]
        lines.append(f"| {row.form} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _head(batch: int) -> str:
    return f"batch {batch}, ms | times faster"
