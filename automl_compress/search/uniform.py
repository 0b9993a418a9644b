"""The line every user draws first: the same ratio and the same bits everywhere."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from automl_compress.evaluate import Evaluation
from automl_compress.search.strategy import Problem, State, Strategy
from automl_compress.space import Gene, Kind, Policy, SearchSpace

NEAR: Final = 0.02
"""Share of the range of a kind's values below which a difference is of no interest."""


def uniform_policies(space: SearchSpace) -> list[Policy]:
    """All policies that treat every gene of a kind alike, those that tell most first.

    Channel genes share the ratio to their largest value, bit genes the bits; each gene takes its
    nearest value. The order starts at the least compressed corner and goes on with whichever
    policy is farthest from all before it.
    """
    kinds = dict.fromkeys(gene.kind for gene in space)
    levels = [[(kind, level) for level in _levels(space, kind)] for kind in kinds]
    found: dict[Policy, tuple[float, ...]] = {}
    for combination in itertools.product(*levels):
        chosen = dict(combination)
        policy = Policy({gene.name: _nearest(gene, chosen[gene.kind]) for gene in space})
        found.setdefault(policy, tuple(_mildness(kind, level) for kind, level in combination))
    return list(_farthest_first(found))


def _levels(space: SearchSpace, kind: Kind) -> list[float]:
    """Relative values that occur in the genes of a kind, largest last.

    Rounding makes many of one ratio. Of those within `NEAR` of each other, the commonest counts.
    """
    found = Counter(value / _scale(g) for g in space if g.kind == kind for value in g.values)
    near = NEAR * (max(found) - min(found))
    levels: list[float] = []
    for level, _ in found.most_common():
        if all(abs(level - other) >= near for other in levels):
            levels.append(level)
    return sorted(levels)


def _mildness(kind: Kind, level: float) -> float:
    """A level as a number that grows as compression lessens."""
    return -level if kind == "kernel_sparsity" else level


def _scale(gene: Gene) -> float:
    """What a gene's values are shares of: its channels; bits and sparsities stand as they are."""
    return float(max(gene.values)) if gene.kind == "channels" else 1.0


def _nearest(gene: Gene, level: float) -> int | float:
    target = level * _scale(gene)
    return min(gene.values, key=lambda value: abs(value - target))


def _farthest_first(points: dict[Policy, tuple[float, ...]]) -> Iterator[Policy]:
    policies = list(points)
    places = np.array(list(points.values()), dtype=np.float64)
    span = places.max(axis=0) - places.min(axis=0)
    places = (places - places.min(axis=0)) / np.where(span > 0, span, 1.0)
    nearest = np.full(len(policies), np.inf)
    current = int(np.argmax(places.sum(axis=1)))
    for _ in policies:
        yield policies[current]
        nearest = np.minimum(nearest, np.linalg.norm(places - places[current], axis=1))
        nearest[current] = -1.0
        current = int(np.argmax(nearest))


class Uniform(Strategy):
    """Walks through the uniform policies; the seed changes nothing."""

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self._line = [p for p in uniform_policies(problem.space) if not problem.cost_violation(p)]
        self._next = 0

    def ask(self, count: int) -> list[Policy]:
        """The next policies of the line; fewer at its end."""
        asked = self._line[self._next : self._next + count]
        self._next += len(asked)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """The line does not learn."""

    def state_dict(self) -> State:
        """How far it has come."""
        return {"next": self._next}

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self._next = state["next"]
