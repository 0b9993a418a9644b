"""Rank correlations against scipy's, and against loops within bands."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau, rankdata, spearmanr

from automl_compress.evaluate.ranking import (
    RESAMPLES,
    Correlation,
    correlate,
    kendall,
    kendall_of_samples,
    spearman,
    spearman_of_samples,
)


def _pair(seed: int, ties: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    one = rng.normal(size=40)
    other = one + rng.normal(size=40)
    return (one, other) if not ties else (np.round(ties * one), np.round(ties * other))


@pytest.mark.parametrize("ties", [0, 1, 3])
def test_they_are_scipys(ties: int) -> None:
    one, other = _pair(0, ties)
    assert kendall(one, other) == pytest.approx(kendalltau(one, other)[0])
    assert spearman(one, other) == pytest.approx(spearmanr(one, other)[0])


def test_only_pairs_of_a_band_count() -> None:
    one, other = _pair(1)
    bands = np.arange(40) % 3
    one = one + 10 * bands  # between bands everything is ranked alike
    other = other + 10 * bands
    alike = apart = 0
    for i in range(40):
        for j in range(i):
            if bands[i] == bands[j]:
                product = (one[i] - one[j]) * (other[i] - other[j])
                alike, apart = alike + (product > 0), apart + (product < 0)
    assert kendall(one, other, bands) == pytest.approx((alike - apart) / (alike + apart))
    assert kendall(one, other) > kendall(one, other, bands)
    ranks = np.empty((2, 40))
    for band in range(3):
        for row, values in enumerate((one, other)):
            mine = bands == band
            ranks[row, mine] = rankdata(values[mine]) - (mine.sum() + 1) / 2
    assert spearman(one, other, bands) == pytest.approx(np.corrcoef(ranks)[0, 1])


@pytest.mark.parametrize("banded", [False, True])
@pytest.mark.parametrize(
    ("of_samples", "of_one"), [(kendall_of_samples, kendall), (spearman_of_samples, spearman)]
)
def test_samples_are_ranked_as_their_policies_are(
    of_samples: Any, of_one: Any, banded: bool
) -> None:
    one, other = _pair(3, ties=2)
    bands = np.arange(40) % 3 if banded else None
    drawn = np.random.default_rng(0).integers(0, 40, (RESAMPLES, 40))
    expected = [of_one(one[r], other[r], bands[r] if banded else None) for r in drawn]
    interval = correlate(of_samples, one, other, bands)
    assert interval.value == of_one(one, other, bands)
    assert [interval.low, interval.high] == np.percentile(expected, [2.5, 97.5]).tolist()


def test_intervals_cover_the_true_correlation() -> None:
    rng = np.random.default_rng(2)
    truth = 2 / math.pi * math.asin(0.8)  # of a normal pair (Greiner 1909)
    covered = 0
    for _ in range(20):
        x, noise = rng.normal(size=(2, 40))
        found = correlate(kendall_of_samples, x, 0.8 * x + 0.6 * noise)
        assert found.low < found.value < found.high
        covered += found.low <= truth <= found.high
    assert covered >= 16


def test_what_cannot_be_ranked_is_nan() -> None:
    found = correlate(spearman_of_samples, np.ones(5), np.arange(5.0))
    assert math.isnan(found.value)
    assert math.isnan(found.low)
    assert Correlation.from_dict(Correlation(0.5, 0.1, 0.7).to_dict()).low == 0.1
