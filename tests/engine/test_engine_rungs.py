"""The fidelity ladder: its settings, the rung that trains, and who climbs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_races import BUDGET, FINALISTS, LADDER, RungEstimator, climbed

from automl_compress.engine.config import config_of_mapping
from automl_compress.engine.promotion import with_ladder
from automl_compress.engine.rungs import RungSettings, best_fronts, places, read_ladder
from automl_compress.engine.statement import fingerprint_of
from automl_compress.engine.trained import TrainedEstimator, TrainSettings
from automl_compress.errors import EngineError, InputError, InterruptedStudy
from automl_compress.evaluate import Evaluation
from automl_compress.evaluate.estimator import answer
from automl_compress.evaluate.network import EstimateSettings, NetworkEstimator
from automl_compress.ledger import LEDGER, MANIFEST, Ledger, Place, StudyResult
from automl_compress.pareto import Reference, front_mask
from automl_compress.recover import Augmentation, RecoverySettings, section_of
from automl_compress.report import write_report
from automl_compress.search import RungOffer
from automl_compress.settings import Origin, Section
from automl_compress.space import Policy
from automl_compress.workload import Workload, WorkloadConfig, load_workload

# Settings


def _ladder(*rungs: dict[str, Any]) -> tuple[RungSettings, ...]:
    section = Section({"ladder": list(rungs)}, {(): Origin("settings")})
    return read_ladder(section)


def test_a_ladder_is_read() -> None:
    full, trained = _ladder(
        {"name": "full", "images": "all", "keep": 0.25},
        {"name": "trained", "recover": {"steps": 30, "rate": 0.01}},
    )
    assert full == RungSettings("full", 0.25)
    assert trained.train is not None
    assert trained.train.steps == 30
    assert trained.train.recovery.training.rate == 0.01
    assert trained.train.recovery.training.average == 0.0  # as brief recoveries have it
    (long,) = _ladder({"name": "long", "recover": {"epochs": 4}})
    assert long.train is not None
    assert long.train.recovery == RecoverySettings.from_section(section_of(epochs=4))


@pytest.mark.parametrize(
    ("rung", "said"),
    [
        ({"name": "full"}, "one of 'images', 'recover' and 'learned'"),
        ({"name": "full", "images": "all", "learned": True}, "one of"),
        ({"name": "full", "images": "some"}, "'all' or at least 1"),
        ({"name": "full", "images": 5, "repair": "magic"}, "one of"),
        ({"name": "search", "images": 5}, "names of their own"),
        ({"name": "full", "images": 5, "keep": 0}, "at least"),
        ({"name": "full", "images": 5, "by": "size_bytes"}, "divergence"),
        ({"name": "full", "recover": {"steps": 1, "epochs": 1}}, "remove one"),
        ({"name": "full", "recover": {"stepps": 1}}, "did you mean 'steps'"),
    ],
)
def test_wrong_rungs_are_refused(rung: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        _ladder(rung)


def test_rungs_share_no_name() -> None:
    with pytest.raises(InputError, match="rename it"):
        _ladder({"name": "a", "images": 5}, {"name": "a", "images": 6})


def test_a_ladder_is_part_of_the_study_and_no_ladder_is_not(tmp_path: Path) -> None:
    climbed(tmp_path)
    manifest = StudyResult(tmp_path).manifest
    bare = with_ladder(manifest, (), {})
    assert bare.fingerprint == manifest.fingerprint
    one, two = (
        with_ladder(manifest, (RungSettings("a", keep),), {"a": RungOffer("a", 2)}).fingerprint
        for keep in (0.5, 0.4)
    )
    assert len({manifest.fingerprint, one, two}) == 3


def test_only_climbers_count_where_they_are_known(tmp_path: Path) -> None:
    _, manifest = climbed(tmp_path)
    full = manifest.rungs[0]
    climbers = StudyResult(tmp_path).rung("full").keys()
    assert set(full.climbers or ()) == climbers
    raced = StudyResult(tmp_path).usable_evaluations()
    other = next(e.policy for key, e in raced.items() if key not in climbers)
    with Ledger(tmp_path / LEDGER) as ledger:
        ledger.add(answer(RungEstimator("full"), other), Place("audit full", 0, 0))
    assert StudyResult(tmp_path).rung("full").keys() == climbers
    stated = json.loads((tmp_path / MANIFEST).read_text())
    for rung in stated["rungs"]:
        del rung["climbers"]
    (tmp_path / MANIFEST).write_text(json.dumps(stated))
    assert StudyResult(tmp_path).rung("full").keys() == {*climbers, other.key}


def test_who_climbed_is_no_part_of_what_decides_evaluations(tmp_path: Path) -> None:
    _, manifest = climbed(tmp_path)
    untold = tuple(replace(rung, climbers=None) for rung in manifest.rungs)
    assert fingerprint_of(replace(manifest, rungs=untold)) == fingerprint_of(manifest)


# Promotion


def test_shares_leave_the_finalists() -> None:
    assert places([0.5, 0.5], 16) == [64, 32]
    assert places([0.3], 3) == [10]
    assert places([], 16) == []


def test_best_fronts_are_whole_fronts() -> None:
    values = np.random.default_rng(0).random((40, 2))
    values[5] = np.inf
    reference = Reference(np.ones(2))
    first = np.flatnonzero(front_mask(values))
    rest = values.copy()
    rest[first] = np.inf
    second = np.flatnonzero(front_mask(rest))
    both = len(first) + len(second)
    assert best_fronts(values, reference, both).tolist() == sorted([*first, *second])
    assert set(first) < set(best_fronts(values, reference, both - 1)) < {*first, *second}
    assert len(best_fronts(values, reference, 99)) == 39


def test_each_rung_measures_the_best_of_the_one_before(tmp_path: Path) -> None:
    finalists, manifest = climbed(tmp_path)
    result = StudyResult(tmp_path)
    counts = places([rung.keep for rung in LADDER], FINALISTS)
    measured = [result.rung(rung.name) for rung in manifest.rungs]
    assert [len(answers) for answers in measured] == counts
    assert set(measured[2]) < set(measured[1]) < set(measured[0])
    assert {policy.key for policy in finalists} < set(measured[2])
    assert [record.baseline["accuracy"] for record in manifest.rungs] == [0.94] * 3
    # What the first rung exposed is left behind, although the race thought well of it.
    exposed = {key for key in measured[0] if int(key[:8], 16) % 2}
    assert exposed
    assert len(exposed & set(measured[2])) < len(exposed)


def test_nothing_is_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    plain = RungEstimator.estimate

    def counted(self: RungEstimator, policy: Policy) -> Evaluation:
        made.append(self.identity + policy.key)
        if len(made) == 9:
            raise InterruptedStudy("stopped")
        return plain(self, policy)

    monkeypatch.setattr(RungEstimator, "estimate", counted)
    with pytest.raises(InterruptedStudy):
        climbed(tmp_path)
    finalists, _ = climbed(tmp_path)
    assert len(made) == len(set(made)) + 1  # the one that was stopped
    assert finalists == climbed(tmp_path / "whole")[0]


def test_a_rung_that_measures_nothing_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: RungEstimator, policy: Policy) -> Evaluation:
        if len(policy):
            raise ValueError("no memory")
        return Evaluation(policy, self.identity, {"accuracy": 0.9})

    monkeypatch.setattr(RungEstimator, "estimate", broken)
    with pytest.raises(EngineError, match=r"rung 'full' measured none.*no memory"):
        climbed(tmp_path)


# The rung that trains


@pytest.fixture(scope="module")
def digits() -> tuple[Workload, NetworkEstimator]:
    workload = load_workload(WorkloadConfig.of(model="digits_cnn", train={"epochs": 4}))
    return workload, NetworkEstimator(workload, EstimateSettings(images=100, calibration_images=32))


def _trained(digits: tuple[Workload, NetworkEstimator], **settings: Any) -> TrainedEstimator:
    section = section_of(**{"steps": 20, "batch": 64, "device": "cpu", **settings})
    return TrainedEstimator(
        digits[0], digits[1].compressor, digits[1].networks, TrainSettings.from_section(section)
    )


POLICY = Policy({"channels:block1.conv1": 8, "channels:block2.conv1": 16, "weight_bits:conv2": 3})


def test_training_pays_and_repeats_itself(digits: tuple[Workload, NetworkEstimator]) -> None:
    estimator = _trained(digits)
    one, two = (answer(estimator, POLICY) for _ in range(2))
    assert one.ok, one.reason
    assert one.metrics == two.metrics
    assert one.images == len(digits[0].splits.validation)
    before = NetworkEstimator(
        digits[0],
        replace(digits[1].settings, images=None),
        digits[1].compressor,
    ).estimate(POLICY)
    assert one.metrics["accuracy"] > before.metrics["accuracy"]
    assert one.metrics["size_bytes"] == before.metrics["size_bytes"]


def test_the_uncompressed_network_is_not_trained(
    digits: tuple[Workload, NetworkEstimator],
) -> None:
    whole = replace(digits[1].settings, images=None)
    before = NetworkEstimator(digits[0], whole, digits[1].compressor).estimate(Policy({}))
    after = _trained(digits).estimate(Policy({}))
    assert after.metrics["accuracy"] == before.metrics["accuracy"]


def test_what_decides_a_training_decides_its_identity(
    digits: tuple[Workload, NetworkEstimator],
) -> None:
    settings: list[dict[str, Any]] = [{}, {"steps": 21}, {"rate": 0.01}, {"seed": 1}]
    assert len({_trained(digits, **given).identity for given in settings}) == 4
    assert _trained(digits).identity == _trained(digits).identity


def test_a_brief_training_changes_no_images_unless_asked() -> None:
    for said, cutout in (((), 0), (("augment.cutout=2",), 2)):
        found = TrainSettings.from_section(section_of(said)).recovery.training.augment
        assert found == Augmentation(crop=0, flip=False, cutout=cutout)


@pytest.mark.parametrize(("steps", "held_out"), [(3, 0.0), (20, 0.0), (50, 0.1)])
def test_as_many_steps_are_made_as_asked_for(
    digits: tuple[Workload, NetworkEstimator],
    monkeypatch: pytest.MonkeyPatch,
    steps: int,
    held_out: float,
) -> None:
    from automl_compress.recover.training import Trainer

    made: list[int] = []
    monkeypatch.setattr(Trainer, "run", lambda self, *_: made.append(self.steps))
    _trained(digits, steps=steps, held_out=held_out).estimate(POLICY)
    passes = math.ceil(steps / (len(digits[0].splits.train) * (1 - held_out) // 64))
    assert steps <= made[0] <= steps + 2 * passes


@pytest.mark.usefixtures("blank_figures")
def test_a_study_climbs_its_ladder(tmp_path: Path) -> None:
    from automl_compress.engine import Study

    study = Study(
        study="tiny",
        workload={"model": "digits_cnn", "train": {"epochs": 2}},
        estimate={"images": 60, "calibration_images": 16},
        strategies=["scaled-random"],
        seeds=1,
        budget={"evaluations": 16},
        engine={"kind": "serial"},
        finalists=2,
        ladder=[
            {"name": "full", "images": "all"},
            {"name": "trained", "recover": {"steps": 4, "device": "cpu"}},
        ],
    )
    result = study.run(tmp_path / "out")
    assert [rung.name for rung in result.manifest.rungs] == ["full", "trained"]
    assert [len(result.rung(n)) for n in ("full", "trained")] == [8, 4]
    assert set(result.manifest.finalists) <= set(result.rung("trained"))
    again = Study.resume(tmp_path / "out")
    assert again.manifest.finalists == result.manifest.finalists
    assert again.manifest.rungs == result.manifest.rungs
    predictor = again.manifest.predictor
    assert predictor["evaluations"] >= 20
    write_report(result.folder)
    report = (result.folder / "report.md").read_text()
    assert "| full | all examples | 8 | 50.00 % |" in report
    assert "| trained | trains for 4 steps of batch 128 | 4 | 50.00 % |" in report
    trained = result.rung("trained")[result.manifest.finalists[0]].metrics["accuracy"]
    assert "on rung trained" in report
    assert f"| {100 * trained:.2f} % |" in report
    assert f"Kendall's tau {predictor['kendall']:.3f}" in report


def test_an_empty_ladder_is_the_default() -> None:
    config = config_of_mapping(
        {"study": "x", "workload": {"model": "digits_cnn"}, "budget": {"evaluations": BUDGET}}
    )
    assert config.ladder == ()
