"""The serial engine: defines what every engine has to compute, one evaluation at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from automl_compress.engine.contestant import Contestant, Request
from automl_compress.engine.engine import (
    FINALISTS,
    Listener,
    Race,
    RungListener,
    RungStanding,
    ignore,
)
from automl_compress.errors import InterruptedStudy
from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.estimator import Estimator, answer
from automl_compress.ledger import ContestantRecord, Ledger, Place
from automl_compress.space import Policy


class SerialEngine:
    """Contestants take turns, a round each, in this process.

    Args:
        race: what to run.
        threads: torch threads while it runs.
    """

    def __init__(self, race: Race, threads: int = 1) -> None:
        self._race = race
        self._ledger = Ledger(race.ledger)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(threads)

    def run(self, contestants: Sequence[ContestantRecord], listener: Listener) -> None:
        """Run rounds in turn until every contestant is done."""
        running = [Contestant(c, self._race.problem, self._race.budget) for c in contestants]
        try:
            while running:
                running = [
                    contestant for contestant in running if self._round(contestant, listener)
                ]
        except KeyboardInterrupt as reason:
            raise InterruptedStudy("stopped; all finished evaluations are saved") from reason

    def _round(self, contestant: Contestant, listener: Listener) -> bool:
        """One round of one contestant; False when it is done."""
        requests = contestant.next_round()
        if not requests:
            return False
        places = [request.place for request in requests]
        self._ledger.check_asked_again(places, [request.policy for request in requests])
        estimators = [self._race.estimator(request) for request in requests]
        asked = list(zip(requests, estimators, strict=True))
        hits = sum(len(self._ledger.find([r.policy.key], e.identity)) for r, e in asked)
        evaluations = [self._answer(request, estimator) for request, estimator in asked]
        self._ledger.charge(places, evaluations)
        listener(contestant.finish_round(evaluations, hits))
        return True

    def _answer(self, request: Request, estimator: Estimator) -> Evaluation:
        """The ledger's answer, or a new one, committed before it is returned."""
        key = request.policy.key
        found = self._ledger.find([key], estimator.identity)
        if key in found:
            return found[key]
        evaluation = answer(estimator, request.policy)
        self._ledger.add(evaluation, request.place)
        return evaluation

    def measure(
        self, policies: Sequence[Policy], rung: str = FINALISTS, listener: RungListener = ignore
    ) -> None:
        """Measure policies into the ledger, by the test estimator or by that of a rung."""
        estimator = self._race.measures[rung]
        for position, policy in enumerate(policies):
            self._answer(Request(Place(rung, position, 0), policy), estimator)
            listener(RungStanding(rung, position + 1, len(policies)))

    def close(self) -> None:
        """Close the ledger and restore the thread count."""
        torch.set_num_threads(self._threads_before)
        self._ledger.close()
