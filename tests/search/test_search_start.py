from __future__ import annotations

import numpy as np

from automl_compress.search.start import Start
from automl_compress.search.strategy import Problem, Seen
from automl_compress.testing import ToyNetwork

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
