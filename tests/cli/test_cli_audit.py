"""Auditing a study's estimates, from the folder alone."""

from __future__ import annotations

import fcntl
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau, spearmanr

from automl_compress.cli import main
from automl_compress.engine import Study, audit
from automl_compress.engine.audit import BANDS, TOLERANCE
from automl_compress.engine.rungs import RungSettings
from automl_compress.engine.trained import BRIEF, TrainedEstimator, TrainSettings
from automl_compress.errors import InterruptedStudy
from automl_compress.evaluate import Constraint, Evaluation, network
from automl_compress.ledger import StudyResult
from automl_compress.report import write_report
from automl_compress.report.audit import TRUSTED
from automl_compress.report.summary import Summary
from automl_compress.report.tables import ladder_table
from automl_compress.space import Policy

SWEEP = """
study: tiny
workload: {model: digits_cnn, train: {epochs: 2}}
estimate: {images: 100, calibration_images: 24, repair: recalibrate}
strategies: [scaled-random]
seeds: 1
budget: {evaluations: 30}
finalists: 2
ladder: [{name: more, images: 120, keep: 1.0}, {name: long, recover: {steps: 4}, keep: 1.0}]
engine: {kind: serial}
"""
POLICIES = 20
QUICK = ["--policies", str(POLICIES), "--steps", "3", "--device", "cpu", "--repair", "none",
         "--short", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "sweep.yaml").write_text(SWEEP)
    Study.from_file(folder / "sweep.yaml").run(folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def finished(searched: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "out"
    shutil.copytree(searched, folder)
    assert main(["audit", str(folder), *QUICK]) == 0
    return folder


def _copy(folder: Path, place: Path) -> Path:
    return Path(shutil.copytree(folder, place / "out"))


def _document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "audit.json").read_text())
    return found


def test_policies_are_spread_and_bands_are_narrow(finished: Path) -> None:
    policies = _document(finished)["policies"]
    assert len(policies) == POLICIES
    assert len({Policy.from_dict(p["policy"]).key for p in policies}) == POLICIES
    groups = [p["group"] for p in policies]
    assert {g: groups.count(g) for g in set(groups)} == {"front": 4, "off the front": 4, "band": 12}
    front = {point.policy.key for point in StudyResult(finished).front()}
    for policy in policies:
        assert (policy["group"] == "front") <= (Policy.from_dict(policy["policy"]).key in front)
    for band in range(1, BANDS + 1):
        costs = [p["costs"] for p in policies if p["band"] == band]
        assert len(costs) == 3
        for name in ("size_bytes", "macs"):
            values = [cost[name] for cost in costs]
            assert max(values) / min(values) <= (1 + TOLERANCE) / (1 - TOLERANCE)


def test_correlations_are_those_of_the_accuracies(finished: Path) -> None:
    document = _document(finished)
    trained = [p["accuracy"]["trained"] for p in document["policies"]]
    cheap = ("learned", "search", "redrawn", "full", "repair none", "training of 1 step")
    assert list(document["rungs"]) == [*cheap, "ladder's more", "trained"]
    for name in (*cheap, "ladder's more"):
        values = [p["accuracy"][name] for p in document["policies"]]
        found = document["correlations"][name]["overall"]
        assert found["kendall"]["value"] == pytest.approx(kendalltau(values, trained)[0])
        assert found["spearman"]["value"] == pytest.approx(spearmanr(values, trained)[0])
        assert found["kendall"]["low"] <= found["kendall"]["value"] <= found["kendall"]["high"]
    images = {name: rung["images"] for name, rung in document["rungs"].items()}
    assert (images["search"], images["ladder's more"]) == (100, 120)
    sizes = [p["costs"]["size_bytes"] for p in document["policies"]]
    size = document["correlations"]["size_bytes"]["overall"]["spearman"]["value"]
    assert size == pytest.approx(spearmanr(sizes, trained)[0])


