"""What the tests of engines run in place of real parts: toy estimators, strategies of a user's own,
and a trial that dies.

Ray's processes load this file, each anew: it needs no torch, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.estimator import Estimator
from automl_compress.search import Problem
from automl_compress.search.random_search import RandomSearch
from automl_compress.space import Policy
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=3)


class CountingEstimator(Estimator):
    """A toy estimator that writes a line for every estimate it makes, and can misbehave.

    Args:
        log: file that gets the policy keys.
        deadly: policies whose key starts so kill their process once.
        broken: policies whose key starts so always raise.
        seconds: how long an estimate takes.
    """

    def __init__(
        self, log: Path, deadly: str = "-", broken: str = "-", seconds: float = 0.0
    ) -> None:
        self._toy = ToyEstimator(NETWORK)
        self._log = log
        self._deadly = deadly
        self._broken = broken
        self._seconds = seconds

    @property
    def identity(self) -> str:
        return self._toy.identity

    def estimate(self, policy: Policy) -> Evaluation:
        marker = self._log.with_name(f"{policy.key}.died")
        if policy.key.startswith(self._deadly) and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if policy.key.startswith(self._broken):
            raise ValueError("this policy is broken")
        time.sleep(self._seconds)
        with self._log.open("a") as stream:
            stream.write(f"{policy.key}\n")
        return self._toy.estimate(policy)

    def made(self) -> list[str]:
        return self._log.read_text().split() if self._log.exists() else []


class Unstartable(CountingEstimator):
    """An estimator that no other process can be given, as where its modules are missing."""

    def __setstate__(self, _: object) -> None:
        raise ModuleNotFoundError("No module named 'theirs'")


class TestEstimator(ToyEstimator):
    """The toy's final word: the same answers under another identity."""

    __test__ = False

    def __init__(self, network: ToyNetwork) -> None:
        super().__init__(network)
        self._identity = f"test-{self._identity}"


class RungEstimator(ToyEstimator):
    """Sees harms that the race does not: every second policy is worse than it looks."""

    def __init__(self, name: str) -> None:
        super().__init__(NETWORK)
        self._identity = f"{name}-{self._identity}"

    def estimate(self, policy: Policy) -> Evaluation:
        evaluation = super().estimate(policy) if len(policy) else self._whole(policy)
        drop = 0.1 * (int(policy.key[:8], 16) % 2) if len(policy) else 0.0
        metrics = {**evaluation.metrics, "accuracy": evaluation.metrics["accuracy"] - drop}
        return replace(evaluation, estimator=self._identity, metrics=metrics)

    def _whole(self, policy: Policy) -> Evaluation:
        return Evaluation(policy, self._identity, {"accuracy": 0.94}, images=100)


def own_random(problem: Problem, seed: int) -> RandomSearch:
    """A user's strategy."""
    return RandomSearch(problem, seed)


class FailingStrategy(RandomSearch):
    """A user's strategy that does not know what to ask after it was told."""

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        raise ValueError(f"{len(evaluations)} are\ntoo many")


class FailingOnce:
    """A trial that dies once in its third round, with a checkpoint after every round."""

    __name__ = "failing_once"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, config: dict[str, object], **parameters: object) -> None:
        from ray import tune

        from automl_compress.engine import cluster
        from automl_compress.engine.contestant import Contestant

        folder = self._folder
        if tune.get_checkpoint() is not None:
            (folder / "restored").touch()
        finish = Contestant.finish_round

        def fail(self: Contestant, *arguments: object) -> object:
            if (
                self.record.name == "nsga2-0"
                and self._round == 2
                and not (folder / "failed").exists()
            ):
                (folder / "failed").touch()
                raise RuntimeError("the contestant's node went away")
            return finish(self, *arguments)  # type: ignore[arg-type]

        cluster.CHECKPOINT_SECONDS = 0.0  # type: ignore[misc]
        Contestant.finish_round = fail  # type: ignore[method-assign, assignment]
        try:
            cluster._run_contestant(config, **parameters)  # type: ignore[arg-type]
        finally:
            Contestant.finish_round = finish  # type: ignore[method-assign]
