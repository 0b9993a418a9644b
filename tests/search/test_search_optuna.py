from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from automl_compress.evaluate import Evaluation
from automl_compress.search import optuna_tpe
from automl_compress.search.optuna_search import OptunaSearch
from automl_compress.search.optuna_tpe import SharingTPE
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=4)
ESTIMATOR = ToyEstimator(NETWORK)


def _estimates(policies: list) -> list[Evaluation]:
    return [ESTIMATOR.estimate(policy) for policy in policies]


def test_the_study_holds_what_was_told_and_what_is_out() -> None:
    constraints = ["accuracy >= 0.9", "size_bytes <= 0.2x"]
    problem = NETWORK.problem(constraints=constraints)
    strategy = OptunaSearch(problem, 0, "tpe")
    told = _estimates(strategy.ask(6))
    strategy.tell(told[:4])
    foreign = ESTIMATOR.estimate(NETWORK.space.largest)
    strategy.tell([foreign])
    trials = strategy._study().trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 5 + [TrialState.RUNNING] * 2
    for trial, evaluation in zip(trials, [*told[:4], foreign], strict=False):
        size = evaluation.metrics["size_bytes"] / problem.baseline["size_bytes"]
        assert trial.values[0] == pytest.approx(evaluation.minimised("error"))
        assert trial.values[1] == pytest.approx(size)
        accuracy, bytes_ = trial.constraints.values()
        assert accuracy == pytest.approx((evaluation.minimised("error") - 0.1) / 0.1)
        assert bytes_ == pytest.approx((size - 0.2) / 0.2)
        assert list(trial.params.values()) == list(NETWORK.space.encode(evaluation.policy))
    for trial, evaluation in zip(trials[5:], told[4:], strict=True):
        assert list(trial.params.values()) == list(NETWORK.space.encode(evaluation.policy))


def test_a_network_just_as_good_as_a_limit_meets_it() -> None:
    strategy = OptunaSearch(NETWORK.problem(constraints=["error <= 0.02"]), 0, "tpe")
    measured = ESTIMATOR.estimate(NETWORK.space.largest)
    strategy.tell([replace(measured, metrics={**measured.metrics, "accuracy": 0.98})])
    (trial,) = strategy._study().trials
    assert list(trial.constraints.values()) == [0.0]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_study_leaves_the_trials_it_shares_as_they_are(sampler: str) -> None:
    strategy = OptunaSearch(NETWORK.problem(), 0, sampler)  # type: ignore[arg-type]
    strategy.tell(_estimates(strategy.ask(12)))
    before, kept = copy.deepcopy(strategy.state_dict()["told"]), list(strategy._told)
    strategy.ask(3)
    assert strategy._told == kept
    assert strategy.state_dict()["told"] == before
    assert {trial.number for trial in kept} == {-1}
    trials = strategy._study().trials
    assert [trial.number for trial in trials] == list(range(15))
    assert trials[0]._params is kept[0]._params


def test_evolution_counts_generations_foreign_ones_included() -> None:
    problem = NETWORK.problem()
    strategy = OptunaSearch(problem, 0, "nsga2", settings={"population_size": 6})
    rng = np.random.default_rng(0)
    strategy.tell(_estimates([NETWORK.space.decode(NETWORK.space.sample(rng)) for _ in range(6)]))
    for _ in range(3):
        strategy.tell(_estimates(strategy.ask(6)))
    generations = [trial["generation"] for trial in strategy.state_dict()["told"]]
    assert generations == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_samplers_learn(sampler: str) -> None:
    """The toy's error alone, whatever it costs: later policies err less than the first ones."""
    problem = NETWORK.problem(("error", "size_bytes"), ["accuracy >= 0.9"])
    strategy = OptunaSearch(problem, 0, sampler, settings=_small(sampler))  # type: ignore[arg-type]
    errors = []
    for _ in range(12 if sampler == "nsga2" else 7):
        evaluations = _estimates(strategy.ask(5))
        strategy.tell(evaluations)
        errors += [evaluation.minimised("error") for evaluation in evaluations]
    assert np.mean(errors[-20:]) < np.mean(errors[:10]) - 0.05


SETTINGS: list[dict[str, Any]] = [
    {},
    {"multivariate": True},
    {"constant_liar": False},
    {"n_ei_candidates": 7, "n_startup_trials": 3},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
@pytest.mark.parametrize("known", [0, 8, 60])
def test_shared_work_proposes_what_optuna_does(known: int, settings: dict[str, Any]) -> None:
    """The same parameters to the last bit, and the same again where the first is marked failed."""
    constraints = ["error <= 0.3", "size_bytes <= 0.05x"]
    strategy = OptunaSearch(NETWORK.problem(constraints=constraints), 0, "nsga2")
    strategy.tell(_estimates(strategy.ask(known)))
    strategy.ask(4)
    proposed = []
    for sampler in (TPESampler(seed=5, **settings), SharingTPE(seed=5, **settings)):
        study = strategy._study()
        study.sampler = sampler
        trial = study.ask(strategy._distributions)
        further = sampler.again(1) if isinstance(sampler, SharingTPE) else []
        study.tell(trial, state=TrialState.FAIL)
        again = further[0] if further else study.ask(strategy._distributions).params
        proposed.append([trial.params, again])
    assert proposed[0] == proposed[1]


def test_trials_are_sorted_once_for_all_proposals_in_place_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where most proposals are known: Optuna would sort 12 trials a policy, 2 parameters each."""
    sorted_, split = [], optuna_tpe._split_trials
    monkeypatch.setattr(
        optuna_tpe, "_split_trials", lambda *given: sorted_.append(1) or split(*given)
    )
    network = ToyNetwork(layers=2, channels=(), weight_bits=(2, 3, 4, 5, 6, 8))
    strategy = OptunaSearch(network.problem(), 0, "tpe")
    estimator = ToyEstimator(network)
    for _ in range(7):
        asked = strategy.ask(5)
        strategy.tell([estimator.estimate(policy) for policy in asked])
    assert len(sorted_) <= 25


def _small(sampler: str) -> dict[str, int]:
    return {"population_size": 10} if sampler == "nsga2" else {}


def test_optunas_own_messages_stay_as_the_user_set_them() -> None:
    optuna.logging.set_verbosity(logging.INFO)
    OptunaSearch(NETWORK.problem(), 0).ask(1)
    assert optuna.logging.get_verbosity() == logging.INFO
