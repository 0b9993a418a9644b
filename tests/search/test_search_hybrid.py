from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from automl_compress.evaluate import Evaluation
from automl_compress.search import Problem, State, Strategy
from automl_compress.search.bandit import DiscountedUCB
from automl_compress.search.hybrid import PER_PAIR, Hybrid
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=4)
ESTIMATOR = ToyEstimator(NETWORK)


@dataclass
class _Diary:
    """What a member went through."""

    told: list[str] = field(default_factory=list)
    skipped: int = 0


class _Scripted(Strategy):
    """Asks for given policies, in order, and keeps a diary."""

    def __init__(self, problem: Problem, policies: Sequence[Policy], diary: _Diary) -> None:
        super().__init__(problem, 0)
        self._policies = list(policies)
        self._diary = diary

    def ask(self, count: int) -> list[Policy]:
        asked, self._policies = self._policies[:count], self._policies[count:]
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        self._diary.told += [evaluation.policy.key for evaluation in evaluations]

    def skip_start(self) -> None:
        self._diary.skipped += 1

    def state_dict(self) -> State:
        return {}

    def load_state_dict(self, state: State) -> None:
        pass


def _policies(count: int, seed: int = 0) -> list[Policy]:
    space, rng = NETWORK.space, np.random.default_rng(seed)
    found = {space.decode(space.sample(rng)): None for _ in range(2 * count)}
    return list(found)[:count]


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, _Diary]:
    """Members `good`, `bad` and `start`; `good` asks for ever larger gains."""
    space = NETWORK.space
    good = [space.decode(np.full(len(space), 3))]
    for gene in range(len(space)):
        indices = space.encode(good[0])
        indices[: gene + 1] = 2
        good.append(space.decode(indices))
    bad = [policy for policy in _policies(400) if NETWORK.accuracy(policy) < 0.75]
    lists = {"good": good, "bad": bad[:150], "start": bad[150:], "both": [*bad[:3], good[0]]}
    lists |= {"mixed": [*bad[:4], *good], "empty": []}
    diaries = {name: _Diary() for name in lists}
    monkeypatch.setattr(
        "automl_compress.search.hybrid.build_strategy",
        lambda name, problem, seed: _Scripted(problem, lists[name], diaries[name]),
    )
    return diaries


def _round(strategy: Hybrid, count: int) -> list[Policy]:
    asked = strategy.ask(count)
    strategy.tell([ESTIMATOR.estimate(policy) for policy in asked])
    return asked


def test_members_share_every_evaluation(scripted: dict[str, _Diary]) -> None:
    strategy = Hybrid(NETWORK.problem(), 0, members=("good", "bad"), start=None, screening=False)
    asked = [p.key for _ in range(3) for p in _round(strategy, 4)]
    foreign = ESTIMATOR.estimate(_policies(1, seed=9)[0])
    strategy.tell([foreign])
    for name in ("good", "bad"):
        assert scripted[name].told == [*asked, foreign.policy.key]


def test_without_sharing_members_are_told_what_they_asked_for(
    scripted: dict[str, _Diary],
) -> None:
    strategy = Hybrid(
        NETWORK.problem(), 0, members=("good", "bad"), start=None, sharing=False, screening=False
    )
    asked = [p.key for _ in range(4) for p in _round(strategy, 4)]
    told = [scripted[name].told for name in ("good", "bad")]
    assert all(told)
    assert not set(told[0]) & set(told[1])
    assert sorted(told[0] + told[1]) == sorted(asked)


def test_members_go_on_from_the_start(scripted: dict[str, _Diary]) -> None:
    strategy = Hybrid(
        NETWORK.problem(), 0, members=("good", "bad"), start=("start", 7), screening=False
    )
    first = _round(strategy, 5)
    assert scripted["good"].skipped == 0
    second = _round(strategy, 2)
    assert scripted["good"].skipped == scripted["bad"].skipped == 1
    keys = [policy.key for policy in (*first, *second)]
    assert scripted["good"].told == scripted["bad"].told == keys
    assert scripted["start"].told == keys[:5]
    assert scripted["start"].skipped == 0
    _round(strategy, 5)
    assert scripted["good"].skipped == 1


