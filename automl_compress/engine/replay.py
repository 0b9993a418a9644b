"""Races on what was recorded: no network, no ledger, no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from automl_compress.engine.contestant import Contestant
from automl_compress.errors import StudyError
from automl_compress.evaluate import Constraint, Evaluation, check_objectives, objective_values
from automl_compress.evaluate.estimator import answer
from automl_compress.evaluate.recorded import Simulation
from automl_compress.ledger import ContestantRecord
from automl_compress.pareto import Reference
from automl_compress.search import Problem, find_strategy


@dataclass(frozen=True)
class ReplayedContestant:
    """What one strategy with one seed reached on a table.

    Args:
        strategy: registered name, or the user's callable.
        seed: its seed.
        hypervolume: (budget,) after each evaluation, in [0, 1], by the table's `scale`. Who
            exhausts the space earlier keeps the last value.
        quality: (budget,) best quality so far, in [0, 1]; 0 before the first that counts.
        failed: share of what it asked for that failed, in [0, 1].
        asked: evaluations it made, at most the budget; None where that was not recorded.
    """

    strategy: str
    seed: int
    hypervolume: NDArray[np.float64]
    quality: NDArray[np.float64]
    failed: float = 0.0
    asked: int | None = None


def table_problem(
    table: Simulation, objectives: Sequence[str] = (), constraints: Iterable[str] = ()
) -> Problem:
    """The problem a recorded table poses.

    Args:
        table: the recorded space.
        objectives: names; empty for the error and every recorded cost.
        constraints: texts such as `macs <= 0.5x`, relative to the table's baseline.

    Raises:
        StudyError: an objective or the metric of a constraint is not recorded.
    """
    chosen = check_objectives(objectives or table.recorded)
    limits = [Constraint.parse(text) for text in constraints]
    for name in (*chosen, *(limit.metric for limit in limits)):
        if name not in table.recorded:
            raise StudyError(
                f"objectives and constraints must be recorded, one of "
                f"{', '.join(table.recorded)}, but the table has no '{name}'; choose among them"
            )
    return Problem(
        space=table.space,
        objectives=chosen,
        baseline=table.baseline,
        cost=table.costs,
        constraints=tuple(limit.absolute(table.baseline) for limit in limits),
        counted_error=table.counted_error,
    )


def replay(
    table: Simulation,
    problem: Problem,
    strategies: Sequence[str],
    seeds: Sequence[int],
    budget: int,
    listener: Callable[[ReplayedContestant], None],
    known: Sequence[ReplayedContestant] = (),
) -> list[ReplayedContestant]:
    """Race strategies on a recorded table, one contestant after another.

    The hypervolume is taken by the table's `scale`, and evaluations that break a constraint count
    nothing.

    Args:
        table: the recorded space.
        problem: `table_problem` of it.
        strategies: registered names, or callables of the user's.
        seeds: one contestant per strategy and seed.
        budget: evaluations of each contestant.
        listener: hears of each contestant when it is done.
        known: contestants of an earlier replay of the same problem and budget, not raced again.

    Raises:
        StudyError: a strategy is unknown, or one of the user's does something wrong.
    """
    for name in strategies:
        find_strategy(name)
    scale = table.scale(problem.objectives, problem.constraints)
    before = {(contestant.strategy, contestant.seed): contestant for contestant in known}
    done = []
    for strategy in strategies:
        for seed in seeds:
            if (strategy, seed) in before:
                done.append(before[strategy, seed])
                continue
            told = _race(table, problem, ContestantRecord("replay", strategy, seed), budget)
            failed = float(np.mean([not evaluation.ok for evaluation in told] or [False]))
            found = curves(told, problem, scale, budget)
            done.append(ReplayedContestant(strategy, seed, *found, failed, len(told)))
            listener(done[-1])
    return done


def _race(
    table: Simulation, problem: Problem, record: ContestantRecord, budget: int
) -> list[Evaluation]:
    """All a contestant is told until its budget is spent or the space exhausted."""
    contestant = Contestant(record, problem, budget)
    told: list[Evaluation] = []
    while requests := contestant.next_round():
        evaluations = [answer(table, request.policy) for request in requests]
        contestant.finish_round(evaluations, hits=0)
        told += evaluations
    return told


def curves(
    told: Sequence[Evaluation], problem: Problem, scale: tuple[Reference, float], budget: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Hypervolume and best quality after each evaluation, (budget,) each.

    Evaluations that break a constraint count nothing. Where there are fewer, the last values stay.

    Args:
        told: at most `budget`.
        problem: objectives and constraints.
        scale: a reference, and the share of its box that counts as 1.
        budget: evaluations there might have been.
    """
    reference, whole = scale
    values = objective_values(told, problem.objectives)
    values[[problem.violation(e) > 0 for e in told]] = np.inf
    errors = np.minimum(values[:, problem.loss_place], 1.0)
    return (
        _padded(reference.progress(values) / whole, budget),
        _padded(1.0 - np.minimum.accumulate(errors), budget),
    )


def _padded(curve: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    """A curve with its last value repeated; zeros when nothing was asked."""
    if not len(curve):
        return np.zeros(length)
    return np.append(curve, np.full(length - len(curve), curve[-1]))
