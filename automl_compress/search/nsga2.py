"""NSGA-II (Deb et al. 2002, A fast and elitist multiobjective genetic algorithm), on pymoo.

Genes are integers: uniform crossover and polynomial mutation work on the indices and are
rounded. Selection is by constraint domination, then rank and crowding.

Deviations from the paper:

1. The first population is drawn by `priors.scaled_indices`, stratified over the aggressiveness,
   with the least compressed policy in it. A uniform one holds no useful network in a space of
   many genes.
2. Generations overlap: children are made from whatever has been told so far, a few at a time,
   and the population is small. A search pays for some hundred evaluations, not for 25,000.
3. A child that was asked or told before, or that breaks a constraint on costs, which are known
   beforehand, is dropped and made again.
4. Besides the study's constraints, a loss well beyond the useful counts as a violation,
   so that ruined networks, which are never dominated because they are small, do not crowd out
   the useful ones (`Problem.ruinous_loss`). `keep_ruined=True` switches this off.

`nsga2-random` has none of these but the third: the first population is drawn uniformly, a
generation replaces as many as survive, and operators are those that pymoo's guide takes for
integers. It is what a user gets without thinking about compression.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2
from pymoo.core.crossover import Crossover
from pymoo.core.duplicate import DuplicateElimination
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.termination import NoTermination
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.crossover.ux import UniformCrossover
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair

from automl_compress.evaluate import Evaluation
from automl_compress.search.priors import (
    Draw,
    draw_new,
    mildest,
    scaled_indices,
    stratified_mildness,
)
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Indices, Policy

POPULATION: Final = 20
"""Survivors of each generation."""
MUTATED_GENES: Final = 3
"""Genes of a child that mutation moves, on average. Rounding moves most back: 1.0 of 20 genes is
changed where they have 6 to 8 values, 0.3 of 8 where they have 4. Where mutation always gave
one gene, on average, another value, `nsga2` had 2 to 4 % more hypervolume after 150 evaluations (35
tables and closed forms, 8 to 10 seeds), but `hybrid` had 1 % less of the plain and 4 % less of the
useful one after 60 (11 of these, 5 seeds or more)."""


class NSGA2(Strategy):
    """Non-dominated sorting genetic algorithm over integer genes.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        population: survivors of each generation.
        batch: children made from one state of the population.
        crossover: a pymoo crossover; works on indices, rounded afterwards.
        mutation: a pymoo mutation, likewise.
        keep_ruined: do not count a loss beyond the useful as a violation.
        scaled: draw policies by `priors.scaled_indices`; otherwise every gene uniformly.
        start: policies drawn for the first population; as many as survive when not given. With
            0, whoever composes this strategy tells it what to begin with.
    """

    def __init__(
        self,
        problem: Problem,
        seed: int,
        population: int = POPULATION,
        batch: int = 5,
        crossover: Crossover | None = None,
        mutation: Mutation | None = None,
        keep_ruined: bool = False,
        scaled: bool = True,
        start: int | None = None,
    ) -> None:
        super().__init__(problem, seed)
        self.batch = batch
        self._keep_ruined = keep_ruined
        self._scaled = scaled
        self._seen = Seen()
        self._mildest = mildest(problem)
        strata = stratified_mildness(self.rng, population if start is None else start)
        self._start = deque(map(float, strata))
        self._algorithm = PymooNSGA2(
            pop_size=population,
            n_offsprings=batch,
            crossover=crossover or UniformCrossover(prob=0.9),
            mutation=mutation
            or PM(
                prob=1.0,
                prob_var=min(0.5, MUTATED_GENES / len(problem.space)),
                eta=10,
                vtype=float,
                repair=RoundingRepair(),
            ),
            eliminate_duplicates=_Unseen(self),
        )
        self._algorithm.setup(_pymoo_problem(problem), seed=0)
        self._algorithm.termination = NoTermination()  # pymoo's NSGA2 ignores it as an argument
        self._algorithm.random_state = self.rng
        self._algorithm.mating.n_max_iterations = _MATINGS

    def ask(self, count: int) -> list[Policy]:
        """The first population, then children of the told; fewer when the space is exhausted."""
        asked: list[Policy] = []
        while len(asked) < count:
            missing = min(count - len(asked), self.batch)
            policies = self._first() if self._start else self._children(missing)
            if not policies:
                policies = self._drawn()
            if not policies:
                break
            asked += policies
        return asked

    def _first(self) -> list[Policy]:
        """The next policy of the first population; the very first is the least compressed."""
        mildness = self._start.popleft()
        if self._scaled and not len(self._seen) and self._mildest == 1.0:
            return self._new(lambda: self.problem.space.sizes - 1)
        return self._new(lambda: self._draw(mildness))

    def _children(self, count: int) -> list[Policy]:
        policies = self.offspring(count)
        for policy in policies:
            self._seen.add(policy)
        return policies

    def offspring(self, count: int) -> list[Policy]:
        """New children of the told, for whoever composes this strategy to choose from.

        They do not count as asked for, and may be made again. None before the first tell, and
        fewer when mating finds no more.
        """
        if not self._algorithm.is_initialized:
            return []
        self._algorithm.n_offsprings = count
        children = self._algorithm.ask()
        if children is None:  # nothing new was made; to pymoo that is the end, here it is not
            self._algorithm.termination.force_termination = False
            return []
        return [self._policy(child.X) for child in children]

    @property
    def has_started(self) -> bool:
        """Whether the first population is all asked for, and something was told."""
        return not self._start and bool(self._algorithm.is_initialized)

    def _drawn(self) -> list[Policy]:
        """A fresh draw, when nobody was told yet or no new child can be made."""
        mildness = float(self.rng.random())
        return self._new(lambda: self._draw(mildness))

    def _new(self, draw: Draw) -> list[Policy]:
        policy = draw_new(self.problem, self._seen, draw, self.rng)
        return [] if policy is None else [policy]

    def _draw(self, mildness: float) -> Indices:
        """Indices around a mildness, or anywhere."""
        if not self._scaled:
            return self.problem.space.sample(self.rng)
        return scaled_indices(self.problem.space, self.rng, mildness, self._mildest)

    def _policy(self, row: Any) -> Policy:
        indices: Indices = self.problem.space.repair(row)
        return self.problem.space.decode(indices)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Let what was evaluated, asked for or not, compete with the population."""
        if not evaluations:
            return
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
        rows = [self.problem.space.encode(e.policy).astype(float) for e in evaluations]
        told = Population.new("X", np.array(rows))
        told.set("F", np.array([self.problem.values(e) for e in evaluations]))
        told.set("G", np.array([self._excess(e) for e in evaluations]))
        self._algorithm.tell(infills=told)

    def skip_start(self) -> None:
        """Go on from what is told in place of a first population."""
        self._start.clear()

    def _excess(self, evaluation: Evaluation) -> list[float]:
        """Violations: of the constraints, of usefulness, and of having worked at all."""
        ruined = evaluation.minimised(self.problem.loss) - self.problem.ruinous_loss
        useless = 0.0 if self._keep_ruined or not evaluation.ok else max(0.0, ruined)
        broken = self.problem.violation(evaluation) if evaluation.ok else 0.0
        return [broken, useless, 0.0 if evaluation.ok else 1e3]

    def state_dict(self) -> State:
        """Generator, first population to come, survivors, and what was seen."""
        population = self._algorithm.pop
        filled = bool(self._algorithm.is_initialized)
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "start": list(self._start),
            "iteration": self._algorithm.n_iter,
            "population": {name: _column(population, name) for name in _CARRIED}
            if filled
            else None,
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._start = deque(state["start"])
        self._algorithm.n_iter = state["iteration"]
        self._algorithm.is_initialized = state["population"] is not None
        if state["population"] is not None:
            population = Population.new("X", state["population"]["X"])
            for name in _CARRIED[1:]:
                population.set(name, state["population"][name].astype(float))
            self._algorithm.pop = population


