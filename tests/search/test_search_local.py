from __future__ import annotations

import numpy as np

from automl_compress.evaluate import Evaluation
from automl_compress.search.archive import Archive
from automl_compress.search.local import LocalSearch
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=8)


def _evaluations(count: int) -> list[Evaluation]:
    rng = np.random.default_rng(0)
    space = NETWORK.space
    points = [space.from_unit(0.5 + 0.5 * rng.random(len(space))) for _ in range(count)]
    return [ToyEstimator(NETWORK, failing=0.1).estimate(space.decode(point)) for point in points]


def test_the_archive_does_not_depend_on_the_order() -> None:
    for constraints in ([], ["accuracy >= 0.92"], ["accuracy >= 0.999"]):
        problem = NETWORK.problem(constraints=constraints)
        evaluations = _evaluations(60)
        found = []
        for told in (evaluations, evaluations[::-1], evaluations * 2):
            archive = Archive(problem)
            for evaluation in told:
                archive.add(evaluation)
            found.append({tuple(row) for row in archive.indices})
        assert found[0] == found[1] == found[2]
        assert found[0]


def test_neighbours_differ_in_a_few_genes_from_a_member_of_the_front() -> None:
    problem = NETWORK.problem()
    strategy = LocalSearch(problem, 0, start=4)
    estimator = ToyEstimator(NETWORK)
    strategy.tell([estimator.estimate(policy) for policy in strategy.ask(4)])
    front = strategy.state_dict()["archive"]["indices"]
    space = problem.space
    moved = [int((front != space.encode(policy)).sum(axis=1).min()) for policy in strategy.ask(50)]
    assert min(moved) == 1
    assert 1.5 < np.mean(moved) < 5


def test_every_member_is_explored_before_one_is_again() -> None:
    problem = NETWORK.problem()
    strategy = LocalSearch(problem, 0, start=12)
    estimator = ToyEstimator(NETWORK)
    strategy.tell([estimator.estimate(policy) for policy in strategy.ask(12)])
    members = len(strategy.state_dict()["archive"]["visits"])
    strategy.ask(2 * members)
    assert (strategy.state_dict()["archive"]["visits"] == 2).all()
