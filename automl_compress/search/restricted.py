"""Searching a part of a space: some genes are decided, the others stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from automl_compress.evaluate import Evaluation
from automl_compress.search.priors import mildest
from automl_compress.search.strategy import Problem, State, Strategy
from automl_compress.space import Indices, Kind, Policy, SearchSpace

Builder = Callable[[Problem, int], Strategy]

_HALVINGS: Final = 10
_HALF_CUT: Final = 0.5


def genes_of(problem: Problem, kinds: Sequence[Kind]) -> list[int]:
    """Positions of the genes of some kinds; of all genes where none of them has a choice."""
    found = [place for place, gene in enumerate(problem.space) if gene.kind in kinds]
    chosen = any(len(problem.space.genes[place]) > 1 for place in found)
    return found if chosen else list(range(len(problem.space)))


def least_compressed(problem: Problem, free: Sequence[int], hardest: float = _HALF_CUT) -> Indices:
    """(n_genes,) the mildest uniform cut of all other genes that leaves the free ones a choice.

    Without constraints on costs it is the least compressed policy. With them, they are met when
    the free genes are cut by half, or else as hard as `hardest`. Where that is not enough, the
    others are cut too, but never harder than where all genes are cut alike: what nobody decides
    any more must not bear most of the cut.

    Args:
        problem: what is searched.
        free: positions of the genes that something else decides.
        hardest: least mildness of the free genes for the others' sake, in [0, 0.5].
    """
    space = problem.space

    def at(mildness: float, of_free: float) -> Indices:
        point = np.full(len(space), mildness)
        point[list(free)] = of_free
        return space.from_unit(point)

    def breaks(mildness: float, of_free: float) -> bool:
        return problem.cost_violation(space.decode(at(mildness, of_free))) > 0

    for of_free in (_HALF_CUT, hardest):
        if not breaks(1.0, of_free):
            return at(1.0, of_free)
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if breaks(middle, hardest) else (middle, high)
    alike = mildest(problem)
    return at(alike, alike) if alike > low else at(low, hardest)


class Restricted(Strategy):
    """A strategy that decides some genes of a problem and leaves the others fixed.

    Its strategy sees a problem of the free genes only, with the costs of whole networks. It is
    told the evaluations whose other genes are as they are fixed.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        build: makes the strategy of the free genes.
        free: positions of the genes it decides, at least one.
        fixed: (n_genes,) indices of all genes; those of free genes are not read.
    """

    def __init__(
        self, problem: Problem, seed: int, build: Builder, free: Sequence[int], fixed: Indices
    ) -> None:
        super().__init__(problem, seed)
        self._free = list(free)
        genes = problem.space.genes
        values = problem.space.decode(fixed)
        names = {genes[place].name for place in free}
        self._fixed = {name: value for name, value in values.items() if name not in names}
        self._names = list(values)  # sorted, as a policy holds them
        self._part = build(self._restrict(problem), seed)
        self.batch = self._part.batch

    def _restrict(self, problem: Problem) -> Problem:
        count = len(problem.space)
        return replace(
            problem,
            space=SearchSpace([problem.space.genes[place] for place in self._free]),
            cost=lambda policy: problem.cost(self._whole(policy)),
            features=problem.features[self._free]
            if len(problem.features) == count
            else problem.features,
            sensitivity=problem.sensitivity[self._free]
            if len(problem.sensitivity) == count
            else problem.sensitivity,
        )

    def _whole(self, policy: Policy) -> Policy:
        chosen = {**self._fixed, **policy.to_dict()["genes"]}
        return Policy.trusted({name: chosen[name] for name in self._names})

    def fits(self, evaluation: Evaluation) -> bool:
        """Whether the genes that are not free are as they are fixed."""
        return all(evaluation.policy[name] == value for name, value in self._fixed.items())

    def _own(self, evaluation: Evaluation) -> Evaluation:
        names = [self.problem.space.genes[place].name for place in self._free]
        return replace(evaluation, policy=Policy({n: evaluation.policy[n] for n in names}))

    def ask(self, count: int) -> list[Policy]:
        """What the strategy asks for, with the fixed genes; nothing when its part is exhausted."""
        return [self._whole(policy) for policy in self._part.ask(count)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell the strategy what fits."""
        self._part.tell([self._own(e) for e in evaluations if self.fits(e)])

    def plan(self) -> list[str]:
        """What the strategy sets out to do with the free genes."""
        return self._part.plan()

    def skip_start(self) -> None:
        """As the strategy does."""
        self._part.skip_start()

    def state_dict(self) -> State:
        """The strategy's state."""
        return {"part": self._part.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self._part.load_state_dict(state["part"])
