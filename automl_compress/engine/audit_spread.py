"""Which policies an audit measures: along a study's front, off it, and in budget bands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.errors import nothing_found
from automl_compress.evaluate import (
    USEFUL_LOSS,
    Evaluation,
    beyond,
    minimised_metrics,
    useful_baseline,
)
from automl_compress.ledger import StudyResult
from automl_compress.space import Policy, SearchSpace

BANDS: Final = 4
TOLERANCE: Final = 0.05
"""How far bytes and multiply-accumulates of a band's policies may lie from its centre's."""
_IN_BANDS: Final = 0.6
_ON_FRONT: Final = 0.5
_MOVES: Final = (1 / 8, 1 / 4, 1 / 2, 1)
"""How often a gene is raised and another lowered on the way from a band's centre to its policies,
in turn, as shares of the number of genes."""
_TRIES: Final = 30

Costs = Callable[[Policy], Mapping[str, float]]


@dataclass(frozen=True)
class Audited:
    """A policy of an audit.

    Args:
        policy: what is measured.
        group: `front`, `off the front` or `band`.
        band: number of its band from 1, the smallest first; 0 for none.
    """

    policy: Policy
    group: str
    band: int = 0


def spread(
    result: StudyResult, space: SearchSpace, cost: Costs, total: int, seed: int
) -> list[Audited]:
    """A stratified spread of policies: along the front, off it, and in budget bands.

    Args:
        result: the study; its usable evaluations are drawn from.
        space: the study's.
        cost: exact costs of a policy by name.
        total: policies in all, fewer where the study has not so many.
        seed: of what is drawn.

    Raises:
        StudyError: the study has no front.
    """
    found = list(result.usable_evaluations().values())
    front = {point.policy.key for point in result.front()}
    on = sorted((e for e in found if e.policy.key in front), key=_size)
    off = sorted((e for e in found if e.policy.key not in front), key=_error)
    if not on:
        finished = result.manifest.status == "finished"
        need = "an audit needs a study that found a front"
        raise nothing_found(need, result.folder, finished=finished)
    in_bands = round(_IN_BANDS * total)
    beside = total - in_bands
    chosen = [Audited(e.policy, "front") for e in _evenly(on, round(_ON_FRONT * beside))]
    chosen += [Audited(e.policy, "off the front") for e in _evenly(off, beside - len(chosen))]
    manifest = result.manifest
    start = useful_baseline(minimised_metrics(manifest.baseline), manifest.sparsity_loss)
    limit = start["error"] + USEFUL_LOSS
    useful = [e for e in on if beyond("error", _error(e), limit) <= 0] or on
    rng = np.random.default_rng(seed)
    counts = [in_bands // BANDS + (band < in_bands % BANDS) for band in range(BANDS)]
    taken = {audited.policy.key for audited in chosen}
    for band, (centre, count) in enumerate(zip(_centres(useful), counts, strict=True), 1):
        policies = _band(centre.policy, found, count, space, cost, rng, taken)
        taken |= {policy.key for policy in policies}
        chosen += [Audited(policy, "band", band) for policy in policies]
    return chosen


def _size(evaluation: Evaluation) -> float:
    return evaluation.metrics["size_bytes"]


def _error(evaluation: Evaluation) -> float:
    return evaluation.minimised("error")


def _evenly(evaluations: Sequence[Evaluation], count: int) -> list[Evaluation]:
    """At most `count` of them, evenly spaced, the first and the last among them."""
    if len(evaluations) <= count:
        return list(evaluations)
    rows = np.linspace(0, len(evaluations) - 1, count).round().astype(int)
    return [evaluations[row] for row in rows]


def _centres(front: Sequence[Evaluation]) -> list[Evaluation]:
    """A front's points nearest to the middles of `BANDS` equal steps in log bytes."""
    sizes = np.log([_size(e) for e in front])
    low, high = sizes.min(), sizes.max()
    middles = low + (high - low) * (np.arange(BANDS) + 0.5) / BANDS
    return [front[int(np.argmin(np.abs(sizes - middle)))] for middle in middles]


def _band(
    centre: Policy,
    found: Sequence[Evaluation],
    count: int,
    space: SearchSpace,
    cost: Costs,
    rng: np.random.Generator,
    taken: Iterable[str],
) -> list[Policy]:
    """Policies of nearly equal bytes and multiply-accumulates, half of the race's where it can.

    The others are the centre with some genes raised and as many lowered.
    """
    goal = np.array(_budget(cost(centre)))
    members = {centre.key: centre} if centre.key not in set(taken) else {}
    known = [
        e
        for e in sorted(found, key=_error)
        if e.policy.key not in members and e.policy.key not in set(taken)
        and _near(_budget(e.metrics), goal)
    ]  # fmt: skip
    for evaluation in _evenly(known, (count - len(members)) // 2):
        members[evaluation.policy.key] = evaluation.policy
    for place in range(_TRIES * count):
        if len(members) >= count:
            break
        policy = _moved(
            centre, max(1, round(_MOVES[place % len(_MOVES)] * len(space))), space, cost, goal, rng
        )
        if policy.key not in set(taken):
            members.setdefault(policy.key, policy)
    return list(members.values())[:count]


def _budget(costs: Mapping[str, float]) -> tuple[float, float]:
    return costs["size_bytes"], costs["macs"]


def _near(budget: tuple[float, float], goal: NDArray[np.float64]) -> bool:
    return bool((np.abs(np.array(budget) / goal - 1.0) <= TOLERANCE).all())


def _moved(
    centre: Policy,
    moves: int,
    space: SearchSpace,
    cost: Costs,
    goal: NDArray[np.float64],
    rng: np.random.Generator,
) -> Policy:
    """A policy some exchanges away that costs nearly the same; the centre when none was found."""
    indices = space.encode(centre)
    done = 0
    for _ in range(_TRIES * moves):
        if done == moves or len(space) < 2:
            break
        trial = indices.copy()
        lowered, raised = rng.choice(len(space), 2, replace=False)
        trial[lowered] -= 1
        trial[raised] += 1
        if trial[lowered] < 0 or trial[raised] >= space.sizes[raised]:
            continue
        if _near(_budget(cost(space.decode(trial))), goal):
            indices, done = trial, done + 1
    return space.decode(indices)
