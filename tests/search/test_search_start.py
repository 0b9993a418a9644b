from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from automl_compress.evaluate import Constraint
from automl_compress.search import build_strategy
from automl_compress.search.start import Start
from automl_compress.search.strategy import Problem, Seen
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=6)


def _mildness(problem: Problem, count: int) -> list[float]:
    start, seen = Start(problem, np.random.default_rng(0), count), Seen()
    drawn = [start.draw(seen) for _ in range(count)]
    space = NETWORK.space
    return [float(space.to_unit(space.encode(p)).mean()) for p in drawn if p is not None]


def test_draws_cover_all_strata_after_the_least_compressed() -> None:
    found = _mildness(NETWORK.problem(), 20)
    assert found[0] == NETWORK.space.to_unit(NETWORK.space.sizes - 1).mean()
    counts, _ = np.histogram(found[1:], bins=4, range=(0, 1))
    assert counts.min() >= 3


def test_constraints_hold_from_the_first_draw_on() -> None:
    problem = NETWORK.problem(constraints=["size_bytes <= 0.1x"])
    start, seen = Start(problem, np.random.default_rng(0), 10), Seen()
    for _ in range(15):  # more than there are strata
        policy = start.draw(seen)
        assert policy is not None
        assert problem.cost_violation(policy) == 0


def _shares_of_limit(near_limit: bool) -> np.ndarray:
    problem = NETWORK.problem(constraints=["size_bytes <= 0.1x"])
    start, seen = Start(problem, np.random.default_rng(0), 30, near_limit), Seen()
    limit = problem.constraints[0].limit
    drawn = (start.draw(seen) for _ in range(30))
    return np.array([problem.cost(policy)["size_bytes"] / limit for policy in drawn if policy])


def test_draws_may_come_near_a_tight_limit() -> None:
    near, evenly = _shares_of_limit(near_limit=True), _shares_of_limit(near_limit=False)
    assert (near > 0.8).mean() >= 0.2
    assert (evenly > 0.8).mean() < 0.1
    assert near.min() < 0.15


@pytest.mark.parametrize("name", ["ddpg", "qmix"])
def test_agents_begin_near_a_tight_limit(name: str) -> None:
    problem = NETWORK.problem(constraints=["size_bytes <= 0.1x"])
    limit = problem.constraints[0].limit
    asked = build_strategy(name, problem, 0).ask(30)
    shares = np.array([problem.cost(policy)["size_bytes"] / limit for policy in asked])
    assert (shares > 0.8).mean() >= 0.2


def test_a_restored_start_goes_on() -> None:
    problem, rng, seen = NETWORK.problem(), np.random.default_rng(3), Seen()
    start = Start(problem, rng, 8)
    for _ in range(3):
        start.draw(seen)
    other_rng, other_seen = np.random.default_rng(0), Seen()
    other = Start(problem, other_rng, 5)
    other.load_state_dict(start.state_dict())
    other_rng.bit_generator.state = rng.bit_generator.state
    other_seen.load_state_dict(seen.state_dict())
    assert len(other) == len(start) == 5
    assert [other.draw(other_seen) for _ in range(7)] == [start.draw(seen) for _ in range(7)]
    start.skip()
    assert not start


@pytest.mark.parametrize("name", ["ddpg", "qmix", "amc", "haq"])
def test_agents_learn_within_a_small_budget(name: str) -> None:
    """Half of it is drawn by chance, and no more than of a large one."""
    for budget, drawn in ((None, 30), (200, 30), (24, 12)):
        plan = build_strategy(name, replace(NETWORK.problem(), budget=budget), 0).plan()
        assert plan[0] == f"draws its first {drawn} policies by chance"


@pytest.mark.parametrize(
    ("name", "rules", "said"),
    [
        ("haq", ("size_bytes <= 400",), r", within \d+\.\d % of the least .* policy's size_bytes"),
        ("amc", (), r", within (\d+\.\d %, ){4}\d+\.\d % of the .* policy's macs, in turn"),
        ("amc-accuracy", (), ", rewarded for a small error weighed by the logarithm of macs"),
        (
            "cotrim",
            (),
            r" for each of \d layers, which have \d+ genes \(channels and weight_bits\)",
        ),
    ],
)
def test_agents_say_what_they_decide_within_which_limits(name, rules, said) -> None:
    constraints = tuple(map(Constraint.parse, rules))
    problem = replace(NETWORK.problem(), constraints=constraints)
    assert re.search(f"{said}$", build_strategy(name, problem, 0).plan()[-1])


def test_chance_takes_as_much_of_a_budget_as_is_said() -> None:
    """After it, two agents of one seed differ by how they learn."""
    problem = replace(NETWORK.problem(), budget=10)
    agents = [build_strategy(name, problem, 0) for name in ("ddpg", "qmix")]
    rounds = []
    for _ in range(2):
        asked = [agent.ask(5) for agent in agents]
        for agent, policies in zip(agents, asked, strict=True):
            agent.tell([ToyEstimator(NETWORK).estimate(policy) for policy in policies])
        rounds.append(asked[0] == asked[1])
    assert rounds == [True, False]
