"""How policies are drawn where hardly any meets the constraints on costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from automl_compress.evaluate import Constraint
from automl_compress.search import Problem
from automl_compress.search.priors import draw_new
from automl_compress.search.strategy import Seen
from automl_compress.space import Gene, Policy, SearchSpace

SMALL, LARGE = 6, 9  # genes of four values: 4096 policies, and more than are listed
MEETING = 7  # policies that meet the constraint


def _problem(genes: int, limit: float = 3.0) -> Problem:
    """The first gene costs 1 a step, the next 2, and so on; the most compressed policy, nothing."""
    space = SearchSpace([Gene(f"channels:{n}", "channels", (1, 2, 3, 4)) for n in range(genes)])

    def cost(policy: Policy) -> dict[str, float]:
        kept = enumerate(policy.values(), start=1)
        return {"macs": float(sum(step * (value - 1) for step, value in kept))}

    whole = {"error": 0.1, **cost(space.largest)}
    return Problem(space, ("error", "macs"), whole, cost, (Constraint("macs", limit),))


def _drawing(problem: Problem, seen: Seen) -> Callable[[], Policy | None]:
    """Draws of a strategy that wants nothing but what is least compressed."""
    rng = np.random.default_rng(0)
    return lambda: draw_new(problem, seen, lambda: problem.space.sizes - 1, rng)


@pytest.mark.parametrize("genes", [SMALL, LARGE])
def test_what_meets_the_constraints_comes_before_all_else(genes: int) -> None:
    problem, seen = _problem(genes), Seen()
    draw = _drawing(problem, seen)
    drawn = [draw() for _ in range(MEETING + 2)]
    assert None not in drawn
    assert len(set(drawn)) == len(drawn)
    excess = [problem.cost_violation(policy) for policy in drawn if policy is not None]
    assert excess[:MEETING] == [0.0] * MEETING
    assert min(excess[MEETING:]) > 0


def test_what_breaks_them_least_comes_first_where_nothing_meets_them() -> None:
    problem = _problem(SMALL, limit=-1.0)
    draw = _drawing(problem, Seen())
    drawn = [draw() for _ in range(5)]
    assert [problem.cost(p)["macs"] for p in drawn if p is not None] == [0, 1, 2, 2, 3]


def test_a_space_is_walked_once() -> None:
    problem, computed = _problem(SMALL), 0

    def counted(policy: Policy) -> Mapping[str, float]:
        nonlocal computed
        computed += 1
        return problem.cost(policy)

    draw = _drawing(replace(problem, cost=counted), Seen())
    for _ in range(MEETING + 1):
        draw()
    walked, computed = computed, 0
    draw()
    assert computed < problem.space.cardinality / 2 < walked


@pytest.mark.parametrize("told", [2, MEETING - 2, MEETING + 1])
def test_drawing_goes_on_from_what_was_seen(told: int) -> None:
    problem = _problem(SMALL)
    seen, other = Seen(), Seen()
    draw = _drawing(problem, seen)
    for _ in range(told):
        draw()
    other.load_state_dict(seen.state_dict())
    draw, other_draw = _drawing(problem, seen), _drawing(problem, other)
    assert [draw() for _ in range(3)] == [other_draw() for _ in range(3)]