def test_the_bandit_prefers_who_gains(scripted: dict[str, _Diary]) -> None:
    problem = NETWORK.problem(constraints=["accuracy >= 0.75"])  # no bad one meets it
    strategy = Hybrid(problem, 0, members=("bad", "good"), start=None, screening=False)
    good = {policy.key for policy in strategy._members[1]._policies}  # type: ignore[attr-defined]
    asked = [p.key for _ in range(8) for p in _round(strategy, 1)]
    assert sum(key in good for key in asked) >= 5


def test_without_the_bandit_members_take_turns(scripted: dict[str, _Diary]) -> None:
    strategy = Hybrid(
        NETWORK.problem(), 0, members=("bad", "good"), start=None, bandit=False, screening=False
    )
    good = {policy.key for policy in strategy._members[1]._policies}  # type: ignore[attr-defined]
    turns = [_round(strategy, 1)[0].key in good for _ in range(6)]
    assert turns == [False, True] * 3


def test_what_another_member_asked_for_is_not_asked_again(scripted: dict[str, _Diary]) -> None:
    strategy = Hybrid(
        NETWORK.problem(), 0, members=("bad", "both"), start=None, bandit=False, screening=False
    )
    asked = [policy for _ in range(5) for policy in strategy.ask(2)]
    assert len(asked) == 10
    assert len(set(asked)) == 10


def test_gain_is_that_of_the_hypervolume_without_violations(scripted: dict[str, _Diary]) -> None:
    problem = NETWORK.problem(("error", "size_bytes"), ["accuracy >= 0.9"])
    strategy = Hybrid(problem, 0, members=("good",), start=None)
    add, space = strategy._progress.add, NETWORK.space
    assert add(ESTIMATOR.estimate(space.smallest)) == 0
    assert add(Evaluation.failed(space.largest, "e", "no memory")) == 0
    first = add(ESTIMATOR.estimate(space.largest))
    assert first > 0
    assert add(ESTIMATOR.estimate(space.largest)) == 0
    share = [r.share(strategy._progress.front) for r in strategy._progress._counted()]
    assert first == pytest.approx(np.mean(share))


def test_a_bandit_follows_a_change() -> None:
    bandit = DiscountedUCB(arms=3, discount=0.9)
    none = np.zeros(3, dtype=np.int64)
    assert sorted(bandit.order(none)) == [0, 1, 2]
    for arm in range(3):
        bandit.tell(arm, 0.0)
    choices = []
    for pull in range(120):
        best = 1 if pull < 60 else 2
        arm = bandit.order(none)[0]
        bandit.tell(arm, 1e-3 if arm == best else 0.0)
        choices.append(arm)
    assert choices[20:60].count(1) > 25
    assert choices[80:].count(2) > 25


def test_what_is_waiting_counts_as_pulled() -> None:
    bandit = DiscountedUCB(arms=2)
    bandit.tell(0, 0.1)
    bandit.tell(1, 0.1)
    assert bandit.order(np.array([5, 0]))[0] == 1
    assert bandit.order(np.array([0, 5]))[0] == 0


def test_the_members_real_start_is_left_out() -> None:
    """After the common start, members work on what it found, without warm-ups of their own."""
    strategy = Hybrid(NETWORK.problem(), 0, members=("nsga2", "ddpg"), start=("random", 10))
    for _ in range(2):
        _round(strategy, 5)
    for member in strategy.state_dict()["members"]:
        assert len(member["start"]) == 0
    assert len(_round(strategy, 5)) == 5


def test_the_surrogate_chooses_and_the_others_wait(scripted: dict[str, _Diary]) -> None:
    strategy = Hybrid(NETWORK.problem(), 0, members=("mixed",), start=None)
    strategy.tell([ESTIMATOR.estimate(policy) for policy in _policies(60, seed=3)])
    asked = strategy.ask(3)
    harms = [NETWORK.accuracy(policy) for policy in asked]
    assert min(harms) > 0.75  # the first it proposed are all worse
    again = strategy.ask(100)
    assert len({*asked, *again}) == len(asked) + len(again) == 103
    assert scripted["mixed"].told == [policy.key for policy in _policies(60, seed=3)]


