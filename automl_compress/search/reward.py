"""What an evaluation is worth to an agent: accuracy kept, and constraints met."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import Evaluation
from automl_compress.search.strategy import Problem

Array = NDArray[np.float64]
_LARGEST_VIOLATION = 10.0


def outcome(problem: Problem, evaluation: Evaluation) -> Array:
    """(n_objectives + 1,) scaled objectives, the error's damped, then the violation."""
    scaled = problem.scaled(problem.values(evaluation))
    error = problem.loss_place
    scaled[error] = damped(scaled[error])
    return np.append(scaled, min(_LARGEST_VIOLATION, problem.violation(evaluation)))


def rewards(problem: Problem, outcomes: Array) -> Array:
    """(episodes,) useful losses of accuracy and violations, negated."""
    return -outcomes[:, problem.loss_place] - outcomes[:, -1]


def scaled_costs(problem: Problem, outcomes: Array) -> Array:
    """(..., n_costs) the scaled costs of (..., n_objectives) or longer outcomes."""
    count = len(problem.objectives)
    return np.delete(outcomes[..., :count], problem.loss_place, axis=-1)


def damped(steps_lost: float) -> float:
    """Useful losses of accuracy as they are, ruinous ones by their root, so none drowns all."""
    return steps_lost if steps_lost <= 1 else 2.0 * float(np.sqrt(steps_lost)) - 1.0


def undamped(damped_steps: float) -> float:
    """The reverse of `damped`."""
    return damped_steps if damped_steps <= 1 else ((damped_steps + 1.0) / 2.0) ** 2


def attention(problem: Problem, outcomes: Array) -> Array:
    """(episodes,) how often each is learnt from: useful networks more than ruined ones."""
    lost = outcomes[:, problem.loss_place]
    weights: Array = 1.0 / (1.0 + np.maximum(lost, 0.0)) ** 2
    return weights
