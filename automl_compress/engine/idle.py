"""Kinds of genes that nothing a study states rewards, kept at their least compressed value.

Who minimises error and multiply-accumulates has nothing to gain from fewer bits: weights of 2 bits
cost accuracy and no multiply-accumulate less. Searched all the same, such genes would spoil every
network of the front.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from automl_compress.errors import StudyError
from automl_compress.space import Gene, Policy, SearchSpace

Cost = Callable[[Policy], Mapping[str, float]]


def idle_kinds(space: SearchSpace, cost: Cost, metrics: Collection[str]) -> tuple[str, ...]:
    """Kinds of genes that change none of some costs, from one end of their values to the other.

    Args:
        space: the space.
        cost: analytic costs of a policy.
        metrics: the costs that objectives and constraints name; where there is none, no kind is
            idle.
    """
    largest = space.largest
    before = cost(largest)

    def idle(kind: str) -> bool:
        smallest = {gene.name: gene.values[0] for gene in space if gene.kind == kind}
        after = cost(Policy({**largest, **smallest}))
        return all(after[name] == before[name] for name in metrics)

    kinds = {gene.kind: None for gene in space if len(gene) > 1}
    return tuple(kind for kind in kinds if metrics and idle(kind))


def without_idle_choices(
    space: SearchSpace, cost: Cost, metrics: Collection[str]
) -> tuple[SearchSpace, tuple[str, ...]]:
    """The space with idle kinds at their least compressed value, and these kinds.

    Args:
        space: the space.
        cost: analytic costs of a policy.
        metrics: the costs that objectives and constraints name.

    Raises:
        StudyError: nothing is left to choose.
    """
    kinds = idle_kinds(space, cost, metrics)
    if not kinds:
        return space, ()
    held = SearchSpace(
        [Gene(g.name, g.kind, g.values[-1:]) if g.kind in kinds else g for g in space]
    )
    if held.cardinality == 1:
        raise StudyError(
            f"an objective or constraint must reward what the space can change, but "
            f"{' and '.join(kinds)} change none of {', '.join(metrics)}; add size_bytes or bitops "
            "to the objectives, or channels to the space"
        )
    return held, kinds
