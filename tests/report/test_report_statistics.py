"""Intervals, fronts and counts against slow ways to have them."""

import itertools

import numpy as np
import pytest
from report_studies import manifest, only, policy, write_study

from automl_compress.evaluate import Evaluation
from automl_compress.ledger import StudyResult
from automl_compress.report.statistics import (
    common_reasons,
    cost_front,
    dominated,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_newcombe(right, images, low, high):
    assert wilson_interval(right / images, images) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_solves_its_equation():
    share, images, z = 0.934, 9488, 1.959963984540054
    for bound in wilson_interval(share, images):
        gap = z * np.sqrt(bound * (1 - bound) / images)
        assert abs(share - bound) == pytest.approx(gap)
    assert wilson_interval(1.0, 5)[1] == 1.0


def test_dominated_agrees_with_a_loop_and_spares_equals():
    values = np.random.default_rng(0).integers(0, 4, (40, 3)).astype(float)
    slow = [any((other <= row).all() and (other < row).any() for other in values) for row in values]
    assert dominated(values).tolist() == slow
    assert not dominated(np.ones((2, 2))).any()
    assert dominated(np.empty((0, 3))).shape == (0,)


def test_cost_front_agrees_with_a_loop():
    values = np.random.default_rng(1).random((60, 3))
    values[7] = np.inf
    best = [
        (row[1], row[0])
        for row in values
        if np.isfinite(row).all()
        and not any(
            o[0] <= row[0] and o[1] <= row[1] and (o[0], o[1]) != (row[0], row[1]) for o in values
        )
    ]
    qualities = np.where(np.isfinite(values[:, 0]), 1 - values[:, 0], np.nan)
    rows = cost_front(qualities, values[:, 1])
    assert values[rows][:, [1, 0]].tolist() == [list(pair) for pair in sorted(best)]


def test_common_reasons_are_counted(tmp_path):
    reasons = ["b", "a", "a", "b", "c", "d"]
    made = [
        Evaluation.failed(policy(*bits), manifest().estimator, reason)
        for reason, bits in zip(reasons, itertools.product((2, 3, 4), (5, 6)), strict=True)
    ]
    folder = write_study(tmp_path, [made], finalists=0, contestants=only("nsga2-0"))
    frame = StudyResult(folder).to_dataframe()
    assert common_reasons(frame) == [("a", 2), ("b", 2), ("c", 1)]
