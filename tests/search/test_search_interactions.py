"""A recorded space where harms do not add up: neighbours that are both cut spoil each other."""

from __future__ import annotations

import itertools

import numpy as np

from automl_compress.bench.ablation import Landscape
from automl_compress.engine.replay import table_problem
from automl_compress.evaluate.recorded import RecordedEstimator
from automl_compress.search import build_strategy
from automl_compress.space import Gene, SearchSpace

GENES = 7
WIDTHS = (16, 32, 48, 64)


def _landscape() -> Landscape:
    """Half of the channels may go anywhere; of two neighbours, only of one."""
    indices = np.array(list(itertools.product(range(len(WIDTHS)), repeat=GENES)))
    kept = np.array(WIDTHS)[indices] / WIDTHS[-1]
    harms = (1.0 - kept) ** 2 @ np.linspace(0.05, 0.2, GENES)
    spoiled = ((kept[:, 1:] <= 0.5) & (kept[:, :-1] <= 0.5)).sum(axis=1)
    metrics = {
        "accuracy": 0.94 * np.exp(-harms) * 0.12**spoiled,
        "macs": kept[:, 0] + (kept[:, 1:] * kept[:, :-1]) @ np.linspace(1.5, 0.5, GENES - 1),
    }
    space = SearchSpace([Gene(f"channels:{i}", "channels", WIDTHS) for i in range(GENES)])
    shape = tuple(space.sizes)
    table = RecordedEstimator(space, {name: v.reshape(shape) for name, v in metrics.items()})
    return Landscape.of_table(table, table_problem(table, ("error", "macs")))


LANDSCAPE = _landscape()


def _reached(name: str, evaluations: int, seeds: int) -> float:
    """Mean share of the exact front's hypervolume."""
    strategies = [build_strategy(name, LANDSCAPE.problem, seed) for seed in range(seeds)]
    return float(np.mean([LANDSCAPE.race(s, evaluations)[0, -1] for s in strategies]))


def test_hybrid_is_ahead_of_random_from_its_25th_evaluation_on() -> None:
    assert _reached("hybrid", 25, seeds=4) > _reached("random", 25, seeds=30)


def test_evolution_is_not_behind_pymoos() -> None:
    assert _reached("nsga2", 100, seeds=20) > _reached("nsga2-random", 100, seeds=20)
