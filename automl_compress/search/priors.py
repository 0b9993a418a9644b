"""Where searches start: ways to draw policies that are worth a first look."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.strategy import Problem, Seen
from automl_compress.space import Indices, Policy, SearchSpace

SPREAD: Final = 0.15
"""Standard deviation of genes around the drawn aggressiveness, in the unit cube."""
_TRIES: Final = 100
_LISTED: Final = 100_000

Draw = Callable[[], Indices]


def scaled_indices(
    space: SearchSpace, rng: np.random.Generator, mildness: float, spread: float = SPREAD
) -> Indices:
    """Genes drawn around one mildness, so that the whole network is cut about equally hard.

    Genes drawn independently and uniformly always make a network of middling size with some
    ruined layer in it; drawing how hard to compress first covers small and large ones.

    Args:
        space: the search space.
        rng: source of chance.
        mildness: in [0, 1]; 0 compresses most.
        spread: standard deviation around it.
    """
    return space.from_unit(mildness + spread * rng.standard_normal(len(space)))


def stratified_mildness(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count,) numbers, one in each of `count` equal parts of [0, 1], shuffled."""
    return rng.permutation((np.arange(count) + rng.random(count)) / count)


def draw_new(problem: Problem, seen: Seen, draw: Draw) -> Policy | None:
    """A policy nobody asked for that meets the constraints on costs; None when there is none.

    When drawing finds nothing new, small spaces are listed; when nothing drawn meets the
    constraints, the policy that breaks them least is given.

    Args:
        problem: space and constraints.
        seen: what was tried; the result is added.
        draw: draws indices.
    """
    best: tuple[float, Policy] | None = None
    for _ in range(_TRIES):
        policy = problem.space.decode(draw())
        if policy in seen:
            continue
        excess = problem.cost_violation(policy)
        if best is None or excess < best[0]:
            best = (excess, policy)
        if excess == 0:
            break
    found = best[1] if best is not None else _first_unseen(problem, seen)
    if found is not None:
        seen.add(found)
    return found


def _first_unseen(problem: Problem, seen: Seen) -> Policy | None:
    if problem.space.cardinality > _LISTED:
        return None
    for indices in itertools.product(*(range(size) for size in problem.space.sizes)):
        policy = problem.space.decode(np.array(indices))
        if policy not in seen:
            return policy
    return None
