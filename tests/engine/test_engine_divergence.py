"""Studies that minimise how far answers are from the uncompressed network's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl_compress.engine import Study
from automl_compress.engine.promotion import candidates_of_race, candidates_of_rung
from automl_compress.errors import InputError
from automl_compress.ledger import StudyResult
from automl_compress.report import pick_network, write_report

SETTINGS: dict[str, Any] = {
    "study": "tiny",
    "workload": {"model": "digits_cnn", "train": {"epochs": 3}},
    "objectives": ["divergence", "size_bytes"],
    "estimate": {"images": 100, "calibration_images": 24, "repair": "recalibrate"},
    "strategies": ["scaled-random"],
    "seeds": 1,
    "budget": {"evaluations": 20},
    "finalists": 3,
    "engine": {"kind": "serial"},
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    ladder = [
        {"name": "full", "images": "all", "keep": 0.5},
        {"name": "short", "recover": {"steps": 2, "batch": 32, "device": "cpu"}, "keep": 1.0},
    ]
    study = Study(**SETTINGS, ladder=ladder, constraints=["accuracy >= 0.3", "divergence <= 0.9"])
    return study.run(tmp_path_factory.mktemp("study") / "out")


def test_the_front_is_that_of_divergence_and_size(result: StudyResult) -> None:
    table = result.to_dataframe()
    good = table[(table["accuracy"] >= 0.3) & (table["divergence"] <= 0.9)]
    pairs = good[["divergence", "size_bytes"]].to_numpy()
    beaten = [
        bool(((pairs <= pair).all(axis=1) & (pairs < pair).any(axis=1)).any()) for pair in pairs
    ]
    expected = {tuple(pair) for pair in pairs[~np.array(beaten)]}
    document = json.loads((result.folder / "front.json").read_text())
    assert document["objectives"][0] == {"name": "divergence", "unit": "1"}
    assert document["baseline"]["divergence"] == pytest.approx(0.0, abs=0.01)
    found = {(p["objectives"]["divergence"], p["objectives"]["size_bytes"])
             for p in document["points"]}  # fmt: skip
    assert found == expected
    assert len(found) > 1


def test_rungs_judge_by_the_divergence_where_they_know_it(result: StudyResult) -> None:
    full, short = (result.rung(name) for name in ("full", "short"))
    assert all(0 <= e.metrics["divergence"] <= 1 for e in full.values())
    assert all("divergence" not in e.metrics for e in short.values())
    assert 1 <= len(result.manifest.finalists) <= len(short) <= len(full)


def test_candidates_are_judged_by_either_loss(result: StudyResult) -> None:
    table = result.to_dataframe().drop_duplicates("policy_key").set_index("policy_key")
    for by, losses in ((None, table["divergence"]), ("error", 1 - table["accuracy"])):
        found = candidates_of_race(result, by)
        assert found.names == (by or "divergence", "size_bytes")
        good = np.isfinite(found.values[:, 0])
        keys = [p.key for p, kept in zip(found.policies, good, strict=True) if kept]
        np.testing.assert_allclose(found.values[good, 0], losses[keys])
        assert (np.diff(found.values[good, 0]) >= 0).all()
    full, short = (result.rung(name) for name in ("full", "short"))
    baseline = result.manifest.rungs[0].baseline
    by_error = candidates_of_rung(result, full, baseline, "error")
    assert by_error.values[:, 0].tolist() == [
        full[policy.key].minimised("error") for policy in by_error.policies
    ]
    assert candidates_of_rung(result, full, baseline).names[0] == "divergence"
    assert candidates_of_rung(result, short, baseline).names[0] == "error"


def test_who_climbs_is_decided_by_the_loss_that_a_rung_names(tmp_path: Path) -> None:
    ladder = [{"name": "full", "images": 60, "by": "divergence", "keep": 1.0}]
    changes = {"objectives": ["error", "size_bytes"], "ladder": ladder, "finalists": 5}
    found = Study(**{**SETTINGS, **changes}).run(tmp_path / "out")
    by_error, by_divergence = (
        {policy.key for policy in candidates_of_race(found, by).climbing(5)}
        for by in ("error", "divergence")
    )
    assert set(found.rung("full")) == by_divergence != by_error


def test_it_is_reported_and_picked_from(result: StudyResult) -> None:
    text = write_report(result.folder).with_suffix(".md").read_text()
    assert "Objectives, all minimised: divergence, size\\_bytes." in text
    assert (result.folder / "figures/front_size_bytes.svg").exists()
    assert pick_network(result, "knee").tested
    limited = pick_network(result, "divergence<=0.9")
    assert limited.evaluation.metrics["divergence"] <= 0.9


def test_what_networks_do_not_have_cannot_be_minimised(tmp_path: Path) -> None:
    for key, value in (("objectives", ["divergence", "latency_ms"]),
                       ("constraints", ["latency_ms <= 1 ms"])):  # fmt: skip
        with pytest.raises(InputError, match="latency_ms"):
            Study(**{**SETTINGS, key: value}).run(tmp_path)
    assert not (tmp_path / "run.json").exists()
