"""What strategies cost themselves: processor time of ask and tell, on a toy in closed form."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from automl_compress.errors import InputError
from automl_compress.search import build_strategy, find_strategy
from automl_compress.settings import significant
from automl_compress.testing import ToyEstimator, ToyNetwork

LIMIT = 50.0
"""Milliseconds an evaluation may cost; the table marks who needs more."""


@dataclass(frozen=True)
class OverheadRow:
    """What one strategy needed.

    Args:
        strategy: registered name, or the user's callable.
        genes: of the space.
        known: evaluations it was told before.
        evaluations: asked for and told; fewer than wanted when it ended by itself.
        milliseconds: processor time of ask and tell per evaluation, learning included.
        last_milliseconds: the same over the last tenth of the evaluations.
    """

    strategy: str
    genes: int
    known: int
    evaluations: int
    milliseconds: float
    last_milliseconds: float


def measure_strategies(
    strategies: Sequence[str], genes: int, evaluations: int, known: int = 0
) -> Iterable[OverheadRow]:
    """Run every strategy, in its own batches, with seed 0.

    Args:
        strategies: registered names, or callables of the user's.
        genes: of the space, half of them channels, half of them bits; even.
        evaluations: asked of each.
        known: what `scaled-random` evaluated is told before the clock starts, so that the time of
            a search's end is measured without the way there.

    Raises:
        InputError: the numbers are out of range.
        StudyError: a strategy is unknown, or one of the user's does something wrong.
    """
    if genes < 2 or genes % 2:
        raise InputError(f"--genes must be even and at least 2, but is {genes}; correct it")
    if evaluations < 10:
        raise InputError(f"--evaluations must be at least 10, but is {evaluations}; raise it")
    if known < 0:
        raise InputError(f"--known must be at least 0, but is {known}; correct it")
    for name in strategies:
        find_strategy(name)
    network = ToyNetwork(layers=genes // 2)
    for name in strategies:
        spent = _spent(name, network, evaluations, known)
        tenth = spent[-max(1, len(spent) // 10) :]
        mean, last = (1e3 * sum(part) / len(part) for part in (spent, tenth))
        yield OverheadRow(name, genes, known, len(spent), mean, last)


def _spent(name: str, network: ToyNetwork, evaluations: int, known: int) -> list[float]:
    """Seconds of each evaluation, those of a batch shared equally."""
    estimator, problem = ToyEstimator(network), network.problem()
    others = build_strategy("scaled-random", problem, 1).ask(known)
    start = time.process_time()
    strategy = build_strategy(name, problem, 0)
    if others:
        strategy.tell([estimator.estimate(policy) for policy in others])
        strategy.skip_start()
        start = time.process_time()
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
        "| strategy | genes | known | evaluations | ms per evaluation | in the last tenth | |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {row.strategy} | {row.genes} | {row.known} | {row.evaluations} | "
        f"{significant(row.milliseconds, 3)} | {significant(row.last_milliseconds, 3)} | "
        f"{f'above {LIMIT:.0f} ms' if row.milliseconds > LIMIT else ''} |"
        for row in rows
    ]
    return "\n".join(lines)
