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
"""Least standard deviation of genes around the drawn aggressiveness, in the unit cube."""
WIDENED: Final = 2.236
"""The same where genes are few, times their number: the narrow spread is for more than fifteen."""
MOVED: Final = 3.0
"""Genes that a neighbour differs in, on average at most."""
FAR: Final = 0.25
"""Chance that a moved gene moves on by another step."""
TOGETHER: Final = 0.15
"""Standard deviation of what all genes of a kind are shifted by, in the unit cube."""
APART: Final = 0.05
"""Standard deviation of what each gene is shifted by besides."""
_TRIES: Final = 100
_TOO_COSTLY: Final = 10
_LISTED: Final = 100_000
_HALVINGS: Final = 10

Draw = Callable[[], Indices]


def scaled_indices(
    space: SearchSpace, rng: np.random.Generator, mildness: float, spread: float | None = None
) -> Indices:
    """Genes drawn around one mildness, so that the whole network is cut about equally hard.

    Genes drawn independently and uniformly always make a network of middling size with some
    ruined layer in it; drawing how hard to compress first covers small and large ones. The fewer
    genes, the wider they scatter: with five, networks cut evenly are a small part of the good ones.

    Args:
        space: the search space.
        rng: source of chance.
        mildness: in [0, 1]; 0 compresses most.
        spread: standard deviation around it; by the number of genes when not given.
    """
    if spread is None:
        spread = max(SPREAD, WIDENED / len(space))
    return space.from_unit(mildness + spread * rng.standard_normal(len(space)))


def moved(space: SearchSpace, rng: np.random.Generator, base: Indices) -> Indices:
    """A neighbour: one gene or a few of a policy moved up or down.

    Args:
        space: the search space.
        rng: source of chance.
        base: (n_genes,) the policy's indices.
    """
    sizes = space.sizes
    free = np.flatnonzero(sizes > 1)
    if not len(free):
        return base
    most = max(1.0, min(MOVED, len(free) / 2))
    count = min(len(free), int(rng.geometric(1.0 / most)))
    chosen = rng.choice(free, size=count, replace=False)
    steps = rng.geometric(1.0 - FAR, size=count) * rng.choice([-1, 1], size=count)
    neighbour = base.copy()
    neighbour[chosen] = np.clip(base[chosen] + steps, 0, sizes[chosen] - 1)
    return neighbour


def shifted(space: SearchSpace, rng: np.random.Generator, base: Indices) -> Indices:
    """A relative: all genes of a kind cut harder or milder together, each kind by its own amount.

    A hundred genes moved a few at a time stay near the costs they have; this goes far, and finds
    how much of each kind's compression goes with how much of another's.

    Args:
        space: the search space.
        rng: source of chance.
        base: (n_genes,) the policy's indices.
    """
    kinds = list(dict.fromkeys(gene.kind for gene in space))
    together = TOGETHER * rng.standard_normal(len(kinds))
    shift = together[[kinds.index(gene.kind) for gene in space]]
    return space.from_unit(space.to_unit(base) + shift + APART * rng.standard_normal(len(space)))


def stratified_mildness(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """(count,) numbers, one in each of `count` equal parts of [0, 1], shuffled."""
    return rng.permutation((np.arange(count) + rng.random(count)) / count)


def mildest(problem: Problem) -> float:
    """Largest mildness in [0, 1] at which cutting all genes alike meets the constraints on costs.

    1 without such constraints.
    """

    def breaks(mildness: float) -> bool:
        point = np.full(len(problem.space), mildness)
        return problem.cost_violation(problem.space.decode(problem.space.from_unit(point))) > 0

    if not breaks(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if breaks(middle) else (middle, high)
    return high


def draw_new(problem: Problem, seen: Seen, draw: Draw, rng: np.random.Generator) -> Policy | None:
    """A policy nobody asked for that meets the constraints on costs; None when there is none.

    When draws keep breaking the constraints, they are cut harder everywhere until they do not.
    When drawing finds nothing new, small spaces are listed, and large ones drawn from uniformly.
    When nothing meets the constraints, the policy found that breaks them least is given.

    Args:
        problem: space and constraints.
        seen: what was tried; the result is added.
        draw: draws indices.
        rng: source of chance for the uniform draws.
    """
    found = _drawn(problem, seen, draw)
    if found is None and problem.space.cardinality > _LISTED:
        found = _drawn(problem, seen, lambda: problem.space.sample(rng))
    elif found is None:
        found = _listed(problem, seen)
    if found is not None:
        seen.add(found)
    return found


def _drawn(problem: Problem, seen: Seen, draw: Draw) -> Policy | None:
    best: tuple[float, Policy] | None = None
    too_costly = 0
    for _ in range(_TRIES):
        indices = draw()
        if too_costly >= _TOO_COSTLY:
            indices = _cut_to_fit(problem, indices)
        policy = problem.space.decode(indices)
        if policy in seen:
            continue
        excess = problem.cost_violation(policy)
        if best is None or excess < best[0]:
            best = (excess, policy)
        if excess == 0:
            break
        too_costly += 1
    return None if best is None else best[1]


def _cut_to_fit(problem: Problem, indices: Indices) -> Indices:
    """Indices scaled down by one factor, as little as the constraints on costs ask for."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        cut = np.floor(indices * middle).astype(np.int64)
        fits = problem.cost_violation(problem.space.decode(cut)) == 0
        low, high = (middle, high) if fits else (low, middle)
    fitting: Indices = np.floor(indices * low).astype(np.int64)
    return fitting


def _listed(problem: Problem, seen: Seen) -> Policy | None:
    """The first unseen policy of a small space that breaks the constraints on costs least."""
    best: tuple[float, Policy] | None = None
    for indices in itertools.product(*(range(size) for size in problem.space.sizes)):
        policy = problem.space.decode(np.array(indices))
        if policy in seen:
            continue
        excess = problem.cost_violation(policy)
        if best is None or excess < best[0]:
            best = (excess, policy)
        if excess == 0:
            break
    return None if best is None else best[1]