def test_divergences_rank_too(finished: Path) -> None:
    document = _document(finished)
    trained = np.array([p["accuracy"]["trained"] for p in document["policies"]])
    for rung in ("search", "redrawn", "full", "repair none"):
        apart = np.array([p["divergence"][rung] for p in document["policies"]])
        assert ((apart >= 0) & (apart <= 1)).all()
        found = document["correlations"][f"{rung} divergence"]["overall"]
        assert found["kendall"]["value"] == pytest.approx(kendalltau(-apart, trained).statistic)
        assert found["spearman"]["value"] == pytest.approx(spearmanr(-apart, trained).statistic)
    assert "learned" not in document["policies"][0]["divergence"]
    assert "trained" not in document["policies"][0]["divergence"]
    assert "| search estimate, by divergence | " in (finished / "report.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_trainings_outlast_what_only_measures_otherwise(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of before the estimator learnt to measure more is audited without a training."""
    folder = _copy(finished, tmp_path)
    before = _document(folder)
    monkeypatch.setattr(network, "VERSION", network.VERSION + 1)
    monkeypatch.setattr(TrainedEstimator, "estimate", None)
    assert main(["audit", str(folder), *QUICK]) == 0
    after = _document(folder)
    assert after["rungs"]["trained"] == before["rungs"]["trained"]
    assert after["rungs"]["search"]["estimator"] != before["rungs"]["search"]["estimator"]
    assert after["correlations"] == before["correlations"]


def test_a_finished_study_without_a_front_is_to_be_extended(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(searched, tmp_path)
    manifest = StudyResult(folder).manifest
    replace(manifest, constraints=(Constraint("size_bytes", 1.0),)).write(folder)
    assert main(["audit", str(folder), *QUICK]) == 2
    assert f"'extend {folder} --evaluations N'" in capsys.readouterr().err


def test_networks_that_are_built_otherwise_are_refused(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(network, "BUILDS", network.BUILDS + 1)
    assert main(["audit", str(_copy(finished, tmp_path))]) == 2
    assert "have changed; restore them" in capsys.readouterr().err


def test_another_draw_moves_estimates_as_their_errors_say(finished: Path) -> None:
    noise = _document(finished)["noise"]
    policies = _document(finished)["policies"]
    pairs = np.array([[p["accuracy"][n] for n in ("search", "redrawn")] for p in policies])
    assert noise["measured"] == pytest.approx(np.sqrt((np.diff(pairs) ** 2).mean() / 2))
    assert 0.3 < noise["measured"] / noise["stated"] < 3.0


def test_the_report_carries_it(finished: Path) -> None:
    report = (finished / "report.md").read_text()
    assert "What the estimates are worth" in report
    tau = _document(finished)["correlations"]["search"]["overall"]["kendall"]["value"]
    assert f"| search estimate | {tau:.3f} (" in report
    assert "figures/audit.svg" in report
    assert (finished / "figures/audit.svg").stat().st_size < 200_000
    assert "Kendall's tau with it" in report  # of the ladder's rungs


def test_an_audit_leaves_the_ladder_as_it_was_climbed(searched: Path, finished: Path) -> None:
    """Although it measures other policies on the ladder's rungs, into the same ledger."""
    before, after = (ladder_table(Summary(StudyResult(f))).rows for f in (searched, finished))
    assert after == before


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("tau", [TRUSTED - 0.01, TRUSTED])
def test_reports_warn_of_estimates_that_rank_otherwise(
    finished: Path, tmp_path: Path, tau: float
) -> None:
    folder = _copy(finished, tmp_path)
    document = _document(folder)
    document["correlations"]["search"]["overall"]["kendall"]["value"] = 0.9
    document["correlations"]["search"]["within_bands"]["spearman"]["value"] = tau
    for name in document["correlations"].keys() - {"search"}:
        value = 0.8 if name in ("search divergence", "full", "macs") else 0.1
        document["correlations"][name]["overall"]["kendall"]["value"] = 0.75
        document["correlations"][name]["within_bands"]["spearman"]["value"] = value
    (folder / "audit.json").write_text(json.dumps(document))
    write_report(folder)
    report = (folder / "report.md").read_text()
    assert "examples were drawn more often where the uncompressed network's answer is" in report
    warned = "Warning: the search's estimate does not rank" in report
    assert warned == (tau < TRUSTED)
    others = "search estimate, by divergence; all search-validation examples. Objectives may"
    assert (f"What reaches both here: {others}" in report) == warned


def test_bands_whose_networks_are_alike_are_told(finished: Path) -> None:
    policies = [p for p in _document(finished)["policies"] if p["band"]]
    squares = []
    for band in range(1, BANDS + 1):
        trained = [p["accuracy"]["trained"] for p in policies if p["band"] == band]
        squares += [(accuracy - np.mean(trained)) ** 2 for accuracy in trained]
    scatter = np.sqrt(sum(squares) / (len(policies) - BANDS))
    assert f"scatter by {100 * scatter:.2f} points" in (finished / "report.md").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_stopped_audit_goes_on_and_ends_alike(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the trainings, with what comes before them in the ledger."""
    folder = _copy(finished, tmp_path)
    (folder / "audit.json").unlink()
    trained = _document(finished)["rungs"]["trained"]["estimator"]
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("DELETE FROM evaluations WHERE estimator = ?", (trained,))
    made: list[str] = []
    plain = TrainedEstimator.estimate

    def counted(self: TrainedEstimator, policy: Policy) -> Evaluation:
        made.append(policy.key)
        if len(made) == 7:
            raise InterruptedStudy("stopped")
        return plain(self, policy)

    monkeypatch.setattr(TrainedEstimator, "estimate", counted)
    assert main(["audit", str(folder), *QUICK]) == 130
    assert not (folder / "audit.json").exists()
    assert main(["audit", str(folder), *QUICK, "--json", str(tmp_path / "a.json")]) == 0
    assert len(made) == POLICIES + 1
    one, two, printed = _document(folder), _document(finished), tmp_path / "a.json"
    for document in (one, two, loaded := json.loads(printed.read_text())):
        for rung in document["rungs"].values():
            rung.pop("seconds")
    assert one == two == loaded


@pytest.mark.usefixtures("no_figures")
def test_a_ladder_that_trains_is_judged_by_a_training_of_another_seed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the same seed would be judged by itself: the longer goes on from where it ends."""
    folder, trained = _copy(finished, tmp_path), set()
    plain = TrainedEstimator.estimate

    def noted(self: TrainedEstimator, policy: Policy) -> Evaluation:
        trained.add((self.settings.steps, self.settings.recovery.training.seed))
        return plain(self, policy)

    monkeypatch.setattr(TrainedEstimator, "estimate", noted)
    quick = ["--policies", "8", "--steps", "6", "--device", "cpu"]
    assert main(["audit", str(folder), *quick]) == 0
    assert trained == {(4, 1), (6, 0)}
    rungs, climbed = _document(folder)["rungs"], StudyResult(folder).manifest.rungs[1]
    assert rungs["ladder's long"]["estimator"] != climbed.estimator
    assert rungs["ladder's more"]["estimator"] == StudyResult(folder).manifest.rungs[0].estimator


@pytest.mark.parametrize(
    ("own", "twice", "other"), [(0, False, 4), (0, True, 4), (5, True, 4), (5, False, 5)]
)
def test_only_a_shared_seed_is_replaced(own: int, twice: bool, other: int) -> None:
    def of_seed(seed: int) -> TrainSettings:
        return TrainSettings(4, replace(BRIEF, training=replace(BRIEF.training, seed=seed)))

    settings = audit.AuditSettings(train=of_seed(0), twice=twice, seed=3)
    assert audit._unshared(RungSettings("r", train=of_seed(own)), settings).train == of_seed(other)


@pytest.mark.slow
@pytest.mark.usefixtures("no_figures")
def test_policies_that_are_trained_twice_are_ranked_by_the_mean(
    finished: Path, tmp_path: Path
) -> None:
    folder = _copy(finished, tmp_path)
    assert main(["audit", str(folder), *QUICK, "--twice"]) == 0
    before, after = _document(finished), _document(folder)
    kinds = ("trained", "trained first", "trained again")
    mean, first, again = (
        np.array([p["accuracy"][kind] for p in after["policies"]]) for kind in kinds
    )
    assert first.tolist() == [p["accuracy"]["trained"] for p in before["policies"]]
    assert (first != again).any()
    assert mean == pytest.approx((first + again) / 2)
    search = [p["accuracy"]["search"] for p in after["policies"]]
    found = after["correlations"]["search"]["overall"]["spearman"]["value"]
    assert found == pytest.approx(spearmanr(search, mean).statistic)
    between = after["correlations"]["trained again"]["overall"]["spearman"]["value"]
    assert between == pytest.approx(spearmanr(first, again).statistic)
    page = (folder / "report.md").read_text()
    assert "| one training, the other | " in page
    assert f"rank each other with Spearman's rho {between:.3f} overall" in page
    assert f"would reach about {np.sqrt(2 * between / (1 + between)):.3f} and" in page
    assert "one training, the other" not in (finished / "report.md").read_text()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("no_figures", "ray_here")
def test_a_cluster_finds_what_one_process_finds(
    searched: Path, finished: Path, tmp_path: Path
) -> None:
    folder = _copy(searched, tmp_path)
    assert main(["audit", str(folder), *QUICK, "--workers", "2"]) == 0
    one, two = _document(folder), _document(finished)
    for document in (one, two):
        for rung in document["rungs"].values():
            rung.pop("seconds")
    assert one == two


def test_a_cluster_trains_on_processors(
    searched: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(audit, "find_device", lambda _: torch.device("cuda"))
    assert main(["audit", str(searched), "--workers", "2"]) == 2
    assert "train on processors, but device is 'auto'; give --device cpu" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policies", "3"], "raise --policies"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--steps", "0"], "at least 1"),
        (["--repair", "non"], "did you mean 'none'"),
        (["--set", "ratte=1"], "did you mean 'rate'"),
        (["--device", "cuda:77"], "must exist"),
        (["--short", "0"], "at least 1 step "),
        (["--steps", "3", "--short", "3"], "correct --short"),
    ],
)
def test_bad_input_is_refused(
    searched: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(searched), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


@pytest.mark.usefixtures("no_figures")
def test_an_audit_leaves_a_study_alone_that_another_process_runs(
    searched: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _copy(searched, tmp_path)
    before = (folder / "ledger.sqlite").read_bytes()
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        assert main(["audit", str(folder), *QUICK]) == 2
        error = capsys.readouterr().err
        assert main(["report", str(folder)]) == 0
    assert error.count("\n") == 1
    assert f"another process runs '{folder}'; wait for it or stop it" in error
    assert (folder / "ledger.sqlite").read_bytes() == before
    assert not (folder / "audit.json").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"version": 99}, "newer"), ({"study": "x"}, "another's"), ({"policies": 3}, "broken")],
)
def test_documents_that_do_not_fit_are_refused(
    finished: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = _copy(finished, tmp_path)
    (folder / "audit.json").write_text(json.dumps({**_document(folder), **changes}))
    assert main(["report", str(folder)]) == 2
    assert said in capsys.readouterr().err
