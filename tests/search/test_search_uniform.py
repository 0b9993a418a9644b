from __future__ import annotations

from automl_compress.search import build_strategy, uniform_policies
from automl_compress.space import Gene, Policy, SearchSpace
from automl_compress.space.rules import ChannelRule
from automl_compress.testing import ToyNetwork


def test_the_line_treats_all_genes_of_a_kind_alike() -> None:
    network = ToyNetwork(layers=3)
    line = uniform_policies(network.space)
    assert len(line) == len(network.channels) * len(network.weight_bits) == len(set(line))
    for policy in line:
        assert len(set(policy.of_kind("channels").values())) == 1
        assert len(set(policy.of_kind("weight_bits").values())) == 1


def test_genes_with_other_values_take_the_nearest_ratio() -> None:
    space = SearchSpace([
        Gene("channels:a", "channels", (4, 8, 16)),
        Gene("channels:b", "channels", (30, 60)),
    ])  # fmt: skip
    pairs = {(p["channels:a"], p["channels:b"]) for p in uniform_policies(space)}
    assert pairs == {(16, 60), (8, 30), (4, 30)}


def test_the_line_starts_least_compressed_and_goes_to_the_farthest() -> None:
    space = ToyNetwork(layers=2).space
    line = uniform_policies(space)
    assert line[:2] == [space.largest, space.smallest]
    corners = {(p["channels:layer0"], p["weight_bits:layer0"]) for p in line[:4]}
    assert corners == {(16, 8), (4, 2), (16, 2), (4, 8)}


def test_sparsity_counts_as_compression() -> None:
    space = SearchSpace([
        Gene("weight_bits:a", "weight_bits", (2, 4, 8)),
        Gene("kernel_sparsity:a", "kernel_sparsity", (0.9, 0.5, 0.0)),
    ])  # fmt: skip
    assert uniform_policies(space)[:2] == [space.largest, space.smallest]


def test_constraints_on_costs_thin_the_line_and_the_seed_does_not() -> None:
    network = ToyNetwork(layers=2)
    problem = network.problem(constraints=["size_bytes <= 0.05x"])
    everything: list[Policy] = build_strategy("uniform", problem, 0).ask(1_000)
    line = uniform_policies(network.space)
    assert everything == [p for p in line if problem.cost_violation(p) == 0]
    assert 0 < len(everything) < len(line)
    assert build_strategy("uniform", problem, 1).ask(1_000) == everything


def _widths(rule: ChannelRule, *widths: int) -> SearchSpace:
    return SearchSpace([Gene(f"channels:{w}", "channels", rule.counts(w)) for w in widths])


def test_a_ratio_that_rounding_spreads_is_drawn_once() -> None:
    rule = ChannelRule(tuple(ratio / 20 for ratio in range(1, 21)))
    space = _widths(rule, 16, 24, 32, 64, 96, 144, 160, 192, 320, 384, 576, 960, 1280)
    line = uniform_policies(space)
    assert {policy["channels:1280"] for policy in line} == {64 * ratio for ratio in range(1, 21)}
    assert len(line) == 20
    assert {space.largest, space.smallest} < set(line)


def test_values_that_differ_are_all_drawn() -> None:
    space = _widths(ChannelRule(round_to=2), 16, 24, 32, 64)
    drawn = {(name, value) for policy in uniform_policies(space) for name, value in policy.items()}
    assert drawn == {(gene.name, value) for gene in space for value in gene.values}
