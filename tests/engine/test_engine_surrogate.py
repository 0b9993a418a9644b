from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from automl_compress.bench.ablation import PARTS
from automl_compress.cli import main
from automl_compress.engine.replay import replay, table_problem
from automl_compress.engine.simulations import of_ledger
from automl_compress.engine.surrogate import LEAST
from automl_compress.errors import StudyError
from automl_compress.evaluate.ranking import kendall
from automl_compress.ledger import LEDGER, ContestantRecord, Ledger, Manifest, Place, StudyResult
from automl_compress.report.scores import reference_points
from automl_compress.search.priors import scaled_indices
from automl_compress.testing import ToyEstimator, ToyNetwork

NETWORK = ToyNetwork(layers=4)
SPACE = NETWORK.space
BASELINE = {**{n: v for n, v in NETWORK.baseline.items() if n != "error"}, "accuracy": 0.94}
ONE = ContestantRecord("scaled-random-0", "scaled-random", 0)
MANIFEST = Manifest(
    study="toy", status="finished", config={}, fingerprint="f",
    objectives=("error", "size_bytes", "macs"), constraints=(), budget=200, estimator="e",
    test_estimator="t", baseline=BASELINE, test_baseline=BASELINE, contestants=(ONE,),
    space=SPACE.to_dict(),
)  # fmt: skip


def _write(folder: Path, count: int, failing: float = 0.1, judged_by: str = "accuracy") -> Path:
    """A study of the toy's network: scaled random policies, some of them failed."""
    baseline = {judged_by if n == "accuracy" else n: v for n, v in BASELINE.items()}
    rng, estimator = np.random.default_rng(0), ToyEstimator(NETWORK, failing=failing)
    drawn = dict.fromkeys(
        SPACE.decode(scaled_indices(SPACE, rng, float(rng.random()), spread=0.15))
        for _ in range(count)
    )
    folder.mkdir()
    replace(MANIFEST, baseline=baseline, test_baseline=baseline).write(folder)
    with Ledger(folder / LEDGER) as ledger:
        for position, policy in enumerate(drawn):
            place, told = Place(ONE.name, position, position), estimator.estimate(policy)
            metrics = {judged_by if n == "accuracy" else n: v for n, v in told.metrics.items()}
            told = replace(told, estimator="e", metrics=metrics)
            ledger.add(told, place)
            ledger.charge([place], [told])
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("studies") / "toy", 220)


def test_a_surrogate_is_near_the_truth_and_says_how_near(folder: Path) -> None:
    surrogate = of_ledger(StudyResult(folder))
    rng = np.random.default_rng(1)
    new = [
        SPACE.decode(scaled_indices(SPACE, rng, float(rng.random()), spread=0.15))
        for _ in range(100)
    ]
    found = [surrogate.estimate(policy) for policy in new]
    new, found = zip(*((p, e) for p, e in zip(new, found, strict=True) if e.ok), strict=True)
    assert len(new) > 85
    truth = np.array([NETWORK.accuracy(policy) for policy in new])
    predicted = np.array([evaluation.metrics["accuracy"] for evaluation in found])
    r2 = 1 - ((predicted - truth) ** 2).mean() / truth.var()
    assert r2 > 0.95
    assert surrogate.quality.r2 == pytest.approx(r2, abs=0.04)
    assert surrogate.quality.kendall_tau == pytest.approx(kendall(predicted, truth), abs=0.04)
    for name in ("size_bytes", "macs", "params", "bitops"):
        costs = np.array([NETWORK.costs(policy)[name] for policy in new])
        missed = np.median(np.abs([e.metrics[name] for e in found] / costs - 1))
        assert missed < 0.02
        assert surrogate.quality.cost_error[name] == pytest.approx(missed, abs=0.01)


