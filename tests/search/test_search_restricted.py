"""Strategies that decide a part of the genes: `amc`, `haq`, `two-stage`, `sensitive`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.search import Problem, Strategy, build_strategy
from automl_compress.search.budget_agent import BUDGETS, Budget, BudgetAgent
from automl_compress.search.priors import mildest
from automl_compress.search.random_search import RandomSearch
from automl_compress.search.restricted import Restricted, genes_of, least_compressed
from automl_compress.search.sensitive import Sensitive
from automl_compress.search.two_stage import TwoStage
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=4)
ESTIMATOR = ToyEstimator(NETWORK)


def _search(
    strategy: Strategy, count: int, estimator: ToyEstimator = ESTIMATOR
) -> list[Evaluation]:
    told: list[Evaluation] = []
    while len(told) < count:
        evaluations = [estimator.estimate(policy) for policy in strategy.ask(5)]
        if not evaluations:
            break
        strategy.tell(evaluations)
        told += evaluations
    return told


# A part of the genes.


def test_only_free_genes_are_decided_and_costs_are_the_whole_networks() -> None:
    problem = NETWORK.problem()
    free = genes_of(problem, ("channels",))
    strategy = Restricted(
        problem, 0, RandomSearch, free, least_compressed(problem, free)
    )  # fmt: skip
    for policy in strategy.ask(20):
        assert set(policy.of_kind("weight_bits").values()) == {8}
        part = Policy({n: v for n, v in policy.items() if n.startswith("channels")})
        assert strategy._part.problem.cost(part) == problem.cost(policy)


def test_a_part_is_told_what_fits_it() -> None:
    problem = NETWORK.problem()
    free = genes_of(problem, ("weight_bits",))
    strategy = Restricted(problem, 0, RandomSearch, free, least_compressed(problem, free))
    fitting, other = problem.space.largest, problem.space.smallest
    assert strategy.fits(ESTIMATOR.estimate(fitting))
    assert not strategy.fits(ESTIMATOR.estimate(other))
    strategy.tell([ESTIMATOR.estimate(fitting), ESTIMATOR.estimate(other)])
    assert len(strategy.state_dict()["part"]["seen"]) == 1


def test_fixed_genes_give_way_to_constraints() -> None:
    problem = NETWORK.problem(constraints=["size_bytes <= 0.05x"])
    free = genes_of(problem, ("weight_bits",))
    fixed = least_compressed(problem, free)
    assert problem.cost_violation(problem.space.decode(fixed)) == 0
    assert (fixed[genes_of(problem, ("channels",))] < 3).all()


@pytest.mark.parametrize("share", [0.5, 0.3])
def test_fixed_genes_are_not_cut_harder_than_all_alike(share: float) -> None:
    problem = ToyNetwork(layers=8).problem(("error", "macs"), [f"macs <= {share}x"])
    alike = problem.space.from_unit(np.full(len(problem.space), mildest(problem)))
    free = genes_of(problem, ("channels",))[1:]
    fixed = least_compressed(problem, free)
    assert fixed[0] >= alike[0]
    assert problem.cost_violation(problem.space.decode(fixed)) == 0


# AMC and HAQ.


def test_the_clamp_leaves_a_budget_that_later_genes_can_meet() -> None:
    problem = NETWORK.problem()
    budget, rng = Budget(problem, "macs"), np.random.default_rng(0)
    channels = genes_of(problem, ("channels",))
    for share in (0.1, 0.3, 0.6):
        levels = np.zeros(len(problem.space), dtype=np.int64)
        for gene in channels:
            levels[gene] = rng.integers(problem.space.sizes[gene])
            wanted = levels[gene]
            levels[gene] = budget.clamp(levels, gene, share)
            assert levels[gene] <= wanted
            assert budget.cost(levels) <= share * budget.full
            if levels[gene] < wanted:  # no more than it must
                above = levels.copy()
                above[gene] += 1
                assert budget.cost(above) > share * budget.full


def test_a_cost_of_just_a_relative_limit_fits_the_budget() -> None:
    """0.57 times 100 is 56.99999999999999."""
    limit = Constraint.parse("macs <= 0.57x").absolute({"macs": 100.0})
    sizes = {False: 57.0, True: 100.0}
    problem = replace(
        NETWORK.problem(),
        cost=lambda policy: {"macs": sizes[policy == NETWORK.space.largest]},
        constraints=(limit,),
    )
    budget, indices = Budget(problem, "macs"), problem.space.sizes - 1
    (share,) = budget.shares(1)
    assert problem.cost_violation(NETWORK.space.smallest) == 0
    assert problem.cost_violation(NETWORK.space.largest) > 0
    assert budget.lower(indices, share).sum() == indices.sum() - 1
    assert budget.clamp(indices, 0, share) == indices[0] - 1


def test_bits_are_lowered_one_by_one_from_the_last_layer_until_they_fit() -> None:
    problem = ToyNetwork(layers=3, channels=()).problem()
    budget = Budget(problem, "size_bytes")
    indices = np.array([4, 1, 2])
    for share in (0.9, 0.6, 0.4, 0.3):
        expected, gene = indices.copy(), 2
        while budget.cost(expected) > share * budget.full and expected.any():
            expected[gene] -= expected[gene] > 0
            gene = (gene - 1) % 3
        assert np.array_equal(budget.lower(indices, share), expected)


@pytest.mark.parametrize(("name", "metric"), [("amc", "macs"), ("haq", "size_bytes")])
def test_without_a_constraint_budgets_cycle_over_a_front(name: str, metric: str) -> None:
    problem = ToyNetwork(layers=12).problem()
    strategy = build_strategy(name, problem, 0)
    part = strategy._part  # type: ignore[attr-defined]
    assert isinstance(part, BudgetAgent)
    assert part._budget.metric == metric
    shares = np.array(part._shares)
    assert len(shares) == BUDGETS
    assert (np.diff(shares) < 0).all()
    full = part._budget.full
    costs = np.array([problem.cost(policy)[metric] for policy in strategy.ask(4 * BUDGETS)])
    assert (costs <= shares[0] * full).all()
    for limit in shares * full:
        assert ((costs > 0.4 * limit) & (costs <= limit)).sum() >= 2


@pytest.mark.parametrize("name", ["amc", "haq"])
def test_a_constraint_is_the_budget(name: str) -> None:
    metric = "macs" if name == "amc" else "size_bytes"
    network = ToyNetwork(layers=12)
    problem = network.problem(constraints=[f"{metric} <= 0.2x"])
    strategy = build_strategy(name, problem, 0)
    assert len(strategy._part._shares) == 1  # type: ignore[attr-defined]
    told = _search(strategy, 40, ToyEstimator(network))
    costs = [e.minimised(metric) / network.baseline[metric] for e in told]
    assert max(costs) <= 0.2
    assert max(costs[-10:]) > 0.1  # what is allowed is used


def test_the_accuracy_guaranteed_reward_by_hand() -> None:
    problem = NETWORK.problem()
    strategy = build_strategy("amc-accuracy", problem, 0)
    part = strategy._part  # type: ignore[attr-defined]
    evaluation = ESTIMATOR.estimate(problem.space.largest)
    told = replace(evaluation, policy=Policy(evaluation.policy.of_kind("channels") and {
        name: value for name, value in evaluation.policy.items() if name.startswith("channels")
    }))  # fmt: skip
    expected = -0.06 * np.log(evaluation.minimised("macs"))
    assert part._reward(told, 1.0) == pytest.approx(expected, rel=0.05)


def test_an_agent_learns_from_every_transition_it_really_took() -> None:
    problem = NETWORK.problem()
    strategy = BudgetAgent(problem, 0, ("macs",))
    told = _search(strategy, 15)
    replay = strategy.state_dict()["replay"]
    for evaluation, actions in zip(told, replay["actions"], strict=True):
        point = problem.space.to_unit(problem.space.encode(evaluation.policy))
        assert np.array_equal(actions[:, 0], point)


# Two stages.


def test_the_second_stage_gives_bits_to_the_winner() -> None:
    strategy = TwoStage(NETWORK.problem(), 0, pruned=20)
    told = _search(strategy, 45)
    first, second = told[:20], told[20:]
    for evaluation in first:
        assert set(evaluation.policy.of_kind("weight_bits").values()) == {8}
    channels = {tuple(e.policy.of_kind("channels").values()) for e in second}
    assert len(channels) == 1
    assert channels <= {tuple(e.policy.of_kind("channels").values()) for e in first}
    assert len({tuple(e.policy.of_kind("weight_bits").values()) for e in second}) == len(second)


@pytest.mark.parametrize(("budget", "pruned"), [(15, 9), (40, 24), (100, 60), (None, 60)])
def test_a_small_budget_has_both_stages(budget: int | None, pruned: int) -> None:
    strategy = TwoStage(replace(NETWORK.problem(), budget=budget), 0)
    assert f"in the first {pruned} evaluations" in " ".join(strategy.plan())
    if budget == 15:
        bits = [set(e.policy.of_kind("weight_bits").values()) for e in _search(strategy, budget)]
        assert all(found == {8} for found in bits[:5])
        assert sum(found != {8} for found in bits) >= budget - pruned - 1


def test_one_kind_of_genes_is_one_stage() -> None:
    network = ToyNetwork(layers=3, channels=())
    strategy = TwoStage(network.problem(), 0, pruned=5)
    estimator = ToyEstimator(network)
    for _ in range(4):
        strategy.tell([estimator.estimate(policy) for policy in strategy.ask(5)])
    assert strategy.state_dict()["stage"] == 1


@pytest.mark.parametrize("name", ["amc", "haq", "two-stage"])
@pytest.mark.parametrize(
    "network",
    [ToyNetwork(layers=2, weight_bits=(8,)), ToyNetwork(layers=2, channels=(16,))],
    ids=["no bits", "no channels"],
)
def test_where_a_kind_is_held_at_one_value_the_other_is_searched(
    network: ToyNetwork, name: str
) -> None:
    """To its end and in one stage, as where genes of the kind are missing."""
    strategy = build_strategy(name, network.problem(), 0)
    found = _search(strategy, 100, ToyEstimator(network))
    assert len(found) == network.space.cardinality
    assert strategy.state_dict().get("stage", 1) == 1


# Sensitive layers.


def _stated(problem: Problem, sensitive: int) -> Problem:
    sensitivity = np.linspace(0.1, 0.2, len(problem.space))
    sensitivity[sensitive] = 0.9
    return replace(problem, sensitivity=sensitivity)


def test_channels_of_stated_sensitive_layers_are_kept() -> None:
    problem = _stated(NETWORK.problem(), sensitive=4)
    strategy = Sensitive(problem, 0, protected=0.25)
    assert strategy.protected() == [4]
    told = _search(strategy, 20)
    assert {e.policy["channels:layer2"] for e in told} == {16}
    assert len({e.policy["channels:layer1"] for e in told}) > 1
    assert len({e.policy["weight_bits:layer2"] for e in told}) > 1


def test_the_plan_names_sensitive_layers_and_why() -> None:
    (first, *_) = Sensitive(_stated(NETWORK.problem(), sensitive=4), 0).plan()
    assert first == "protects layer2, 16 channels: 90 % of its feature maps have a low rank"


def test_where_no_feature_map_has_a_low_rank_sensitivity_is_measured() -> None:
    """Rather than protecting nothing, unsaid."""
    problem = replace(NETWORK.problem(), sensitivity=np.zeros(len(NETWORK.space)))
    strategy = Sensitive(problem, 0)
    assert strategy.ask(4) == Sensitive(NETWORK.problem(), 0).ask(4)
    assert "cuts each of 4 channel groups alone" in strategy.plan()[0]
    assert "protects the 1 that the network needs most; then an agent" in strategy.plan()[0]


def test_channels_without_a_choice_are_not_among_the_protected() -> None:
    problem = ToyNetwork(layers=2, channels=(16,)).problem()
    strategy = Sensitive(replace(problem, sensitivity=np.full(len(problem.space), 0.5)), 0)
    assert strategy.protected() == []


def test_sensitive_layers_stay_whole_where_the_others_can_meet_a_constraint() -> None:
    problem = ToyNetwork(layers=8).problem(("error", "macs"), ["macs <= 0.5x"])
    told = _search(Sensitive(_stated(problem, sensitive=4), 0), 20, ToyEstimator(ToyNetwork(8)))
    assert {e.policy["channels:layer2"] for e in told} == {16}
    assert all(problem.violation(e) == 0 for e in told)


def test_few_layers_have_a_sensitive_one() -> None:
    problem = ToyNetwork(layers=2).problem()
    assert Sensitive(_stated(problem, sensitive=2), 0).protected() == [2]


def test_without_ranks_sensitivity_is_measured() -> None:
    problem = NETWORK.problem()
    strategy = Sensitive(problem, 0, protected=0.25)
    probes = strategy.ask(4)
    for layer, policy in enumerate(probes):
        expected = dict(problem.space.largest)
        expected[f"channels:layer{layer}"] = 4
        assert policy == Policy(expected)
    strategy.tell([ESTIMATOR.estimate(policy) for policy in probes])
    strategy.ask(1)
    worst = int(np.argmin([NETWORK.accuracy(policy) for policy in probes]))
    assert strategy.protected() == [2 * worst]
    told = _search(strategy, 20)
    assert {e.policy[f"channels:layer{worst}"] for e in told} == {16}


@pytest.mark.parametrize("layers", [4, 8])
def test_all_probes_are_told_before_the_agent_begins(layers: int) -> None:
    """In batches that the probes fill and in those that they do not."""
    network = ToyNetwork(layers=layers)
    strategy = Sensitive(network.problem(), 0)
    estimator = ToyEstimator(network)
    accuracies: list[float] = []
    while strategy.state_dict()["agent"] is None:
        evaluations = [estimator.estimate(policy) for policy in strategy.ask(5)]
        accuracies += [evaluation.quality for evaluation in evaluations]
        strategy.tell(evaluations)
    worst = np.argsort(accuracies[:layers], kind="stable")[: layers // 4]
    assert strategy.protected() == [2 * layer for layer in worst]


def test_probes_that_nobody_answers_do_not_stop_a_search() -> None:
    strategy = Sensitive(NETWORK.problem(), 0)
    assert len(strategy.ask(20)) == 4
    assert len(strategy.ask(20)) == 20
