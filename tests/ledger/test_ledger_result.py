from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from automl_compress.errors import StudyError
from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.ledger import (
    LEDGER,
    MANIFEST,
    TIMING_COLUMNS,
    ContestantRecord,
    Ledger,
    Manifest,
    Place,
    StudyResult,
)
from automl_compress.space import Policy

A, B, C, D, BROKEN = (Policy({"weight_bits:a": b, "weight_bits:b": 8}) for b in (2, 3, 4, 5, 6))
ANSWERS = {
    A: Evaluation(A, "e", {"accuracy": 0.5, "size_bytes": 10.0}, images=50, seconds=1.0),
    B: Evaluation(B, "e", {"accuracy": 0.8, "size_bytes": 20.0}, images=50),
    C: Evaluation(C, "e", {"accuracy": 0.75, "size_bytes": 25.0}, images=50),  # B dominates it
    D: Evaluation(D, "e", {"accuracy": 0.9, "size_bytes": 40.0}, images=50),
    BROKEN: Evaluation.failed(BROKEN, "e", "out of memory"),
}
CONTESTANTS = (
    ContestantRecord("nsga2-1", "nsga2", 1),
    ContestantRecord("ddpg-0", "ddpg", 0),
    ContestantRecord("uniform-0", "uniform", 0, in_race=False),
)
MANIFEST_OF_TEST = Manifest(
    study="s", status="finished", config={"budget": {"evaluations": 3}}, fingerprint="f",
    objectives=("error", "size_bytes"), constraints=(), budget=3, estimator="e",
    test_estimator="t", baseline={"accuracy": 0.95, "size_bytes": 100.0},
    test_baseline={"accuracy": 0.94, "size_bytes": 100.0}, contestants=CONTESTANTS,
    finalists=(B.key,),
)  # fmt: skip
# Contestant, round and what it was told; the second asks for B in an earlier round.
TOLD = [
    ("nsga2-1", 0, [A, BROKEN]), ("nsga2-1", 1, [B]), ("ddpg-0", 0, [B, A]), ("ddpg-0", 1, [C]),
    ("uniform-0", 0, [D]),
]  # fmt: skip