def plain(problem: Problem, seed: int) -> NSGA2:
    """NSGA-II as pymoo's guide sets it up for integers, begun uniformly at random."""
    kind = {"prob": 1.0, "eta": 3.0, "vtype": float, "repair": RoundingRepair()}
    return NSGA2(
        problem,
        seed,
        batch=POPULATION,
        crossover=SBX(**kind),
        mutation=PM(**kind),
        keep_ruined=True,
        scaled=False,
    )


_CARRIED = ("X", "F", "G", "rank", "crowding")
_MATINGS = 20
"""How often mating is tried for one ask before the prior is drawn from."""


def _column(population: Population, name: str) -> NDArray[np.float64]:
    """One attribute of all individuals; those that break constraints have no rank, so -1."""
    values = np.array(population.get(name), dtype=np.float64)
    return np.where(np.isnan(values), -1.0, values)


class _Unseen(DuplicateElimination):  # type: ignore[misc]
    """Drops children that were asked or told before, stand twice, or are known to cost too much."""

    def __init__(self, strategy: NSGA2) -> None:
        super().__init__()
        self._strategy = strategy

    def do(self, pop: Any, *others: Any, **_: Any) -> Any:
        """The individuals of `pop` that are new, pymoo's signature."""
        keys: set[str | None] = {None}
        keys.update(self._key(individual) for other in others for individual in other)
        new = []
        for place, individual in enumerate(pop):
            key = self._key(individual)
            if key not in keys:
                new.append(place)
            keys.add(key)
        return pop[new]

    def _key(self, individual: Any) -> str | None:
        """A key that is None for policies not to be tried, and tells all others apart."""
        policy = self._strategy._policy(individual.X)
        if policy in self._strategy._seen or self._strategy.problem.cost_violation(policy):
            return None
        return policy.key


def _pymoo_problem(problem: Problem) -> PymooProblem:
    sizes: NDArray[np.int64] = problem.space.sizes
    return PymooProblem(
        n_var=len(sizes),
        n_obj=len(problem.objectives),
        n_ieq_constr=3,
        xl=np.zeros(len(sizes)),
        xu=(sizes - 1).astype(float),
        vtype=float,
    )
