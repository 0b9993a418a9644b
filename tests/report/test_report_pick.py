"""Rules that pick one network, on a small study whose numbers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl_compress.errors import StudyError
from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.ledger import LEDGER, ContestantRecord, Ledger, Manifest, Place, StudyResult
from automl_compress.report import pick_network
from automl_compress.space import Policy

# Bits, search accuracy, bytes, MACs and test accuracy; the last two are not tested.
ROWS = [
    (2, 0.70, 100.0, 40.0, 0.72),
    (3, 0.86, 150.0, 40.0, 0.84),
    (4, 0.88, 260.0, 60.0, 0.89),
    (5, 0.90, 500.0, 80.0, 0.91),
    (6, 0.80, 130.0, 45.0, None),
    (7, 0.905, 800.0, 90.0, None),
]
POLICIES = {bits: Policy({"weight_bits:a": bits}) for bits, *_ in ROWS}
MANIFEST = Manifest(
    study="s", status="finished", config={}, fingerprint="f",
    objectives=("error", "size_bytes"), constraints=(), budget=9, estimator="e",
    test_estimator="t", baseline={"accuracy": 0.92, "size_bytes": 1000.0, "macs": 100.0},
    test_baseline={"accuracy": 0.91, "size_bytes": 1000.0, "macs": 100.0},
    contestants=(ContestantRecord("nsga2-0", "nsga2", 0),),
    finalists=tuple(POLICIES[bits].key for bits in (5, 4, 3, 2)),
)  # fmt: skip


def study(folder: Path, rows: Sequence[tuple[Any, ...]] = ROWS, **changes: Any) -> StudyResult:
    replace(MANIFEST, **changes).write(folder)
    with Ledger(folder / LEDGER) as ledger:
        for place, (bits, accuracy, size, macs, tested) in enumerate(rows):
            metrics = {"accuracy": accuracy, "size_bytes": size, "macs": macs}
            found = Evaluation(POLICIES[bits], "e", metrics, images=50)
            where = Place("nsga2-0", place, 0)
            ledger.add(found, where)
            ledger.charge([where], [found])
            if tested is not None and changes.get("finalists") is None:
                final = Evaluation(POLICIES[bits], "t", {**metrics, "accuracy": tested})
                ledger.add(final, Place("finalists", place, 0))
    return StudyResult(folder)


@pytest.mark.parametrize(
    ("rule", "bits", "number"),
    [
        ("size<=0.3kB", 4, 3),
        ("size_bytes <= 0.2x", 3, 2),
        ("size<=200byte", 3, 2),
        ("macs<=0.4x", 3, 2),
        ("size<=200, macs<=0.9x", 3, 2),
        ("accuracy>=0.8", 3, 2),  # the smallest, not the most accurate
        ("accuracy>=0.8,size<=1kB", 5, 4),
        ("error<=0.1", 5, 4),
        ("point:1", 2, 1),
        ("point:4", 5, 4),
        (f"point:{POLICIES[3].key}", 3, 2),
        (f"point:{POLICIES[6].key[:12]}", 6, None),
        # errors over 0.19 and bytes over 1000: (1-.16/.19)(.85)=.134, (1-.11/.19)(.74)=.312,
        # (1-.09/.19)(.5)=.263
        ("knee", 4, 3),
        ("knee,macs<=0.5x", 3, 2),
        ("knee,accuracy>=0.9", 5, 4),
    ],
)
def test_finalists_are_picked_by_their_test_accuracy(
    rule: str, bits: int, number: int | None, tmp_path: Path
) -> None:
    picked = pick_network(study(tmp_path), rule)
    assert picked.policy == POLICIES[bits]
    assert picked.number == number
    assert picked.tested == (number is not None)
    row = next(row for row in ROWS if row[0] == bits)
    assert picked.evaluation.metrics["accuracy"] == (row[4] if picked.tested else row[1])


def test_a_knee_among_networks_that_all_lose_much(tmp_path: Path) -> None:
    """Errors over 0.21, for the limit leaves the original out, and 0.11 is the least below it."""
    far = {"accuracy": 0.99, "size_bytes": 300.0, "macs": 100.0}
    result = study(tmp_path, test_baseline=far)
    assert pick_network(result, "macs<=0.6x").policy == POLICIES[4]
    # (1-.11/.21)(1-260/300)=.063, (1-.16/.21)(1-150/300)=.119
    assert pick_network(result, "knee,macs<=0.6x").policy == POLICIES[3]


@pytest.mark.parametrize(("given", "bits"), [(0.97, 5), (0.89, 4)])
def test_the_knee_of_sparse_networks_counts_from_the_given_one(
    given: float, bits: int, tmp_path: Path
) -> None:
    """Errors over 0.13: (1-.11/.13)(.74)=.114, (1-.09/.13)(.5)=.154; over 0.21 the former."""
    result = study(tmp_path, given={"accuracy": given}, test_given={"accuracy": given})
    assert pick_network(result, "knee").policy == POLICIES[bits]


def test_a_network_of_just_a_relative_limit_is_picked(tmp_path: Path) -> None:
    """0.57 times 100 is 56.99999999999999, 0.29 times 100 is 28.999999999999996."""
    macs = (28.0, 29.0, 40.0, 57.0, 58.0, 90.0)
    rows = [(*row[:3], of, row[4]) for row, of in zip(ROWS, macs, strict=True)]
    result = study(tmp_path, rows)
    assert pick_network(result, "macs<=0.57x").policy == POLICIES[5]
    assert pick_network(result, "macs<=0.29x").policy == POLICIES[3]
    assert pick_network(result, "macs<=0.28x").policy == POLICIES[2]


def test_other_points_count_only_where_no_finalist_fits(tmp_path: Path) -> None:
    result = study(tmp_path)
    picked = pick_network(result, "accuracy>=0.75,size<=140")
    assert (picked.policy, picked.number, picked.tested) == (POLICIES[6], None, False)
    # 3 bits have 0.86 by the search's estimate, but 0.84 when tested.
    assert pick_network(result, "accuracy>=0.85").policy == POLICIES[4]


@pytest.mark.parametrize(
    ("least", "rule", "bits"),
    [
        (0.85, "accuracy>=0.8", 4),  # 3 bits are smaller, but have 0.84 when tested
        (0.9, "knee", 5),  # and 4 bits 0.89
        (0.85, "point:2", 3),  # who names one wants that one
    ],
)
def test_finalists_that_break_a_constraint_when_tested_are_not_picked_by_rules(
    least: float, rule: str, bits: int, tmp_path: Path
) -> None:
    text = f"accuracy >= {least}"
    picked = pick_network(study(tmp_path, constraints=(Constraint.parse(text),)), rule)
    assert picked.policy == POLICIES[bits]
    assert (f"breaks '{text}' as measured" in picked.describe()) == (rule == "point:2")


@pytest.mark.parametrize("rule", ["size<=0.2x", "macs<=0.4x", "knee,size<=0.2x"])
def test_where_all_that_fit_break_a_constraint_the_nearest_is_named(
    rule: str, tmp_path: Path
) -> None:
    """Not one of the front that the search's estimates alone let pass."""
    limit = Constraint.parse("accuracy >= 0.85")
    with pytest.raises(StudyError) as caught:
        pick_network(study(tmp_path, constraints=(limit,)), rule)
    said = (
        f"'{rule}' breaks one; the nearest is finalist 2, key {POLICIES[3].key} (breaks 'accuracy"
    )
    assert said in str(caught.value)
    assert str(caught.value).endswith("84.00 %: loosen the rule, or take that one with 'point:2'")


