"""What every repair buys without training, and what it costs in time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn

from automl_compress.compress import REPAIRS, Compressor, Repair
from automl_compress.compress.fold import fold_norms, foldable_norms
from automl_compress.compress.memory_order import in_order, order_for
from automl_compress.compress.modules import own_copy
from automl_compress.evaluate import QUALITIES
from automl_compress.evaluate.network import EstimateSettings
from automl_compress.space import Policy
from automl_compress.workload import Task, Workload

LEVELS: Final = {"mild": (0.875, 6), "medium": (0.75, 4), "harsh": (0.5, 3)}
"""Share of every group's channels that stays, and bits of every weight."""
_BATCH: Final = 128


@dataclass(frozen=True)
class RepairRow:
    """One repair of one compressed network.

    Args:
        network: `as trained`, or `folded`: BatchNorm folded into the layers.
        level: a key of `LEVELS`.
        repair: what was done.
        quality: of the answers to test images, in [0, 1].
        baseline: the same of the uncompressed network.
        seconds: of the processor, all threads together, to build and repair the network; other
            work on the machine disturbs them less than the clock's.
        size_share: bytes over the uncompressed network's.
        macs_share: multiply-accumulates likewise.
    """

    network: str
    level: str
    repair: str
    quality: float
    baseline: float
    seconds: float
    size_share: float
    macs_share: float


def measure_repairs(
    workload: Workload, settings: EstimateSettings, test_images: int | None = None
) -> Iterable[RepairRow]:
    """Every repair at every level, on the network as trained and with BatchNorm folded away.

    Args:
        workload: the network and its data.
        settings: calibration images, criterion and seed.
        test_images: how many of the untouched test images are judged by; all when not given.

    Raises:
        TraceError: the network cannot be followed.
    """
    calibration = workload.splits.train.draw(settings.calibration_images, settings.seed)
    order = order_for(workload.model, workload.example_input())
    images = in_order(calibration.tensor(workload.normalization), order)
    split = workload.splits.test
    chosen = split if test_images is None else split.draw(test_images, settings.seed)
    tests = in_order(chosen.tensor(workload.normalization), order)
    labels = torch.from_numpy(chosen.labels.copy())
    for name, network in _forms(workload):
        judge = partial(_quality, workload.task, images=tests, labels=labels)
        baseline = judge(network)
        for repair in REPAIRS:
            compressor = Compressor(
                network,
                workload.example_input(),
                images,
                settings.criterion,
                repair,
                task=workload.task,
            )
            for level in LEVELS:
                yield _row(compressor, (name, level, repair), baseline, judge)


def _forms(workload: Workload) -> Iterable[tuple[str, nn.Module]]:
    """The network as trained and, where it has BatchNorm, folded."""
    yield "as trained", workload.model
    folded = own_copy(workload.model).eval().requires_grad_(False)
    pairs = foldable_norms(folded, workload.example_input())
    if pairs:
        fold_norms(folded, pairs)
        yield "folded", folded


def _row(
    compressor: Compressor,
    names: tuple[str, str, Repair],
    baseline: float,
    judge: Callable[[nn.Module], float],
) -> RepairRow:
    name, level, repair = names
    policy = uniform_policy(compressor, *LEVELS[level])
    start = time.process_time()
    with torch.inference_mode():
        network = compressor.build(policy)
    seconds = time.process_time() - start
    whole, cost = compressor.cost(Policy({})), compressor.cost(policy)
    return RepairRow(
        name,
        level,
        repair,
        judge(network),
        baseline,
        seconds,
        cost["size_bytes"] / whole["size_bytes"],
        cost["macs"] / whole["macs"],
    )


def uniform_policy(compressor: Compressor, share: float, bits: int) -> Policy:
    """The same share of channels in every group, the same bits in every layer.

    Args:
        compressor: of the network.
        share: of the channels that stay, in (0, 1].
        bits: 2..8.
    """
    structure = compressor.structure
    channels = {
        f"channels:{group.name}": max(1, round(group.channels * share))
        for group in structure.groups
        if not group.protected
    }
    layers = [layer.name for layer in structure.layers if layer.quantizable]
    return Policy({**channels, **{f"weight_bits:{name}": bits for name in layers}})


def _quality(task: Task, network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        outputs = (network(batch) for batch in torch.split(images, _BATCH))
        return task.score(outputs, labels).metrics[task.quality]


def repair_table(rows: Iterable[RepairRow]) -> str:
    """Markdown: a line per network form and repair, quality and seconds per level."""
    table = {(row.network, row.repair, row.level): row for row in rows}
    forms = list(dict.fromkeys(network for network, _, _ in table))
    heads = [
        f"{level} ({row.size_share:.1%} of the bytes, {row.macs_share:.1%} of the MACs)"
        for level in LEVELS
        for row in [table[forms[0], "none", level]]
    ]
    lines = [
        "| network | repair | " + " | ".join(heads) + " |",
        "| --- | --- |" + " ---: |" * len(heads),
    ]
    for form in forms:
        for repair in REPAIRS:
            cells = [
                f"{row.quality:.2%} ({row.seconds:.1f} s)"
                for level in LEVELS
                for row in [table[form, repair, level]]
            ]
            lines.append(f"| {form} | {repair} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def repair_page(
    network: str, rows: Sequence[RepairRow], facts: Sequence[str], judged_by: str = "accuracy"
) -> str:
    """A page of Markdown around the table.

    Args:
        network: its name.
        rows: of all levels, repairs and forms.
        facts: sentences about weights and data.
        judged_by: the quality that rows hold, see `QUALITIES`.
    """
    levels = (
        f"{level}: {share:.1%} of every group's channels stay, weights have {bits} bits"
        for level, (share, bits) in LEVELS.items()
    )
    return "\n".join(
        [
            f"# What repairs without training buy: {network}",
            "",
            f"The {QUALITIES[judged_by]} of the uncompressed network: {rows[0].baseline:.2%}. "
            f"{' '.join(facts)}",
            "",
            *(f"- {level}" for level in levels),
            "",
            repair_table(rows),
            "",
            "In brackets: seconds of the processor, all threads together, to build the network",
            "and repair it; what is prepared once for all candidates of a search is not counted.",
            "*Folded*: BatchNorm folded into the layers before anything else. `auto` chooses among",
            "repairs by calibration images that no repair has seen; it sees no label.",
            "",
        ]
    )
