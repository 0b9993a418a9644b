"""What each part of `hybrid` contributes: races with one part switched off at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.engine.replay import curves
from automl_compress.evaluate import Evaluation, references
from automl_compress.evaluate.estimator import Estimator, answer
from automl_compress.evaluate.recorded import Simulation
from automl_compress.pareto import Reference
from automl_compress.search import Problem
from automl_compress.search.hybrid import MEMBERS, Hybrid
from automl_compress.search.strategy import Strategy
from automl_compress.testing import ToyEstimator, ToyNetwork

Array = NDArray[np.float64]

WHOLE: Final = "hybrid"
PARTS: Final[Mapping[str, Mapping[str, Any]]] = {
    WHOLE: {},
    "without screening": {"screening": False},
    "without shifting": {"shifting": False},
    "without breeding": {"breeding": False},
    "without sharing": {"sharing": False},
    "without the bandit": {"bandit": False},
    "without the common start": {"start": None},
    **{
        f"without {name}": {"members": tuple(member for member in MEMBERS if member != name)}
        for name in MEMBERS
    },
}
"""Settings of `Hybrid` by what is switched off. Without `knapsack` the start is still its."""
TOY: Final = ToyNetwork(layers=45, channels=(4, 6, 8, 10, 12, 14, 16), harm=8.0)
"""A chain whose layers' harms add up, of 90 genes."""


class Landscape:
    """A problem, who answers, and what hypervolume counts.

    Args:
        problem: what is searched.
        estimator: answers.
        scale: reference of the hypervolume, and the share of its box that counts as 1.
        judged_by: the quality of the answers, see `QUALITIES`.
    """

    def __init__(
        self,
        problem: Problem,
        estimator: Estimator,
        scale: tuple[Reference, float],
        judged_by: str = "accuracy",
    ) -> None:
        self.problem = problem
        self.judged_by = judged_by
        self._estimator = estimator
        self._scale = scale

    @classmethod
    def of_table(cls, table: Simulation, problem: Problem) -> Landscape:
        """A recorded table, or the surrogate of a ledger, and its own scale."""
        scale = table.scale(problem.objectives, problem.constraints)
        return cls(problem, table, scale, table.judged_by)

    @classmethod
    def of_toy(cls, network: ToyNetwork = TOY) -> Landscape:
        """A toy: useful hypervolume of error, bytes and multiply-accumulates."""
        problem = network.problem()
        _, useful = references(problem.objectives, problem.baseline)
        return cls(problem, ToyEstimator(network), (useful, 1.0))

    def race(self, strategy: Strategy, budget: int) -> Array:
        """(2, budget) hypervolume and best quality after each evaluation.

        Where the space ends earlier, their last values stay.
        """
        told: list[Evaluation] = []
        while len(told) < budget:
            asked = strategy.ask(min(strategy.batch, budget - len(told)))
            if not asked:
                break
            evaluations = [answer(self._estimator, policy) for policy in asked]
            strategy.tell(evaluations)
            told += evaluations
        return np.stack(curves(told, self.problem, self._scale, budget))


def ablate(
    landscape: Landscape, seeds: int, budget: int, listener: Callable[[str], None]
) -> dict[str, Array]:
    """(2, seeds, budget) hypervolume and best accuracy of every variant of `PARTS`.

    Args:
        landscape: where they race.
        seeds: how many, from 0; the same for all.
        budget: evaluations of each.
        listener: hears of each variant before it races.
    """
    raced = {}
    for name, settings in PARTS.items():
        listener(name)
        strategies: Sequence[Strategy] = [
            Hybrid(landscape.problem, seed, **settings) for seed in range(seeds)
        ]
        raced[name] = np.stack([landscape.race(s, budget) for s in strategies], axis=1)
    return raced
