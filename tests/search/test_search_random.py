from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from automl_compress.search import build_strategy
from automl_compress.search.priors import (
    APART,
    TOGETHER,
    draw_new,
    mildest,
    shifted,
    stratified_mildness,
)
from automl_compress.search.strategy import Seen
from automl_compress.testing import ToyNetwork

DEEP = ToyNetwork(layers=40)


def _mean_mildness(name: str) -> np.ndarray:
    problem = DEEP.problem()
    asked = build_strategy(name, problem, 0).ask(200)
    return np.array([problem.space.to_unit(problem.space.encode(p)).mean() for p in asked])


def test_scaled_random_spreads_over_aggressiveness_and_random_does_not() -> None:
    plain, scaled = _mean_mildness("random"), _mean_mildness("scaled-random")
    assert plain.std() < 0.05
    assert scaled.std() > 0.2
    assert np.histogram(scaled, bins=5, range=(0, 1))[0].min() >= 20
    assert np.histogram(plain, bins=5, range=(0, 1))[0][[0, 4]].sum() == 0


def test_stratified_mildness_has_one_in_each_part() -> None:
    drawn = stratified_mildness(np.random.default_rng(0), 12)
    assert sorted(np.floor(drawn * 12)) == list(range(12))


def test_relatives_shift_all_genes_of_a_kind_alike_and_kinds_apart() -> None:
    network = ToyNetwork(layers=200, channels=tuple(range(1, 41)))
    space, rng = network.space, np.random.default_rng(0)
    base = space.from_unit(np.full(len(space), 0.5))
    channels = np.array([gene.kind == "channels" for gene in space])
    moves = np.array(
        [space.to_unit(shifted(space, rng, base)) - space.to_unit(base) for _ in range(300)]
    )
    kinds = np.stack([moves[:, channels].mean(axis=1), moves[:, ~channels].mean(axis=1)])
    assert kinds.std(axis=1) == pytest.approx([TOGETHER] * 2, rel=0.15)
    assert abs(np.corrcoef(kinds)[0, 1]) < 0.2
    within = np.median(moves[:, channels].std(axis=1))
    assert within == pytest.approx(APART, rel=0.1)


@pytest.mark.parametrize("share", [0.2, 0.1, 0.01])
def test_mildest_is_where_the_constraint_begins_to_break(share: float) -> None:
    problem = DEEP.problem(constraints=[f"size_bytes <= {share}x"])
    limit = mildest(problem)
    space = problem.space

    def excess(mildness: float) -> float:
        return problem.cost_violation(space.decode(space.from_unit(np.full(len(space), mildness))))

    assert excess(limit) == 0 < excess(limit + 0.002)
    assert mildest(DEEP.problem()) == 1.0


def test_scaled_random_covers_what_a_constraint_allows() -> None:
    problem = DEEP.problem(constraints=["size_bytes <= 0.1x"])
    asked = build_strategy("scaled-random", problem, 0).ask(100)
    sizes = (
        np.array([problem.cost(p)["size_bytes"] for p in asked]) / problem.baseline["size_bytes"]
    )
    assert sizes.max() <= 0.1
    assert sizes.min() < 0.02
    assert (sizes > 0.05).sum() > 30  # what matters lies at the limit


def test_draws_that_cost_too_much_are_cut_until_they_fit() -> None:
    problem = DEEP.problem(constraints=["size_bytes <= 0.1x"])
    found = draw_new(problem, Seen(), lambda: problem.space.sizes - 1, np.random.default_rng(0))
    assert found is not None
    assert 0.05 < problem.cost(found)["size_bytes"] / problem.baseline["size_bytes"] <= 0.1


def test_a_constraint_nothing_meets_is_broken_as_little_as_possible() -> None:
    problem = DEEP.problem(constraints=["size_bytes <= 1 B"])
    first = build_strategy("random", problem, 0).ask(1)
    assert first == [problem.space.smallest]


def test_a_stuck_draw_in_a_large_space_is_not_taken_for_its_end() -> None:
    problem = DEEP.problem()
    seen, rng = Seen(), np.random.default_rng(0)
    found = [draw_new(problem, seen, lambda: problem.space.sizes - 1, rng) for _ in range(3)]
    assert None not in found
    assert len(set(found)) == 3


def test_listing_prefers_what_meets_the_constraints() -> None:
    network = ToyNetwork(layers=1)
    problem = network.problem(constraints=["size_bytes <= 0.1x"])
    asked = build_strategy("random", problem, 0).ask(100)
    excess = [problem.cost_violation(p) for p in asked]
    assert len(set(asked)) == len(asked) == problem.space.cardinality
    good = sum(e == 0 for e in excess)
    assert 0 < good < len(asked)
    assert all(e == 0 for e in excess[:good])


def test_without_constraints_nothing_is_scaled_down() -> None:
    problem = DEEP.problem()
    loose = replace(problem, constraints=DEEP.problem(constraints=["macs <= 1x"]).constraints)
    for name in ("scaled-random", "nsga2"):
        assert build_strategy(name, problem, 3).ask(40) == build_strategy(name, loose, 3).ask(40)