def test_answers_are_pure_and_costs_are_those_of_the_evaluation(folder: Path) -> None:
    one, other = (of_ledger(StudyResult(folder)) for _ in range(2))
    assert one.identity == other.identity
    policy = SPACE.decode(SPACE.sizes // 2)
    other.costs(SPACE.largest)
    assert one.estimate(policy) == other.estimate(policy)
    found = one.estimate(policy).metrics
    assert one.costs(policy) == {name: found[name] for name in one.recorded[1:]}


def test_strategies_rank_on_a_surrogate_as_on_the_truth(folder: Path) -> None:
    surrogate = of_ledger(StudyResult(folder))
    problem = table_problem(surrogate, ("error", "size_bytes"))
    assert problem.counted_error is None  # as in the study
    done = replay(surrogate, problem, ["random", "knapsack"], [0, 1], 40, lambda _: None)
    last = {c.strategy: c.hypervolume[-1] for c in done}
    assert 0 <= last["random"] < last["knapsack"] < 1


def test_what_is_far_from_all_evaluations_has_no_answer(folder: Path) -> None:
    surrogate, study = of_ledger(StudyResult(folder)), StudyResult(folder)
    told = [charge.evaluation for charge in study.charges(ONE.name)]
    assert all(surrogate.estimate(evaluation.policy).ok for evaluation in told if evaluation.ok)
    mixed = SPACE.decode(np.where(np.arange(len(SPACE)) % 2, 0, SPACE.sizes - 1))
    answer = surrogate.estimate(mixed)  # half the genes at one end, half at the other
    assert not answer.ok
    assert "from all recorded policies" in answer.reason


def test_constraints_that_no_evaluation_meets_are_refused(folder: Path) -> None:
    surrogate = of_ledger(StudyResult(folder))
    for text, met in (("macs <= 0.5x", True), ("macs <= 0.0001x", False)):
        problem = table_problem(surrogate, (), [text])
        if met:
            assert surrogate.scale(problem.objectives, problem.constraints)[1] == 1
        else:
            with pytest.raises(StudyError, match="none of the ledger meets macs"):
                surrogate.scale(problem.objectives, problem.constraints)


def test_tight_constraints_leave_the_box_of_the_study(folder: Path) -> None:
    """Nothing that meets them is within 10 points of the uncompressed network."""
    result = StudyResult(folder)
    surrogate = of_ledger(result)
    loose, tight = (
        table_problem(surrogate, ("error", "size_bytes"), texts)
        for texts in ((), ["size_bytes <= 0.1x"])
    )
    scales = [surrogate.scale(p.objectives, p.constraints)[0] for p in (loose, tight)]
    assert scales[0].point == pytest.approx([loose.baseline["error"] + 0.1, *scales[1].point[1:]])
    result.manifest = replace(
        result.manifest, objectives=tight.objectives, constraints=tight.constraints
    )
    assert scales[1].point == pytest.approx(reference_points(result)[1].point)
    assert scales[1].point[0] > scales[0].point[0] + 0.01
    (raced,) = replay(surrogate, tight, ["scaled-random"], [0], 40, lambda _: None)
    assert raced.hypervolume[-1] > 0


def test_small_ledgers_are_refused(tmp_path: Path) -> None:
    study = StudyResult(_write(tmp_path / "small", LEAST - 1, failing=0.0))
    with pytest.raises(StudyError, match=f"at least {LEAST} evaluations that worked"):
        of_ledger(study)


def test_the_command_replays_a_study_and_labels_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "out.md"
    words = ["replay", str(folder), "--strategies", "random", "--seeds", "2", "--budget", "8"]
    assert main([*words, "--markdown", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "error, size_bytes, macs" in printed
    for text in (printed, table.read_text()):
        assert "Simulated on a surrogate of the ledger" in text
        assert "Kendall's tau" in text
    assert "best accuracy, %" in printed
    assert main([*words, "--columns", "accuracy=top1"]) == 2
    assert "--columns and --genes must go with a table" in capsys.readouterr().err
    assert main(["replay", str(tmp_path)]) == 2
    assert "run.json" in capsys.readouterr().err


def test_the_replay_of_a_detectors_study_names_its_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, out = _write(tmp_path / "boxes", 120, judged_by="map50"), tmp_path / "out.json"
    words = ["replay", str(study), "--strategies", "random", "--seeds", "2", "--budget", "8"]
    words += ["--json", str(out), "--resume"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "best mAP50, %" in printed
    first = json.loads(out.read_text())
    assert set(first["map50"]) == {"random-0", "random-1"}
    assert {"map50", "map50_sd"} <= set(first["comparison"][0])
    assert main([*words[:3], "random", "uniform", *words[4:]]) == 0
    assert json.loads(out.read_text())["map50"]["random-1"] == first["map50"]["random-1"]
    capsys.readouterr()
    assert main(["bench", "ablation", str(study), "--seeds", "1", "--budget", "4"]) == 0
    ablated = capsys.readouterr().out
    assert "best mAP50, %" in ablated
    for text in (printed, out.read_text(), ablated):
        assert "accurac" not in text


@pytest.mark.slow
def test_the_ablation_races_on_a_study_as_the_replay_does(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole of `hybrid` and `replay` of it are one race."""
    rows, raced = tmp_path / "rows.json", tmp_path / "raced.json"
    words = [str(folder), "--objectives", "error", "macs", "--constraints", "macs <= 0.9x"]
    words += ["--seeds", "1", "--budget", "16", "--json"]
    assert main(["bench", "ablation", *words, str(rows)]) == 0
    assert "Kendall's tau" in capsys.readouterr().out
    assert main(["replay", *words, str(raced), "--strategies", "hybrid"]) == 0
    found, same = (json.loads(path.read_text()) for path in (rows, raced))
    whole = [row["hypervolume"] for row in found if row["strategy"] == "hybrid"]
    assert whole == pytest.approx([row["hypervolume"] for row in same["comparison"]])
    assert whole[-1] > 0
    assert len({row["strategy"] for row in found}) == len(PARTS)
