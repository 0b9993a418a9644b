"""Studies whose objective is the latency: predicted in the race, measured of the finalists."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import automl_compress as ac
from automl_compress.cli import main
from automl_compress.deploy import latency_calibration, latency_table
from automl_compress.deploy.latency import Latency
from automl_compress.deploy.latency_model import LayerTiming
from automl_compress.deploy.measuring import MeasureSettings
from automl_compress.engine import Study, restore_study
from automl_compress.engine import study as study_module
from automl_compress.engine.config import config_of_mapping
from automl_compress.errors import InputError, StudyError
from automl_compress.ledger import LEDGER, Ledger, Manifest, StudyResult
from automl_compress.report import pick_network, write_report
from automl_compress.space import Policy

pytestmark = pytest.mark.usefixtures("operators_read_once")

pytest.importorskip("onnxruntime")

SETTINGS: dict[str, Any] = {
    "study": "quick",
    "workload": {"model": "digits_cnn", "train": {"epochs": 1}},
    "objectives": ["error", "size_bytes", "latency_ms"],
    "constraints": ["latency_ms <= 0.9x"],
    "estimate": {"images": 60, "calibration_images": 16, "repair": "none"},
    "latency": {"runtime": "onnxruntime", "threads": 1, "batch": 2, "int8": True, "runs": 6},
    "strategies": ["scaled-random"],
    "seeds": 1,
    "budget": {"evaluations": 12},
    "finalists": 3,
    "engine": {"kind": "serial"},
}


class FakeTimers:
    """Times by arithmetic: a layer costs its weights, a network its parameters and a constant."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.layers: list[LayerTiming] = []
        self.networks: list[int] = []
        patch.setattr(latency_table, "measure_layer", self.layer)
        patch.setattr(latency_calibration, "measure_alone", self.alone)

    def layer(self, timing: LayerTiming, batch: int, threads: int) -> float:
        assert (batch, threads) == (2, 1)
        self.layers.append(timing)
        return timing.inputs * timing.outputs * (1e-4 if timing.int8 else 4e-4)

    def alone(
        self, networks: Mapping[str, nn.Module], example_input: Tensor, settings: MeasureSettings
    ) -> dict[str, Latency]:
        assert settings == MeasureSettings(threads=1, batch=2, int8=True, runs=6)
        self.networks.append(len(networks))
        found = {}
        for key, network in networks.items():
            ms = 0.3 + 1e-5 * sum(p.numel() for p in network.parameters())
            found[key] = Latency(ms, ms - 0.01, ms + 0.02, 2, 1, 6, "onnxruntime", 0.97)
        return found


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> FakeTimers:
    return FakeTimers(monkeypatch)


