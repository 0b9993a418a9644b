"""Where searches start: ways to draw policies that are worth a first look."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator
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
_LOWERINGS: Final = 10
_HALVINGS: Final = 10

Draw = Callable[[], Indices]


def scaled_indices(
    space: SearchSpace,
    rng: np.random.Generator,
    mildness: float,
    limit: float = 1.0,
    spread: float | None = None,
) -> Indices:
    """Genes drawn around one mildness, so that the whole network is cut about equally hard.

    Genes drawn independently and uniformly always make a network of middling size with some
    ruined layer in it; drawing how hard to compress first covers small and large ones. The fewer
    genes, the wider they scatter: with five, networks cut evenly are a small part of the good ones.

    Where constraints on costs bind, what matters lies at their limit, and networks with genes far
    apart are milder there than those cut evenly. So the tighter the limit, the more draws come
    near it or beyond, for `draw_new` cuts those to fit, and the wider genes scatter. That is for
    evolution, agents and chance; strategies that learn a model of the error over all genes want
    draws from all that is allowed, and give a mildness below the limit instead: of ResNet-20 at
    40 % of the multiply-accumulates `hybrid` had 0.583 of plain hypervolume after 60 evaluations,
    and 0.563 with draws at the limit (four seeds).

    Args:
        space: the search space.
        rng: source of chance.
        mildness: in [0, 1], as a rank among what the limit allows; 0 compresses most.
        limit: from `mildest`; 1 where draws are to come evenly from all that is allowed.
        spread: standard deviation of genes; by their number and the limit when not given.
    """
    if spread is None:
        spread = max(SPREAD * (2.0 - limit), WIDENED / len(space))
    centre = limit**0.5 * mildness**limit
    return space.from_unit(centre + spread * rng.standard_normal(len(space)))


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
    return low


def draw_new(problem: Problem, seen: Seen, draw: Draw, rng: np.random.Generator) -> Policy | None:
    """A policy nobody asked for that meets the constraints on costs; None when there is none.

    When draws keep breaking the constraints, they are cut harder everywhere until they do not, and
    where that finds nothing new, single genes of theirs are lowered. When drawing finds nothing
    new, large spaces are drawn from uniformly. Where all of that fails, what meets the constraints
    is listed. When nothing does, the policy found that breaks them least is given.

    Args:
        problem: space and constraints.
        seen: what was tried; the result is added.
        draw: draws indices.
        rng: source of chance for the uniform draws, and for which genes are lowered.
    """
    excess, found = _drawn(problem, seen, draw)
    if found is None and _is_large(problem):
        excess, found = _drawn(problem, seen, lambda: problem.space.sample(rng))
    if excess > 0:
        found = _lowered_to_fit(problem, seen, found, rng) or _listed(problem, seen) or found
    if found is not None:
        seen.add(found)
    return found


def _is_large(problem: Problem) -> bool:
    """Whether a space has too many policies to list them all."""
    return problem.space.cardinality > _LISTED


def _drawn(problem: Problem, seen: Seen, draw: Draw) -> tuple[float, Policy | None]:
    """The first new draw that meets the constraints, or the one that breaks them least, and how."""
    least: float = np.inf
    best: Policy | None = None
    too_costly = 0
    for _ in range(_TRIES):
        indices = draw()
        if too_costly >= _TOO_COSTLY:
            indices = _cut_to_fit(problem, indices)
        policy = problem.space.decode(indices)
        if policy in seen:
            continue
        excess = problem.cost_violation(policy)
        if excess < least:
            least, best = excess, policy
        if excess == 0:
            break
        too_costly += 1
    return least, best


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


def lowered(indices: Indices, genes: NDArray[np.int64]) -> Indices:
    """Indices with some genes lowered by one step, those that come twice by two."""
    levels = indices.copy()
    np.subtract.at(levels, genes, 1)
    return levels


def steps_to_fit(
    indices: Indices, order: NDArray[np.int64], fits: Callable[[Indices], bool]
) -> int:
    """How many genes, the first of an order, must be lowered by one step until indices fit.

    All of them where nothing fits. Costs never rise when a gene shrinks.
    """
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(lowered(indices, order[:middle])) else (middle + 1, high)
    return low


def _lowered_to_fit(
    problem: Problem, seen: Seen, policy: Policy | None, rng: np.random.Generator
) -> Policy | None:
    """A new policy that meets the constraints: one with single genes lowered until it does.

    Which genes is drawn, some times over; None when it leads to nothing new.
    """
    if policy is None:
        return None
    space = problem.space
    indices = space.encode(policy)
    genes = np.repeat(np.arange(len(space)), indices)

    def fits(levels: Indices) -> bool:
        return problem.cost_violation(space.decode(levels)) == 0

    for _ in range(_LOWERINGS):
        order = rng.permutation(genes)
        levels = lowered(indices, order[: steps_to_fit(indices, order, fits)])
        if space.decode(levels) not in seen and fits(levels):
            return space.decode(levels)
    return None


def _listed(problem: Problem, seen: Seen) -> Policy | None:
    """The first new policy of a list, which is walked once."""
    if seen.listed is None:
        seen.listed = _raised(problem) if _is_large(problem) else _by_excess(problem)
    return next((policy for policy in seen.listed if policy not in seen), None)


def _by_excess(problem: Problem) -> Iterator[Policy]:
    """A small space: what meets the constraints on costs, then what breaks them least."""
    breaking: list[tuple[float, tuple[int, ...]]] = []
    for indices in itertools.product(*map(range, problem.space.sizes)):
        policy = problem.space.decode(np.array(indices))
        excess = problem.cost_violation(policy)
        if excess == 0:
            yield policy
        else:
            breaking.append((excess, indices))
    for _, indices in sorted(breaking):
        yield problem.space.decode(np.array(indices))


def _raised(problem: Problem) -> Iterator[Policy]:
    """What meets the constraints on costs in a large space, the most compressed first.

    Costs never rise when a gene shrinks, so that raising single genes of what meets them finds it
    all. No gene before the last that was raised is raised, so that nothing is found twice.
    """
    sizes = problem.space.sizes
    waiting = deque([np.zeros(len(sizes), dtype=np.int64)])
    while waiting:
        indices = waiting.popleft()
        policy = problem.space.decode(indices)
        if problem.cost_violation(policy) > 0:
            continue
        yield policy
        last = int(np.flatnonzero(indices)[-1]) if indices.any() else 0
        for gene in range(last, len(sizes)):
            if indices[gene] + 1 < sizes[gene]:
                higher = indices.copy()
                higher[gene] += 1
                waiting.append(higher)