@pytest.mark.parametrize(
    ("members", "parts"),
    [
        (("bad", "start", "good"), [10, 5, 5]),
        (("bad", "start"), [10, 10]),
        (("bad",), [20]),
        (("empty", "bad"), [0, 10]),
    ],
)
def test_all_members_propose_and_the_one_in_turn_most(
    scripted: dict[str, _Diary], members: tuple[str, ...], parts: list[int]
) -> None:
    settings = {"start": None, "bandit": False, "breeding": False}
    strategy = Hybrid(NETWORK.problem(), 0, members=members, **settings)
    strategy.tell([ESTIMATOR.estimate(policy) for policy in _policies(5, seed=3)])
    strategy.ask(1)
    proposed = [*strategy._waiting.values(), *strategy._asked_by.values()]
    assert [proposed.count(member) for member in range(len(members))] == parts


def test_a_start_that_is_a_member_is_told_once(scripted: dict[str, _Diary]) -> None:
    strategy = Hybrid(NETWORK.problem(), 0, members=("good", "bad"), start=("good", 4))
    asked = [policy.key for policy in _round(strategy, 4)]
    assert scripted["good"].told == scripted["bad"].told == asked


def _informed(breeding: bool, told: int, shifting: bool = False) -> Hybrid:
    """A strategy that knows some policies, and whose only member has run dry."""
    switches = {"start": None, "breeding": breeding, "shifting": shifting}
    strategy = Hybrid(NETWORK.problem(), 0, members=("empty",), **switches)
    strategy.tell([ESTIMATOR.estimate(policy) for policy in _policies(told, seed=3)])
    proposed = [policy for policy in _policies(60, seed=5) if policy not in strategy._seen]
    strategy._waiting = dict.fromkeys(proposed[:30], 0)
    return strategy


def test_what_is_bred_of_candidates_promises_more(scripted: dict[str, _Diary]) -> None:
    enough = math.ceil(PER_PAIR * math.comb(len(NETWORK.space), 2))
    expected = []
    for breeding in (True, False):
        strategy = _informed(breeding, enough)
        candidates = set(strategy._waiting)
        surrogate = strategy._screen.surrogate()
        assert surrogate is not None
        asked = strategy.ask(5)
        assert set(asked) <= candidates or breeding
        assert all(strategy._asked_by[policy.key] == 0 for policy in asked)
        expected.append(surrogate.gains(asked).max())
    assert expected[0] > 1.5 * expected[1]


def test_nothing_is_bred_before_enough_is_known(scripted: dict[str, _Diary]) -> None:
    enough = math.ceil(PER_PAIR * math.comb(len(NETWORK.space), 2))
    strategy = _informed(breeding=True, told=enough - 1)
    candidates = set(strategy._waiting)
    assert set(strategy.ask(5)) <= candidates


@pytest.mark.parametrize("channels", [(), (4, 8, 12, 16)])
def test_genes_of_one_kind_are_bred_at_once_where_the_uncompressed_network_costs_too_much(
    scripted: dict[str, _Diary], channels: tuple[float, ...]
) -> None:
    network = ToyNetwork(layers=8, channels=channels)
    space, rng = network.space, np.random.default_rng(0)
    known = [space.decode(space.sample(rng)) for _ in range(5)]
    bred = []
    for limit in ("size_bytes <= 0.15x", "size_bytes <= 1x"):
        problem = network.problem(constraints=[limit])
        strategy = Hybrid(problem, 0, members=("empty",), start=None, shifting=False)
        strategy.tell([ToyEstimator(network).estimate(policy) for policy in known])
        strategy._waiting = {space.smallest: 0}
        asked = strategy.ask(1)
        bred.append(len(strategy._waiting) > 0)
        assert not any(map(problem.cost_violation, [*asked, *strategy._waiting]))
    assert bred == [not channels, False]


def test_relatives_of_the_front_are_candidates_that_no_turn_is_credited_for(
    scripted: dict[str, _Diary], monkeypatch: pytest.MonkeyPatch
) -> None:
    credited: list[int] = []
    monkeypatch.setattr(DiscountedUCB, "tell", lambda _, arm, gain: credited.append(arm))
    expected, relatives = [], []
    for shifting in (False, True):
        strategy = _informed(breeding=False, told=5, shifting=shifting)
        given = set(strategy._waiting)
        surrogate = strategy._screen.surrogate()
        assert surrogate is not None
        asked = strategy.ask(5)
        relatives.append(len(set(asked) - given))
        credited.clear()
        strategy.tell([ESTIMATOR.estimate(policy) for policy in asked])
        assert credited == [0] * (5 - relatives[-1])
        expected.append(surrogate.gains(asked).max())
    assert relatives[0] == 0 < relatives[1]
    assert expected[1] > expected[0]