def _study(folder: Path, **changes: Any) -> Study:
    table = {**SETTINGS["latency"], "table": str(folder / "table.json")}
    return Study(**{**SETTINGS, "latency": table, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeTimers]:
    """The folder of a finished study and of its table, and what was timed; only to be read."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        timers = FakeTimers(patch)
        _study(place).run(place / "out")
    return place, timers


@pytest.fixture
def finished(whole: tuple[Path, FakeTimers], tmp_path: Path) -> StudyResult:
    """The study as if it had run in the test's own folder, with its table beside it."""
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    manifest = tmp_path / "out" / "run.json"
    manifest.write_text(manifest.read_text().replace(str(whole[0]), str(tmp_path)))
    return StudyResult(tmp_path / "out")


def test_the_race_predicts_and_finalists_are_measured(whole: tuple[Path, FakeTimers]) -> None:
    result, timers = StudyResult(whole[0] / "out"), whole[1]
    manifest = result.manifest
    assert timers.networks == [4, 1 + len(manifest.finalists)]
    assert len(timers.layers) == latency_table.PASSES * len(set(timers.layers))
    assert (manifest.latency["threads"], manifest.latency["batch"]) == (1, 2)
    assert manifest.latency["model"]["conditions"]["runtime"].startswith("onnxruntime ")
    limit = 0.9 * manifest.baseline["latency_ms"]
    assert manifest.constraints[0].limit == limit
    front = result.front()
    assert front
    assert all(0 < point.objectives["latency_ms"] <= limit for point in front)
    assert "latency_ms" in result.to_dataframe()
    restored = restore_study(result.folder)
    for point in front:
        measured = result.latency(point.policy)
        if point.policy.key not in manifest.finalists:
            assert measured is None
            continue
        parameters = sum(p.numel() for p in restored.build(point.policy).parameters())
        assert measured is not None
        assert measured.metrics["latency_ms"] == pytest.approx(0.3 + 1e-5 * parameters)
        assert measured.metrics["latency_ms_lower"] < measured.metrics["latency_ms"]
    assert result.latency(Policy({})) is not None


def test_engines_have_stopped_when_networks_are_timed(
    tmp_path: Path, timers: FakeTimers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's processes would take part of the time."""
    running: list[str] = []
    alone: list[bool] = []

    @contextmanager
    def connected(_: object) -> Iterator[None]:
        running.append("ray")
        yield
        running.clear()

    def measure(*given: Any) -> dict[str, Latency]:
        alone.append(not running)
        return timers.alone(*given)

    monkeypatch.setattr(study_module, "connected", connected)
    monkeypatch.setattr(latency_calibration, "measure_alone", measure)
    _study(tmp_path).run(tmp_path / "out")
    assert alone == [True, True]


def test_an_equal_study_takes_the_table_as_it_is_and_finds_the_same(
    finished: StudyResult, tmp_path: Path, timers: FakeTimers
) -> None:
    first = finished
    second = _study(tmp_path).run(tmp_path / "two")
    assert not timers.layers
    assert first.manifest.fingerprint == second.manifest.fingerprint
    assert [p.to_dict() for p in first.front()] == [p.to_dict() for p in second.front()]
    table = json.loads((tmp_path / "table.json").read_text())
    table["entries"] = {key: 1.5 * value for key, value in table["entries"].items()}
    (tmp_path / "table.json").write_text(json.dumps(table))
    third = _study(tmp_path).run(tmp_path / "three")
    assert third.manifest.fingerprint != first.manifest.fingerprint


def test_a_study_is_resumed_with_the_table_it_began_with(
    finished: StudyResult, tmp_path: Path, timers: FakeTimers
) -> None:
    _reset(tmp_path / "out")
    (tmp_path / "table.json").unlink()
    again = Study.resume(tmp_path / "out")
    assert again.manifest.fingerprint == finished.manifest.fingerprint
    assert not (tmp_path / "table.json").exists()
    _reset(tmp_path / "out", host="another")
    with pytest.raises(StudyError, match="where its table was made, but that was with another"):
        Study.resume(tmp_path / "out")
    assert restore_study(tmp_path / "out").build(finished.front()[0].policy)


def test_latencies_of_an_extended_study_are_of_one_session(
    finished: StudyResult, tmp_path: Path, timers: FakeTimers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although those of the uncompressed network and of old finalists were known."""
    first = finished
    plain = timers.alone

    def slower(*given: Any) -> dict[str, Latency]:
        names = ("median_ms", "lower_ms", "upper_ms")
        return {
            key: replace(taken, **{n: 1.5 * getattr(taken, n) for n in names})
            for key, taken in plain(*given).items()
        }

    monkeypatch.setattr(latency_calibration, "measure_alone", slower)
    second = Study.extend(tmp_path / "out", 12, ["local"])
    old, new = (set(r.manifest.finalists) for r in (first, second))
    assert old & new
    assert new - old
    restored = restore_study(tmp_path / "out")
    policies = {point.policy.key: point.policy for point in second.front()}
    for policy in (Policy({}), *(policies[key] for key in new)):
        measured = second.latency(policy)
        assert measured is not None
        parameters = sum(p.numel() for p in restored.build(policy).parameters())
        assert measured.metrics["latency_ms"] == pytest.approx(1.5 * (0.3 + 1e-5 * parameters))
    measurer = second.manifest.latency["estimator"]
    with Ledger(tmp_path / "out" / LEDGER) as ledger:
        held = {e.policy.key for e in ledger.evaluations(measurer)}
    assert held == {Policy({}).key, *new}  # none of the session before


def _reset(folder: Path, **conditions: str) -> None:
    """A manifest as if the study had been interrupted, on such a machine."""
    manifest = Manifest.read(folder)
    data = json.loads((folder / "run.json").read_text())
    data["status"] = "interrupted"
    data["latency"]["model"]["conditions"].update(conditions)
    if conditions:  # what a study on that machine would have been called
        from automl_compress.engine.latency import recorded_model
        from automl_compress.engine.restore import load_estimators, stated_config
        from automl_compress.evaluate.latency import WithLatency

        _, search, test = load_estimators(stated_config(manifest))
        model = recorded_model(data["latency"], search.compressor)
        data["estimator"] = WithLatency(search, model).identity
        data["test_estimator"] = WithLatency(test, model).identity
    (folder / "run.json").write_text(json.dumps(data))


def test_picks_and_reports_go_by_the_measured_latency(
    finished: StudyResult, capsys: pytest.CaptureFixture[str]
) -> None:
    result = finished
    taken = {}
    for point in result.front():
        measured = result.latency(point.policy)
        if measured is not None:
            taken[point.policy.key] = measured.metrics["latency_ms"]
    least = min(taken.values())
    picked = pick_network(StudyResult(result.folder), f"latency<={least + 1e-9:.9f}ms")
    assert picked.tested
    assert picked.evaluation.metrics["latency_ms"] == least == taken[picked.policy.key]
    with pytest.raises(StudyError, match=r"nearest is .* latency_ms 0\.3"):
        pick_network(StudyResult(result.folder), "latency<=0.0001ms")
    write_report(result.folder)
    text = (result.folder / "report.md").read_text()
    assert re.search(r"measured latency \\?\(onnxruntime [\d.]+, threads 1, batch 2\\?\)", text)
    assert f"{least:.4f} ms ({least - 0.01:.4f}..{least + 0.02:.4f})" in text.replace("\\", "")
    assert "the median of 6 runs" in text
    assert "holds within that session only" in text
    assert main(["report", str(result.folder)]) == 0
    assert "threads 1, batch 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"latency": None}, "'latency_ms' needs to know how latencies are measured"),
        ({"latency": {"threads": 0}}, "'latency.threads' must be at least 1, but is 0"),
        ({"latency": {"runs": 3}}, "'latency.runs' must be at least 6, but is 3"),
        ({"latency": {"runtime": "tensorrt"}}, "'latency.runtime' must be"),
        ({"latency": {"thread": 2}}, "thread"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(changes: dict[str, Any], said: str) -> None:
    settings = {**SETTINGS, **changes}
    given = {key: value for key, value in settings.items() if value is not None}
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        config_of_mapping(given)
    assert "\n" not in str(caught.value)


def test_a_constraint_alone_needs_the_settings_too() -> None:
    settings = {k: v for k, v in SETTINGS.items() if k not in ("latency", "objectives")}
    with pytest.raises(StudyError, match=re.escape("add latency: {threads: 1, batch: 1}")):
        config_of_mapping(settings)


@pytest.mark.usefixtures("finished")
def test_another_machines_table_is_refused(tmp_path: Path, timers: FakeTimers) -> None:
    table = json.loads((tmp_path / "table.json").read_text())
    table["conditions"]["host"] = "another"
    (tmp_path / "table.json").write_text(json.dumps(table))
    with pytest.raises(InputError, match="made with another; choose another file"):
        _study(tmp_path).run(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_public_names() -> None:
    assert {"latency", "export_onnx"} <= set(ac.__all__)
    assert callable(ac.latency)
    assert callable(ac.export_onnx)
