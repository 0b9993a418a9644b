"""A contestant: one strategy with one seed, and its share of the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from automl_compress.errors import EngineError
from automl_compress.evaluate import (
    Evaluation,
    beyond,
    leave_out,
    objective_values,
    references,
    useful_baseline,
)
from automl_compress.ledger import ContestantRecord, Place
from automl_compress.pareto import Reference
from automl_compress.search import Problem, State, build_strategy
from automl_compress.space import Policy

MILD_LOSS = 0.01
"""Loss of quality up to which a network is worth showing while a search runs."""


@dataclass(frozen=True)
class Request:
    """One evaluation a contestant asks for.

    Args:
        place: who asks, and when.
        policy: what is measured.
        rung: by which rung; empty for the search's estimator.
    """

    place: Place
    policy: Policy
    rung: str = ""


@dataclass(frozen=True)
class Standing:
    """How a contestant does, for progress shown while a study runs.

    Args:
        contestant: its name.
        done: evaluations charged.
        hits: how many of them were made for someone else.
        failed: how many failed.
        useful: useful hypervolume, in [0, 1]; None where constraints leave the uncompressed network
            out, for what is useful then depends on the best that all contestants find.
        smallest_share: smallest size, as a share of the baseline's, of a network that loses at
            most `MILD_LOSS` against what the user gave; None when there is none, or size is no
            objective.
        least_loss: least value of the measured objective among what worked and meets the
            constraints; None when nothing does.
        loss: that objective's name.
        in_race: False for the uniform line that is drawn for reference only.
    """

    contestant: str
    done: int
    hits: int
    failed: int
    useful: float | None
    smallest_share: float | None
    least_loss: float | None = None
    loss: str = "error"
    in_race: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


class Contestant:
    """Works in rounds: asks a batch, waits for all of it, is told it in the order asked.

    What it asks depends on the study and its seed only, never on who else runs or how fast.

    Args:
        record: name, strategy and seed.
        problem: what is searched.
        budget: evaluations it is charged.
    """

    def __init__(self, record: ContestantRecord, problem: Problem, budget: int) -> None:
        self.record = record
        self._problem = problem
        self._budget = budget
        known = replace(problem, budget=budget)
        self._strategy = build_strategy(record.strategy, known, record.seed)
        self._position = 0
        self._round = 0
        self._asked: list[Request] = []
        self._score = _Score(record, problem)

    def plan(self) -> list[str]:
        """What its strategy sets out to do."""
        return self._strategy.plan()

    def next_round(self) -> list[Request]:
        """The next batch; empty when the budget is spent or the space exhausted."""
        requests = self._on_rungs()
        position = self._position + sum(map(self._cost, requests))
        wanted = min(self._strategy.batch, self._budget - position)
        policies = self._strategy.ask(wanted) if wanted > 0 else []
        self._asked = requests + [
            Request(Place(self.record.name, position + offset, self._round), policy)
            for offset, policy in enumerate(policies)
        ]
        return self._asked

    def _on_rungs(self) -> list[Request]:
        """What the strategy wants to know from other rungs, as far as the budget allows.

        Raises:
            EngineError: it asks for a rung that is not offered.
        """
        requests: list[Request] = []
        position = self._position
        left = self._budget - position
        for asked in self._strategy.ask_rungs(left) if left > 0 and self._problem.rungs else []:
            if asked.rung not in self._problem.rungs:
                raise EngineError(
                    f"a strategy must ask for a rung of {', '.join(self._problem.rungs)}, but "
                    f"'{self.record.strategy}' asks for '{asked.rung}'"
                )
            place = Place(self.record.name, position, self._round)
            request = Request(place, asked.policy, asked.rung)
            if position + self._cost(request) <= self._budget:
                requests.append(request)
                position += self._cost(request)
        return requests

    def _cost(self, request: Request) -> int:
        """Evaluations of the budget that a request is charged."""
        return self._problem.rungs[request.rung].cost if request.rung else 1

    def finish_round(self, evaluations: Sequence[Evaluation], hits: int) -> Standing:
        """Tell the strategy what it asked for in `next_round`.

        Args:
            evaluations: answers in the order asked.
            hits: how many of them were made for someone else.
        """
        self._strategy.tell(evaluations)
        charged = sum(map(self._cost, self._asked))
        self._position += charged
        self._round += 1
        # A rung may measure just as the search does, so that estimators do not tell them apart.
        answers = zip(self._asked, evaluations, strict=True)
        raced = [evaluation for request, evaluation in answers if not request.rung]
        return self._score.add(raced, charged, hits)

    def state_dict(self) -> State:
        """Everything needed to go on from the end of this round."""
        return {
            "position": self._position,
            "round": self._round,
            "strategy": self._strategy.state_dict(),
            "score": self._score.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on where another instance was."""
        self._position = state["position"]
        self._round = state["round"]
        self._strategy.load_state_dict(state["strategy"])
        self._score.load_state_dict(state["score"])


class _Score:
    """Running standing of a contestant."""

    def __init__(self, record: ContestantRecord, problem: Problem) -> None:
        self._record = record
        self._problem = problem
        self._reference: Reference | None = None
        if not leave_out(problem.constraints, problem.baseline):
            start = useful_baseline(problem.baseline, problem.sparsity_loss)
            self._reference = references(problem.objectives, start)[1]
        self._values = np.empty((0, len(problem.objectives)))
        self._smallest: float | None = None
        self._counts = [0, 0, 0]  # done, hits, failed

    def add(self, evaluations: Sequence[Evaluation], charged: int, hits: int) -> Standing:
        allowed = [e for e in evaluations if e.ok and not self._problem.violation(e)]
        values = objective_values(allowed, self._problem.objectives)
        self._values = np.vstack([self._values, values])
        self._note_smallest(allowed)
        self._counts[0] += charged
        self._counts[1] += hits
        self._counts[2] += sum(not e.ok for e in evaluations)
        done, all_hits, failed = self._counts
        useful = None if self._reference is None else self._reference.share(self._values)
        return Standing(
            self._record.name,
            done,
            all_hits,
            failed,
            useful,
            self._smallest,
            self._least_loss(),
            self._problem.loss,
            self._record.in_race,
        )

    def _least_loss(self) -> float | None:
        losses = self._values[:, self._problem.loss_place]
        return float(losses.min()) if len(losses) else None

    def _note_smallest(self, evaluations: Sequence[Evaluation]) -> None:
        baseline = self._problem.baseline
        if "size_bytes" not in self._problem.objectives:
            return
        limit = baseline["error"] - self._problem.sparsity_loss + MILD_LOSS
        good = [e for e in evaluations if beyond("error", e.minimised("error"), limit) <= 0]
        known = [] if self._smallest is None else [self._smallest]
        shares = [e.metrics["size_bytes"] / baseline["size_bytes"] for e in good]
        self._smallest = min([*known, *shares], default=None)

    def state_dict(self) -> State:
        return {
            "values": self._values,
            "smallest": self._smallest,
            "counts": list(self._counts),
        }

    def load_state_dict(self, state: State) -> None:
        self._values = state["values"]
        self._smallest = state["smallest"]
        self._counts = list(state["counts"])
