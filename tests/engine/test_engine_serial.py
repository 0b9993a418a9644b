from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from engine_races import BUDGET, CONTESTANTS, NETWORK, frame, race

from automl_compress import Study
from automl_compress.engine.contestant import Contestant, Standing
from automl_compress.engine.engine import EngineSettings
from automl_compress.engine.serial import SerialEngine
from automl_compress.errors import InputError, InterruptedStudy, SpaceError, StudyError
from automl_compress.evaluate import objective_values, references
from automl_compress.ledger import ContestantRecord, Ledger
from automl_compress.search import RungOffer
from automl_compress.space import Gene, SearchSpace, SpaceRules
from automl_compress.space.rules import ChannelRule, Override
from automl_compress.workload import WorkloadConfig


def _run(folder: Path, **estimator: object) -> list[Standing]:
    heard: list[Standing] = []
    engine = SerialEngine(race(folder, **estimator))
    try:
        engine.run(CONTESTANTS, heard.append)
    finally:
        engine.close()
    return heard


def test_every_contestant_spends_its_budget_or_its_space(tmp_path: Path) -> None:
    heard = _run(tmp_path)
    done = {standing.contestant: standing.done for standing in heard}
    assert [done[c.name] for c in CONTESTANTS[:3]] == [BUDGET] * 3
    assert 0 < done["uniform-line"] <= BUDGET
    table = frame(tmp_path)
    assert table.groupby("contestant").size().to_dict() == done


def test_a_strategy_that_asks_otherwise_than_before_is_refused(tmp_path: Path) -> None:
    """The table would say that it was told what it never asked for. Versions of this package differ
    so, too."""
    _run(tmp_path)
    before = frame(tmp_path)
    changed = [replace(c, strategy="scaled-random", seed=7) for c in CONTESTANTS[:1]]
    engine = SerialEngine(race(tmp_path))
    with pytest.raises(StudyError, match=r"'nsga2-0' asks otherwise at evaluation 0; .* version"):
        engine.run(changed, lambda _: None)
    engine.close()
    pd.testing.assert_frame_equal(frame(tmp_path), before)


def test_nothing_is_estimated_twice(tmp_path: Path) -> None:
    _run(tmp_path)
    made = race(tmp_path).search.made()
    assert len(made) == len(set(made)) == frame(tmp_path)["policy_key"].nunique()


def test_shared_counts_each_policy_once_in_serial_order(tmp_path: Path) -> None:
    _run(tmp_path)
    table = frame(tmp_path)
    assert (~table["shared"]).sum() == table["policy_key"].nunique()


def test_a_second_run_over_the_same_ledger_estimates_nothing(tmp_path: Path) -> None:
    _run(tmp_path)
    before, made = frame(tmp_path), race(tmp_path).search.made()
    _run(tmp_path)
    assert race(tmp_path).search.made() == made
    pd.testing.assert_frame_equal(frame(tmp_path), before)