def test_a_study_without_finalists_is_picked_by_estimates(tmp_path: Path) -> None:
    result = study(tmp_path, finalists=())
    picked = pick_network(result, "size<=0.2x")
    assert (picked.policy, picked.number, picked.tested) == (POLICIES[3], None, False)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("", "a pick must be 'knee', 'point:ID' or limits"),
        ("smallest", "but is 'smallest'"),
        ("size<200kB", "a constraint must be like"),
        ("size>=200kB", "bounded by <="),
        ("size<=200parsec", "unit 'parsec'"),
        ("size<=1kB,knees", "but is 'size<=1kB,knees'"),
        ("latency<=5ms", "'latency_ms'"),
        ("params<=5", "must limit what the study measured (accuracy, size_bytes, macs)"),
        ("point:9", "number, 1..4"),
        ("point:", "names no network"),
        ("point:zzzz", "names no network"),
        ("size<=0.01x", "the nearest is finalist 1, key "),
        ("size<=90,accuracy>=0.99", "size_bytes 260 B, accuracy 89.00 %"),
    ],
)
def test_wrong_rules_are_refused_in_one_line(rule: str, said: str, tmp_path: Path) -> None:
    result = study(tmp_path)
    with pytest.raises(StudyError) as caught:
        pick_network(result, rule)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        ("interrupted", "go on with 'resume"),
        ("finished", "'extend .* --evaluations N', or search again with looser constraints"),
    ],
)
def test_a_study_that_found_nothing(status: str, remedy: str, tmp_path: Path) -> None:
    replace(MANIFEST, status=status, finalists=()).write(tmp_path)
    Ledger(tmp_path / LEDGER).close()
    with pytest.raises(StudyError, match=remedy):
        pick_network(StudyResult(tmp_path), "knee")