def _study(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    replace(MANIFEST_OF_TEST, **changes).write(folder)
    positions: dict[str, int] = {}
    with Ledger(folder / LEDGER) as ledger:
        for contestant, round_, policies in TOLD:
            for policy in policies:
                place = Place(contestant, positions.setdefault(contestant, 0), round_)
                positions[contestant] += 1
                ledger.add(ANSWERS[policy], place)
                ledger.charge([place], [ANSWERS[policy]])
        ledger.add(Evaluation(B, "t", {"accuracy": 0.79}), Place("test", 0, 0))
        ledger.add(Evaluation.failed(A, "t", "no memory"), Place("test", 1, 0))
    return folder


def test_the_front_merges_contestants_and_names_the_first_finder(tmp_path: Path) -> None:
    front = StudyResult(_study(tmp_path)).front()
    assert [p.policy for p in front] == [D, B, A]
    assert [(p.strategy, p.seed) for p in front] == [("uniform", 0), ("ddpg", 0), ("nsga2", 1)]
    assert [p.test_accuracy for p in front] == [None, 0.79, None]
    assert front[1].objectives == {"error": pytest.approx(0.2), "size_bytes": 20.0}


def test_the_front_keeps_what_meets_the_constraints(tmp_path: Path) -> None:
    constraints = (Constraint.parse("size_bytes <= 30"), Constraint.parse("accuracy >= 0.6"))
    result = StudyResult(_study(tmp_path, constraints=constraints))
    assert [p.policy for p in result.front()] == [B]
    assert result.manifest.constraints == constraints


def test_the_table_has_a_row_per_charge_in_order(tmp_path: Path) -> None:
    table = StudyResult(_study(tmp_path)).to_dataframe()
    assert list(table.columns) == [
        "contestant", "strategy", "seed", "in_race", "position", "round", "policy_key", "policy",
        "status", "reason", "accuracy", "accuracy_se", "size_bytes", "macs", "params", "bitops",
        "images", "shared", "seconds", "finished",
    ]  # fmt: skip
    assert table["contestant"].tolist() == ["nsga2-1"] * 3 + ["ddpg-0"] * 3 + ["uniform-0"]
    assert table["position"].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert table["in_race"].tolist() == [True] * 6 + [False]
    assert [Policy.from_json(p) for p in table["policy"]] == [A, BROKEN, B, B, A, C, D]
    assert table["status"].tolist() == ["ok", "failed"] + ["ok"] * 5
    assert table["reason"][1] == "out of memory"
    assert math.isnan(table["accuracy"][1])
    assert table["macs"].isna().all()
    # B is right on 40 of 50 images.
    share = 41 / 52
    assert table["accuracy_se"][2] == pytest.approx(math.sqrt(share * (1 - share) / 53))
    assert table["accuracy_se"].isna().tolist() == [False, True] + [False] * 5


def test_shared_follows_the_order_of_a_serial_run_and_hit_that_of_this_one(tmp_path: Path) -> None:
    table = StudyResult(_study(tmp_path)).to_dataframe()
    # In round 0 ddpg asks for B before nsga2 does in round 1, and for A after nsga2.
    assert table["shared"].tolist() == [False, False, True, False, True, False, False]
    # The ledger saw nsga2 make B first.
    result = StudyResult(_study(tmp_path / "again"))
    hits = [[c.hit for c in result.charges(name)] for name in ("nsga2-1", "ddpg-0", "uniform-0")]
    assert hits == [[False, False, False], [True, True, False], [False]]
    assert set(TIMING_COLUMNS) == {"seconds", "finished"}


def test_saving_copies_the_study(tmp_path: Path) -> None:
    result = StudyResult(_study(tmp_path / "study"))
    target = tmp_path / "deep" / "copy"
    result.save(target)
    assert {p.name for p in target.iterdir()} >= {
        MANIFEST, LEDGER, "evaluations.parquet", "front.json",
    }  # fmt: skip
    assert not list(target.glob("*.part"))
    copy = StudyResult(target)
    assert copy.manifest == result.manifest
    pd.testing.assert_frame_equal(copy.to_dataframe(), result.to_dataframe())
    read = pd.read_parquet(target / "evaluations.parquet")
    pd.testing.assert_frame_equal(read, result.to_dataframe(), check_dtype=False)
    document = json.loads((target / "front.json").read_text())
    assert document["version"] == 1
    assert document["objectives"] == [
        {"name": "error", "unit": "1"}, {"name": "size_bytes", "unit": "byte"},
    ]  # fmt: skip
    assert document["baseline"] == {"error": pytest.approx(0.05), "size_bytes": 100.0}
    assert [Policy.from_dict(p["policy"]) for p in document["points"]] == [D, B, A]
    with pytest.raises(StudyError, match="must hold no study"):
        result.save(target)


def test_saving_into_the_studys_own_folder(tmp_path: Path) -> None:
    result = StudyResult(_study(tmp_path))
    before = (tmp_path / MANIFEST).read_bytes()
    result.save(tmp_path)
    result.save(tmp_path / ".." / tmp_path.name)
    assert (tmp_path / MANIFEST).read_bytes() == before
    assert (tmp_path / "front.json").exists()


def test_charges_and_tests_are_looked_up(tmp_path: Path) -> None:
    result = StudyResult(_study(tmp_path))
    assert [c.evaluation.policy for c in result.charges("ddpg-0")] == [B, A, C]
    with pytest.raises(KeyError):
        result.charges("nobody")
    measured = result.test_evaluation(B)
    assert measured is not None
    assert measured.metrics["accuracy"] == 0.79
    assert result.test_evaluation(D) is None


def test_a_study_without_evaluations(tmp_path: Path) -> None:
    replace(MANIFEST_OF_TEST, finalists=()).write(tmp_path)
    Ledger(tmp_path / LEDGER).close()
    result = StudyResult(tmp_path)
    assert result.front() == []
    assert result.to_dataframe().shape == (0, 20)
    result.save(tmp_path)
    assert json.loads((tmp_path / "front.json").read_text())["points"] == []


def test_manifests_round_trip(tmp_path: Path) -> None:
    manifest = replace(
        MANIFEST_OF_TEST,
        constraints=(Constraint.parse("size_bytes <= 30 kB"),),
        space={"genes": {"weight_bits:a": [2, 4]}},
    )
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"version": 1}', '{"version": "x"}']
)
def test_broken_manifests_are_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(StudyError, match=r"run\.json' must be a study's manifest") as caught:
        StudyResult(tmp_path)
    assert "\n" not in str(caught.value)


def test_newer_manifests_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"must hold run\.json"):
        StudyResult(tmp_path)
    MANIFEST_OF_TEST.write(tmp_path)
    with pytest.raises(StudyError, match=r"must hold ledger\.sqlite"):
        StudyResult(tmp_path)
    assert not (tmp_path / LEDGER).exists()
    (tmp_path / LEDGER).write_bytes(b"")  # what a copy that failed leaves
    with pytest.raises(StudyError, match="holds none; restore it"):
        StudyResult(tmp_path)
    replace(MANIFEST_OF_TEST, version=2).write(tmp_path)
    with pytest.raises(StudyError, match="at most 1, but is 2"):
        StudyResult(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full disk to try")
@pytest.mark.parametrize("name", [MANIFEST, "evaluations.parquet"])
def test_on_a_full_disk_the_file_is_named(tmp_path: Path, name: str) -> None:
    result = StudyResult(_study(tmp_path))
    (tmp_path / f"{name}.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        result.manifest.write(tmp_path) if name == MANIFEST else result.save(tmp_path)
    assert caught.value.filename == str(tmp_path / name)
