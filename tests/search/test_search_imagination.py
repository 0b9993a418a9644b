from __future__ import annotations

import numpy as np
import pytest

from automl_compress.evaluate import USEFUL_LOSS, Evaluation
from automl_compress.search.imagination import Imagination
from automl_compress.search.record import Record
from automl_compress.search.reward import damped, undamped
from automl_compress.search.strategy import Problem, Seen
from automl_compress.space import Policy
from automl_compress.testing import ToyNetwork

NETWORK = ToyNetwork(layers=3)
BASELINE = NETWORK.baseline["error"]


def _at(*indices: int) -> Policy:
    return NETWORK.space.decode(np.array(indices))


def _imagination(problem: Problem, told: dict[Policy, float]) -> tuple[Imagination, Seen]:
    record, seen = Record(problem), Seen()
    record.add(
        Evaluation(policy, "e", {"accuracy": accuracy, **NETWORK.costs(policy)})
        for policy, accuracy in told.items()
    )
    for policy in told:
        seen.add(policy)
    return Imagination(problem, record, seen), seen


def test_the_largest_predicted_gain_is_chosen_and_then_believed() -> None:
    problem = NETWORK.problem(("error", "size_bytes"))
    small, middle, near = _at(1, 1, 1, 1, 1, 1), _at(2, 2, 2, 2, 2, 2), _at(2, 2, 2, 2, 2, 1)
    imagination, seen = _imagination(problem, {NETWORK.space.largest: 0.94})
    good, ruined = np.array([-0.1, -0.1, -0.1]), np.array([-9.0, -0.1, -0.1])
    assert imagination.choose([small, middle, near], ruined) == near  # as good, and smaller
    assert near in seen
    # What was chosen is believed to be known, so that the other one next to it gains little.
    assert imagination.choose([middle, small], good[:2]) == small


def test_nothing_old_or_too_costly_is_imagined() -> None:
    problem = NETWORK.problem(("error", "size_bytes"), ["size_bytes <= 0.1x"])
    told = _at(0, 0, 0, 0, 0, 0)
    imagination, seen = _imagination(problem, {told: 0.5})
    new = _at(1, 0, 0, 0, 0, 0)
    assert imagination.new([told, new, NETWORK.space.largest, new]) == [new]
    assert new not in seen


def test_damping_can_be_undone() -> None:
    for steps in (-0.2, 0.0, 1.0, 1.5, 9.0):
        assert undamped(damped(steps)) == pytest.approx(steps)


def test_predictions_are_of_errors_in_useful_losses() -> None:
    problem = NETWORK.problem(("error", "size_bytes"))
    imagination, _ = _imagination(problem, {NETWORK.space.largest: 0.94})
    policy = _at(1, 1, 1, 1, 1, 1)
    imagination.choose([policy], np.array([-0.5]))
    share = np.array([[NETWORK.costs(policy)["size_bytes"] / NETWORK.baseline["size_bytes"]]])
    believed = BASELINE + 0.5 * USEFUL_LOSS
    cells = imagination._cells
    assert cells.gains(share, np.array([believed])) == pytest.approx([0.0])
    assert cells.gains(share, np.array([believed - 0.01]))[0] > 0
