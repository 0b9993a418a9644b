"""Which regression predicts recorded policies better, and how well."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.engine.cost_regression import CostRegression
from automl_compress.engine.error_regressions import Regression, boosted_trees, process
from automl_compress.evaluate.ranking import kendall
from automl_compress.search.error_model import Known
from automl_compress.workload.cache import cache_folder, store

_logger = logging.getLogger(__name__)

JUDGING: Final = 1
"""Raised whenever a change can move what a cross-validation finds."""

Array = NDArray[np.float64]

FOLDS: Final = 5
"""Parts of the recorded policies, each predicted from the others."""
PROCESS: Final = "Gaussian process"
TREES: Final = "boosted trees"
_MOST: Final = 2_000
"""Policies that are predicted: the first."""


@dataclass(frozen=True)
class Quality:
    """How well a surrogate predicts policies it was not given.

    Args:
        evaluations: it was made of.
        regression: what predicts errors.
        kendall_tau: rank correlation of predicted and recorded quality, in [-1, 1]; NaN where one
            of them is constant.
        r2: share of the quality's variance that is predicted, at most 1.
        cost_error: by cost, the median error as a share of the cost, or of the mean cost where
            that is 0.
    """

    evaluations: int
    regression: str
    kendall_tau: float
    r2: float
    cost_error: Mapping[str, float]

    def __str__(self) -> str:
        costs = ", ".join(f"{name} {error:.2%}" for name, error in self.cost_error.items())
        return (
            f"{self.evaluations} evaluations, {self.regression}; {FOLDS}-fold cross-validation: "
            f"Kendall's tau of the quality {self.kendall_tau:.3f}, R2 {self.r2:.3f}; median error "
            f"of {costs}"
        )


def better(known: Known, names: Sequence[str]) -> tuple[Quality, Regression]:
    """The regression of least squared error in cross-validation, and how well it predicts.

    Costs are predicted too, as they are for policies that nobody recorded. What is found is kept in
    the cache: another command on the same recordings fits one regression in place of eleven.

    Args:
        known: all that is recorded, in random order; costs may be shares of anything.
        names: of the costs.
    """

    @cache
    def fitted() -> Regression:
        return process(known)

    file = f"surrogate-{_digest(known, names)}.json"
    quality = _kept(file)
    if quality is None:
        quality = _cross_validated(known, names, {PROCESS: fitted(), TREES: boosted_trees})
        store(file, json.dumps(asdict(quality)).encode())
    return quality, fitted() if quality.regression == PROCESS else boosted_trees


def _digest(known: Known, names: Sequence[str]) -> str:
    """Of everything that decides what is found."""
    libraries = [version(name) for name in ("numpy", "scipy", "scikit-learn")]
    said = repr((JUDGING, libraries, known.space.to_dict(), list(names)))
    digest = hashlib.sha256(said.encode())
    for part in (known.indices, known.costs, known.errors):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()[:32]


def _kept(file: str) -> Quality | None:
    """What was found before; None when nothing was, or when its file is damaged."""
    path = cache_folder() / file
    if not path.is_file():
        return None
    try:
        found = Quality(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as reason:
        _logger.warning("a cached cross-validation is damaged and made again: %s", reason)
        return None
    return found


def _cross_validated(
    known: Known, names: Sequence[str], regressions: Mapping[str, Regression]
) -> Quality:
    """How well the best of several regressions predicts a part of what is known from the rest."""
    count = min(_MOST, len(known.errors))
    fold = np.arange(len(known.errors)) % FOLDS
    fold[count:] = FOLDS  # given to all
    costs = np.zeros((count, len(names)))
    errors = {name: np.zeros(count) for name in regressions}
    for number in range(FOLDS):
        given, left = _where(known, fold != number), _where(known, fold == number)
        at = np.flatnonzero(fold == number)
        costs[at] = CostRegression(known.space, given.indices, given.costs).predict(left.indices)
        for name, regression in regressions.items():
            errors[name][at] = regression(given)(left.indices, costs[at])
    truth = known.first(count)
    missed = {name: float(((errors[name] - truth.errors) ** 2).mean()) for name in regressions}
    best = min(missed, key=missed.__getitem__)
    return Quality(
        evaluations=len(known.errors),
        regression=best,
        kendall_tau=kendall(errors[best], truth.errors),
        r2=1.0 - missed[best] / max(float(truth.errors.var()), 1e-12),
        cost_error=dict(zip(names, _cost_errors(costs, truth.costs), strict=True)),
    )


def _where(known: Known, which: NDArray[np.bool_]) -> Known:
    return Known(known.space, known.indices[which], known.costs[which], known.errors[which])


def _cost_errors(predicted: Array, costs: Array) -> list[float]:
    """(n_costs,) median relative errors."""
    scale = np.where(costs > 0, costs, np.maximum(costs.mean(axis=0), 1e-12))
    errors: list[float] = np.median(np.abs(predicted - costs) / scale, axis=0).tolist()
    return errors
