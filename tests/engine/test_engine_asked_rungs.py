"""Strategies that ask for a rung: what they are charged, told, and judged by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from engine_races import BUDGET, NETWORK, RungEstimator, frame, race

from automl_compress.engine import contestant
from automl_compress.engine.engine import Race
from automl_compress.engine.rungs import RungSettings, rung_cost
from automl_compress.engine.serial import SerialEngine
from automl_compress.engine.trained import TrainSettings
from automl_compress.errors import EngineError
from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.network import EstimateSettings, NetworkEstimator
from automl_compress.ledger import ContestantRecord, Ledger, RungRecord, StudyResult
from automl_compress.report import contestant_scores, write_report
from automl_compress.search import OnRung, Problem, RungOffer, State, Strategy
from automl_compress.search.random_search import RandomSearch
from automl_compress.space import Policy
from automl_compress.testing import STRATEGY_CHECKS
from automl_compress.workload import WorkloadConfig, load_workload

COST = 3
RACING = (
    ContestantRecord("scaled-random-0", "scaled-random", 0),
    ContestantRecord("scaled-random-1", "scaled-random", 1),
)


class Rechecking(Strategy):
    """Random search that has the best of what it was told measured better, once each."""

    rung = "full"

    def __init__(self, problem: Problem, seed: int) -> None:
        super().__init__(problem, seed)
        self._search = RandomSearch(problem, seed, scaled=True)
        self._best: Evaluation | None = None
        self.rechecked: dict[str, float] = {}

    def ask(self, count: int) -> list[Policy]:
        return self._search.ask(count)

    def ask_rungs(self, budget: int) -> list[OnRung]:
        best = self._best
        if best is None or not self.problem.rungs or best.policy.key in self.rechecked:
            return []
        return [OnRung(best.policy, self.rung)]

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        offered = {offer.estimator for offer in self.problem.rungs.values()}
        for evaluation in evaluations:
            least = self._best.minimised("error") if self._best else 2.0
            if evaluation.estimator in offered:
                self.rechecked[evaluation.policy.key] = evaluation.minimised("error")
            elif evaluation.minimised("error") < least:
                self._best = evaluation
        self._search.tell(evaluations)

    def state_dict(self) -> State:
        return {"search": self._search.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._search.load_state_dict(state["search"])


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Rechecking]:
    """Strategies that contestants are given."""
    made: list[Rechecking] = []

    def build(_: str, problem: Problem, seed: int) -> Strategy:
        made.append(Rechecking(problem, seed))
        return made[-1]

    monkeypatch.setattr(contestant, "build_strategy", build)
    return made


def _race(folder: Path) -> Race:
    folder.mkdir(exist_ok=True)
    plain, full = race(folder), RungEstimator("full")
    problem = replace(plain.problem, rungs={"full": RungOffer(full.identity, COST)})
    return replace(plain, problem=problem, rungs={"full": full})


def _run(folder: Path) -> StudyResult:
    raced = _race(folder)
    engine = SerialEngine(raced)
    engine.run(RACING, lambda _: None)
    engine.close()
    frame(folder)  # writes a manifest
    offer = raced.problem.rungs["full"]
    record = RungRecord("full", offer.estimator, 0.5, RungSettings("full").to_dict(), offer.cost)
    manifest = StudyResult(folder).manifest
    replace(manifest, contestants=RACING, rungs=(record,)).write(folder)
    return StudyResult(folder)


def test_rungs_are_charged_and_told(tmp_path: Path, built: list[Rechecking]) -> None:
    result = _run(tmp_path)
    for record, strategy in zip(RACING, built, strict=True):
        asked = len(strategy.rechecked)
        assert asked > 0
        assert result.spent(record.name) == BUDGET
        assert len(result.charges(record.name)) == BUDGET - COST * asked
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        everything = ledger.charges(RACING[0].name)
    places = [charge.place.position for charge in everything]
    costs = [COST if c.evaluation.estimator.startswith("full") else 1 for c in everything]
    assert places == [sum(costs[:n]) for n in range(len(costs))]
    known = {c.evaluation.policy.key: c.evaluation.policy
             for record in RACING for c in result.charges(record.name)}  # fmt: skip
    for strategy in built:
        for key, error in strategy.rechecked.items():
            assert error == RungEstimator("full").estimate(known[key]).minimised("error")


@pytest.mark.usefixtures("blank_figures")
def test_scores_know_what_was_spent_elsewhere(tmp_path: Path, built: list[Rechecking]) -> None:
    result = _run(tmp_path)
    for scores in contestant_scores(result):
        assert len(scores) == BUDGET
        charges = result.charges(scores.record.name)
        assert scores.usable.sum() == len(charges)
        for charge in charges:
            expected = [charge.evaluation.minimised(n) for n in result.manifest.objectives]
            assert scores.values[charge.place.position].tolist() == expected
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert f"{2 * BUDGET} of {2 * BUDGET} evaluations are made." in text
    assert re.search(rf"\| scaled-random \| {2 * BUDGET} \| \d+ \| 0 \| 0 \|", text)


def test_a_race_goes_on_where_it_was(tmp_path: Path, built: list[Rechecking]) -> None:
    first = _run(tmp_path)
    again = _run(tmp_path)  # the ledger answers everything
    assert [s.rechecked for s in built[:2]] == [s.rechecked for s in built[2:]]
    for record in RACING:
        assert again.charges(record.name) == first.charges(record.name)


def test_only_offered_rungs_can_be_asked_for(
    tmp_path: Path, built: list[Rechecking], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Rechecking, "rung", "moon")
    with pytest.raises(EngineError, match=r"a rung of full, but .* asks for 'moon'"):
        _run(tmp_path)


def test_a_strategy_that_asks_for_rungs_conforms() -> None:
    (check,) = [check for check in STRATEGY_CHECKS if check.__name__ == "check_rungs"]
    check(Rechecking)

    class Greedy(Rechecking):
        def ask_rungs(self, budget: int) -> list[OnRung]:
            return [OnRung(NETWORK.space.largest, "moon")]

    with pytest.raises(AssertionError, match="none is offered"):
        check(Greedy)


def test_costs_follow_the_images() -> None:
    workload = load_workload(WorkloadConfig.of(model="digits_cnn", train={"epochs": 1}))
    search = NetworkEstimator(workload, EstimateSettings(images=80, calibration_images=20))
    held = len(workload.splits.validation)
    full = rung_cost(RungSettings("full"), workload, search)
    assert full - 1 < (20 + held) / 100 <= full
    assert rung_cost(RungSettings("few", images=10), workload, search) == 1
    train = TrainSettings(10)
    trained = rung_cost(RungSettings("trained", train=train), workload, search)
    passes = 20 + held + 4 * 10 * train.recovery.training.batch
    assert trained - 1 < passes / 100 <= trained
