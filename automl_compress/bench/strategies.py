"""What strategies cost themselves: processor time of ask and tell, on a toy in closed form."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from automl_compress.errors import InputError
from automl_compress.search import build_strategy, check_strategy
from automl_compress.testing import ToyEstimator, ToyNetwork

LIMIT = 50.0
"""Milliseconds an evaluation may cost; the table marks who needs more."""


@dataclass(frozen=True)
class OverheadRow:
    """What one strategy needed.

    Args:
        strategy: registered name.
        genes: of the space.
        evaluations: asked for and told; fewer than wanted when it ended by itself.
        milliseconds: processor time of ask and tell per evaluation, learning included.
        last_milliseconds: the same over the last tenth of the evaluations.
    """

    strategy: str
    genes: int
    evaluations: int
    milliseconds: float
    last_milliseconds: float


def measure_strategies(
    strategies: Sequence[str], genes: int, evaluations: int
) -> Iterable[OverheadRow]:
    """Run every strategy, in its own batches, with seed 0.

    Args:
        strategies: registered names.
        genes: of the space, half of them channels, half of them bits; even.
        evaluations: told to each.

    Raises:
        InputError: the numbers are out of range.
        StudyError: a strategy is unknown.
    """
    if genes < 2 or genes % 2:
        raise InputError(f"--genes must be even and at least 2, but is {genes}; correct it")
    if evaluations < 10:
        raise InputError(f"--evaluations must be at least 10, but is {evaluations}; raise it")
    for name in strategies:
        check_strategy(name)
    network = ToyNetwork(layers=genes // 2)
    for name in strategies:
        spent = _spent(name, network, evaluations)
        tenth = spent[-max(1, len(spent) // 10) :]
        yield OverheadRow(
            name, genes, len(spent), 1e3 * sum(spent) / len(spent), 1e3 * sum(tenth) / len(tenth)
        )


def _spent(name: str, network: ToyNetwork, evaluations: int) -> list[float]:
    """Seconds of each evaluation, those of a batch shared equally."""
    estimator = ToyEstimator(network)
    start = time.process_time()
    strategy = build_strategy(name, network.problem(), 0)
    spent: list[float] = []
    while len(spent) < evaluations:
        asked = strategy.ask(min(strategy.batch, evaluations - len(spent)))
        if not asked:
            break
        seconds = time.process_time() - start
        told = [estimator.estimate(policy) for policy in asked]
        start = time.process_time()
        strategy.tell(told)
        seconds += time.process_time() - start
        spent += [seconds / len(asked)] * len(asked)
        start = time.process_time()
    return spent


def overhead_table(rows: Iterable[OverheadRow]) -> str:
    """Markdown: a line per strategy; those above `LIMIT` are marked."""
    lines = [
        "| strategy | genes | evaluations | ms per evaluation | in the last tenth | |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row.strategy} | {row.genes} | {row.evaluations} | {row.milliseconds:.1f} | "
        f"{row.last_milliseconds:.1f} | "
        f"{f'above {LIMIT:.0f} ms' if row.milliseconds > LIMIT else ''} |"
        for row in rows
    ]
    return "\n".join(lines)
