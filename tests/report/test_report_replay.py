from __future__ import annotations

import numpy as np
import pytest

from automl_compress.report.replay import compare_curves, curves_caption, curves_table, holm
from automl_compress.report.ties import levelled


def test_holm_by_hand() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_rows_hold_means_ranks_and_tests() -> None:
    seeds = np.arange(8) / 1000
    good, line = (np.stack([start + seeds, start + 0.1 + seeds], 1) for start in (0.5, 0.3))
    curves = {"good": good, "line": line}
    rows = compare_curves(curves, curves, (1, 2), "line")
    first = rows[0]
    assert (first["strategy"], first["evaluations"], first["seeds"]) == ("good", 1, 8)
    assert first["hypervolume"] == pytest.approx(0.5035)
    assert first["hypervolume_sd"] == pytest.approx(seeds.std(ddof=1))
    assert [row["rank"] for row in rows] == [1.0, 2.0, 1.0, 2.0]
    # All eight above all eight: the exact two-sided p is 2 / C(16, 8); Holm doubles it.
    assert first["p"] == pytest.approx(2 * 2 / 12_870)
    assert rows[1]["p"] is None
    table = curves_table(rows, "line", "a caption")
    assert [row[0] for row in table.rows] == ["good", "line"]
    assert table.rows[0][1:3] == ("0.5035 ± 0.0024", "0.6035 ± 0.0024")
    assert table.columns[-1].title == "best accuracy, %"


def test_rows_and_columns_name_what_networks_are_judged_by() -> None:
    curves = {"line": np.array([[0.5], [0.7]])}
    rows = compare_curves(curves, curves, (1,), "line", "map50")
    assert rows[0]["map50"] == pytest.approx(0.6)
    assert rows[0]["map50_sd"] == pytest.approx(np.sqrt(0.02))
    table = curves_table(rows, "line", "a caption")
    assert table.columns[-1].title == "best mAP50, %"
    assert table.rows[0][-1] == "60.00 ± 14.14"
    assert "accuracy" not in rows[0]


def test_the_last_bit_decides_neither_ranks_nor_order_nor_tests() -> None:
    """Ten seeds each; one is better by what its sums were rounded by, and by more than that."""
    noise = np.nextafter(0.3, 1) - 0.3
    for more, ranks, order in (
        (noise, [1.5, 1.5], ["line", "other"]),
        (1e-6, [2.0, 1.0], ["other", "line"]),
    ):
        curves = {"line": np.full((10, 1), 0.3), "other": np.full((10, 1), 0.3 + more)}
        rows = compare_curves(curves, curves, (1,), "line")
        assert [row["rank"] for row in rows] == ranks
        assert (rows[1]["p"] == 1.0) == (more == noise)
        assert [row[0] for row in curves_table(rows, "line", "").rows] == order


def test_levelled_agrees_with_a_loop() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 6, (7, 5)) / 10 + rng.normal(0, 1e-15, (7, 5))
    for row in np.ndindex(numbers.shape):
        equal = numbers[abs(numbers - numbers[row]) < 1e-9]
        assert levelled(numbers)[row] == equal.min()
    apart = np.array([0.3, 0.3 + 1e-8, 0.3 + 4e-9])
    assert levelled(apart).tolist() == apart.tolist()
    border = np.array([0.1234567895, np.nextafter(0.1234567895, 0), np.nextafter(0.1234567895, 1)])
    assert len(set(levelled(border).tolist())) == 1
    assert levelled(np.empty(0)).shape == (0,)


def test_one_seed_has_no_standard_deviation() -> None:
    curves = {"line": np.array([[0.5, 0.7]])}
    rows = compare_curves(curves, curves, (1, 2), "line")
    assert [(row["hypervolume_sd"], row["accuracy_sd"]) for row in rows] == [(None, None)] * 2
    table = curves_table(rows, "line", curves_caption("Hypervolume", 1, ("error", "macs")))
    assert table.rows == (("line", "0.5000", "0.7000", "1.0", "", "70.00"),)
    assert table.caption == "Hypervolume, one seed; p: Mann-Whitney, Holm-corrected; error, macs"
    assert "mean ± standard deviation of 2 seeds" in curves_caption("Hypervolume", 2, ("error",))