def test_an_interrupted_run_goes_on_to_the_same_table(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    _run(whole)
    engine = SerialEngine(race(parts))
    rounds = iter(range(7))

    def interrupt(_: Standing) -> None:
        if next(rounds, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedStudy):
        engine.run(CONTESTANTS, interrupt)
    engine.close()
    half = race(parts).search.made()
    _run(parts)
    made = race(parts).search.made()
    assert 0 < len(half) < len(made) == len(set(made))
    pd.testing.assert_frame_equal(frame(parts), frame(whole))


def test_an_estimator_that_raises_fails_the_evaluation_only(tmp_path: Path) -> None:
    _run(tmp_path, broken="4")
    table = frame(tmp_path)
    broken = table["policy_key"].str.startswith("4")
    assert broken.any()
    assert (table.loc[broken, "status"] == "failed").all()
    assert (table.loc[broken, "reason"] == "ValueError: this policy is broken").all()
    assert (table.loc[~broken, "status"] == "ok").all()


def test_the_thread_count_comes_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    engine = SerialEngine(race(tmp_path), threads=1)
    assert torch.get_num_threads() == 1
    engine.close()
    assert torch.get_num_threads() == before


def test_finalists_are_measured_by_the_test_estimator(tmp_path: Path) -> None:
    what = race(tmp_path)
    engine = SerialEngine(what)
    policies = [NETWORK.space.largest, NETWORK.space.smallest]
    engine.measure(policies)
    engine.close()
    with Ledger(what.ledger) as ledger:
        assert set(ledger.find([p.key for p in policies], what.test.identity)) == {
            policy.key for policy in policies
        }


@pytest.mark.parametrize(("limit", "leaves_out"), [("1.0x", False), ("0.5x", True)])
def test_what_is_useful_waits_where_the_original_is_left_out(
    tmp_path: Path, limit: str, leaves_out: bool
) -> None:
    """The useful hypervolume begins at the best of all contestants there, as in reports."""
    problem = NETWORK.problem(constraints=(f"size_bytes <= {limit}",))
    contestant = Contestant(CONTESTANTS[0], problem, BUDGET)
    answers = [race(tmp_path).search.estimate(asked.policy) for asked in contestant.next_round()]
    standing = contestant.finish_round(answers, 0)
    assert (standing.useful is None) == leaves_out
    assert standing.least_loss is not None


def test_strategies_know_their_budget() -> None:
    record = ContestantRecord("two-stage-0", "two-stage", 0)
    assert "in the first 6 evaluations" in Contestant(record, NETWORK.problem(), 10).plan()[0]


def test_the_standing_of_sparse_networks_counts_from_the_given_one(tmp_path: Path) -> None:
    problem = NETWORK.problem()
    search = race(tmp_path).search
    standings = []
    for lost in (0.0, 0.02):
        contestant = Contestant(CONTESTANTS[0], replace(problem, sparsity_loss=lost), BUDGET)
        answers = [search.estimate(asked.policy) for asked in contestant.next_round()]
        limit = problem.baseline["error"] - lost
        _, useful = references(problem.objectives, {**problem.baseline, "error": limit})
        standings.append(standing := contestant.finish_round(answers, 0))
        assert standing.useful == useful.share(objective_values(answers, problem.objectives)) > 0
        sizes = [e.metrics["size_bytes"] for e in answers if e.minimised("error") <= limit + 0.01]
        least = min(sizes, default=None)
        size = problem.baseline["size_bytes"]
        assert standing.smallest_share == (None if least is None else least / size)
    assert standings[0].smallest_share != standings[1].smallest_share


def test_a_rung_that_measures_as_the_search_does_leaves_its_standing(tmp_path: Path) -> None:
    search, bare = race(tmp_path).search, NETWORK.problem()
    same = replace(bare, rungs={"again": RungOffer(search.identity, 1)})
    standings = []
    for problem in (bare, same):
        contestant = Contestant(CONTESTANTS[0], problem, BUDGET)
        answers = [search.estimate(asked.policy) for asked in contestant.next_round()]
        standings.append(contestant.finish_round(answers, 0))
    assert standings[0] == standings[1]
    assert standings[1].least_loss is not None


def test_a_contestant_goes_on_from_its_state(tmp_path: Path) -> None:
    what = race(tmp_path)

    def play(contestant: Contestant, rounds: int) -> list[Standing]:
        standings = []
        for _ in range(rounds):
            requests = contestant.next_round()
            answers = [what.search.estimate(request.policy) for request in requests]
            standings.append(contestant.finish_round(answers, 0))
        return standings

    first = Contestant(CONTESTANTS[0], what.problem, BUDGET)
    play(first, 2)
    second = Contestant(CONTESTANTS[0], what.problem, BUDGET)
    second.load_state_dict(first.state_dict())
    assert play(second, 2) == play(first, 2)


def test_what_is_not_installed_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = {"study": "s", "workload": {"model": "resnet20", "data": "digits"}}
    study = Study(**settings, budget={"evaluations": 1}, strategies=["nsga2"])
    monkeypatch.setattr("automl_compress.engine.start.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"needs Ray, .* it to 'serial', or run: pip install 'ray"):
        study.run(tmp_path / "out")
    monkeypatch.delitem(sys.modules, "automl_compress.search.nsga2", raising=False)
    monkeypatch.setitem(sys.modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(InputError, match="'nsga2' needs the library 'pymoo', but it is not"):
        study.with_engine(kind="serial").run(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_network_or_its_settings_are_no_workload_and_a_listener_no_folder() -> None:
    settings: Any = {"study": "s", "budget": {"evaluations": np.int64(1)}}
    network, config = torch.nn.Linear(1, 1), WorkloadConfig.of(model="digits_cnn")
    with pytest.raises(StudyError, match=r"a network alone; .* Workload.of\(network, train, test"):
        Study(**settings, workload=network)
    with pytest.raises(StudyError, match=r"is a WorkloadConfig; give load_workload"):
        Study(**settings, workload=config)
    stated: Any = Study(**settings, workload={"model": "digits_cnn"})
    with pytest.raises(StudyError, match="by its path or a StudyResult, but is <built-in function"):
        stated.run(len)
    with pytest.raises(StudyError, match="a listener must be a function, but is 'a'; give one"):
        stated.run(listener="a")
    with pytest.raises(StudyError, match="must be a mapping or Workload, but is 'digits_cnn'"):
        Study(**settings, workload="digits_cnn")


def test_rules_in_python_are_stated_as_a_file_holds_them() -> None:
    settings: Any = {
        "study": "s",
        "workload": {"model": "digits_cnn"},
        "budget": {"evaluations": 1},
    }
    cut = Override("b*", channels=ChannelRule((0.5, 1.0), 4), activation_bits=(8,))
    rules = SpaceRules(weight_bits=(4, 8), overrides=(cut, Override("c")), protect=("a",))
    stated = Study(**settings, space=rules).config
    assert stated.space == rules
    assert Study(**settings, space=json.loads(json.dumps(stated.plain["space"]))).config == stated
    with pytest.raises(StudyError, match=r"among 2\.\.8, but 'space.weight_bits' has 9"):
        Study(**settings, space={"weight_bits": [9]})
    with pytest.raises(StudyError, match="is a SearchSpace; give the SpaceRules it was made by"):
        Study(**settings, space=SearchSpace((Gene("weight_bits:a", "weight_bits", (4, 8)),)))
    with pytest.raises(SpaceError, match=r"by SpaceRules, but was given 'a.yaml'; .* load_rules"):
        SearchSpace.from_model(torch.nn.Linear(4, 2), torch.ones(1, 4), "a.yaml")  # type: ignore[arg-type]


def test_workers_or_an_address_make_a_serial_study_a_clusters() -> None:
    settings = {"study": "tiny", "workload": {"model": "digits_cnn"}, "budget": {"evaluations": 2}}
    serial = Study(**settings, engine={"kind": "serial", "threads": 2})
    assert serial.with_engine(threads=1).config.engine == EngineSettings("serial")
    assert serial.with_engine(workers=3).config.engine == EngineSettings("cluster", 3, 2)
    found = serial.with_engine(address="10.0.0.1:6379").config.engine
    assert found == EngineSettings("cluster", None, 2, "10.0.0.1:6379")
    kept = serial.with_engine(kind="serial", workers=None, address=None).config.engine
    assert kept == EngineSettings("serial", None, 2)
    for wrong, told in (
        ({"worker": 2}, "unknown key 'engine.worker', did you mean 'workers'"),
        ({"kind": "seriel"}, "'engine.kind' must be one of .* did you mean 'serial'"),
        ({"threads": 0}, "'engine.threads' must be 'auto' or at least 1, but is 0"),
        ({"workers": 2.5}, "'engine.workers' must be an integer or a text, but is 2.5"),
    ):
        with pytest.raises(StudyError, match=told):
            serial.with_engine(**wrong)
