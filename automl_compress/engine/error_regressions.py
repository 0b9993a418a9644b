"""Regressions of the error over evaluated policies, of which a surrogate takes the better one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import threadpoolctl
from numpy.typing import NDArray

from automl_compress.search.error_model import LINKS, ErrorModel, Known
from automl_compress.space import Indices

Array = NDArray[np.float64]
Predicts = Callable[[Indices, Array], Array]
"""(m,) errors in [0, 1] of (m, n_genes) indices and (m, n_costs) costs as shares."""
Regression = Callable[[Known], Predicts]

MOST: Final = 2_000
"""Policies a Gaussian process takes: the first. Its time grows with their cube."""
MOST_OF_TREES: Final = 20_000
"""Policies that trees take: the first."""


def process(known: Known) -> Regression:
    """The Gaussian process that strategies screen with, its settings chosen on what is known."""
    fit = known.first(MOST).likeliest()

    def learn(part: Known) -> Predicts:
        model = ErrorModel(part.first(MOST), *fit)
        return lambda indices, costs: np.clip(
            model.predict(indices, costs, np.zeros(1))[0], 0.0, 1.0
        )

    return learn


def boosted_trees(known: Known) -> Predicts:
    """Gradient-boosted trees on the genes' indices.

    They learn the error's logarithm. Of the regressions that Zela et al. 2022 (Surrogate NAS
    Benchmarks) fit to recorded networks, boosted trees are among the best. They grow until a tenth
    that is held out gains nothing.
    """
    # Slow to import, and most commands predict nothing.
    from sklearn.ensemble import HistGradientBoostingRegressor

    link = LINKS[0]
    trees = HistGradientBoostingRegressor(
        learning_rate=0.05,
        max_iter=2_000,
        max_leaf_nodes=15,
        early_stopping=True,
        n_iter_no_change=30,
        random_state=0,
    )
    # One policy is asked at a time: threads that wait for each other cost far more than they save.
    threads = threadpoolctl.ThreadpoolController()
    part = known.first(MOST_OF_TREES)
    with threads.limit(limits=1):
        trees.fit(part.indices, link.forward(part.errors))

    def predict(indices: Indices, _: Array) -> Array:
        with threads.limit(limits=1):
            return np.clip(link.inverse(trees.predict(indices)), 0.0, 1.0)

    return predict