def test_what_nobody_proposed_is_told_to_all(scripted: dict[str, _Diary]) -> None:
    settings = {"start": ("start", 4), "sharing": False, "breeding": False}
    strategy = Hybrid(NETWORK.problem(), 0, members=("bad", "empty"), **settings)
    _round(strategy, 4)
    asked = strategy.ask(15)
    proposers = [strategy._asked_by[policy.key] for policy in asked]
    strategy.tell([ESTIMATOR.estimate(policy) for policy in asked])
    assert proposers.count(-2) > 0
    assert scripted["bad"].skipped == scripted["empty"].skipped == 1
    assert scripted["empty"].told[4:] == [
        policy.key for policy, by in zip(asked, proposers, strict=True) if by == -2
    ]


def test_nothing_is_shifted_once_much_is_known(scripted: dict[str, _Diary]) -> None:
    strategy = _informed(breeding=True, told=12, shifting=True)
    strategy.ask(5)
    assert set(strategy._waiting.values()) == {0}


def test_genes_without_a_choice_do_not_delay_breeding(scripted: dict[str, _Diary]) -> None:
    network = ToyNetwork(layers=8, channels=(16,))
    space, rng = network.space, np.random.default_rng(0)
    enough = math.ceil(PER_PAIR * math.comb(8, 2))
    known = list({space.decode(space.sample(rng)): None for _ in range(30)})
    bred = []
    for told in (enough - 1, enough):
        strategy = Hybrid(network.problem(), 0, members=("empty",), start=None)
        strategy.tell([ToyEstimator(network).estimate(policy) for policy in known[:told]])
        strategy._waiting = {known[-1]: 0}
        strategy.ask(1)
        bred.append(len(strategy._waiting) > 0)
    assert bred == [False, True]


def test_genes_of_one_kind_are_not_shifted_together(scripted: dict[str, _Diary]) -> None:
    network = ToyNetwork(layers=8, channels=())
    strategy = Hybrid(network.problem(), 0, members=("empty",), start=None)
    space, rng = network.space, np.random.default_rng(0)
    known = [space.decode(space.sample(rng)) for _ in range(5)]
    strategy.tell([ToyEstimator(network).estimate(policy) for policy in known])
    strategy.ask(5)
    assert not strategy._waiting


def test_relatives_keep_to_the_constraints_on_costs(scripted: dict[str, _Diary]) -> None:
    problem = NETWORK.problem(constraints=["size_bytes <= 0.2x"])
    strategy = Hybrid(problem, 0, members=("empty",), start=None, breeding=False)
    strategy.tell([ESTIMATOR.estimate(policy) for policy in _policies(5, seed=3)])
    asked = strategy.ask(10)
    assert -2 in strategy._waiting.values()
    assert not any(map(problem.cost_violation, [*asked, *strategy._waiting]))


def test_the_least_promising_are_forgotten(
    scripted: dict[str, _Diary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("automl_compress.search.hybrid.WAITING", 10)
    strategy = _informed(breeding=False, told=20)
    surrogate, before = strategy._screen.surrogate(), list(strategy._waiting)
    assert surrogate is not None
    best = sorted(before, key=lambda policy: -surrogate.gains([policy])[0])
    asked = strategy.ask(1)
    assert {*asked, *strategy._waiting} == set(best[:10])


@pytest.mark.usefixtures("scripted")
def test_no_member_makes_it_break_a_constraint_on_costs() -> None:
    """A member that asked for all that meets them, of which much waits, asks for what does not."""
    problem = NETWORK.problem(constraints=["macs <= 0.3x"])
    strategy = Hybrid(problem, 0, ("good", "bad"), None)
    known = [policy for policy in _policies(100, seed=1) if not problem.cost_violation(policy)]
    strategy.tell([ESTIMATOR.estimate(policy) for policy in known])
    assert not any(map(problem.cost_violation, strategy.ask(20)))


def test_members_do_not_take_the_whole_budget_for_their_own() -> None:
    """So that how they begin does not depend on it."""
    problem = ToyNetwork(layers=3).problem()
    known, unknown = (Hybrid(replace(problem, budget=b), 0).state_dict() for b in (20, None))
    assert known["members"][1]["start"] == unknown["members"][1]["start"]
