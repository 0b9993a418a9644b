"""An extended study is the one that was stated so from its start."""

from __future__ import annotations

import errno
import fcntl
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from automl_compress.engine import Study, restore_study
from automl_compress.engine.contestant import Standing
from automl_compress.engine.extension import reopen
from automl_compress.engine.lock import locked
from automl_compress.errors import InterruptedStudy, StudyError, WorkloadError
from automl_compress.ledger import TIMING_COLUMNS, StudyResult
from automl_compress.workload import WorkloadConfig, load_workload

FIRST, MORE = 11, 9  # nsga2 asks ten at once, so that the first budget cuts a round short


def _settings(evaluations: int, *strategies: str) -> dict[str, Any]:
    return {
        "study": "tiny",
        "workload": {"model": "digits_cnn", "train": {"epochs": 1}},
        "estimate": {"images": 50, "calibration_images": 16, "repair": "recalibrate"},
        "strategies": list(strategies),
        "seeds": 2,
        "budget": {"evaluations": evaluations},
        "ladder": [{"name": "full", "images": "all"}],
        "finalists": 2,
        "engine": {"kind": "serial"},
    }


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study; must not be changed."""
    return Study(**_settings(FIRST, "nsga2")).run(tmp_path_factory.mktemp("first")).folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """The study that the first one is extended to, stated so from its start."""
    stated = _settings(FIRST + MORE, "nsga2", "scaled-random")
    return Study(**stated).run(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def study(first: Path, tmp_path: Path) -> Path:
    """A copy of the first study."""
    return Path(shutil.copytree(first, tmp_path / "study"))


def _made(folder: Path) -> dict[str, float]:
    """When each evaluation was made, by policy and estimator."""
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as ledger:
        return dict(
            ledger.execute("SELECT policy_key || estimator, finished FROM evaluations").fetchall()
        )


def _table(result: StudyResult) -> pd.DataFrame:
    return result.to_dataframe().drop(columns=list(TIMING_COLUMNS))


def _check_same(extended: StudyResult, whole: StudyResult) -> None:
    pd.testing.assert_frame_equal(_table(extended), _table(whole))
    assert extended.front_document() == whole.front_document()
    assert extended.manifest.fingerprint == whole.manifest.fingerprint
    assert extended.manifest.finalists == whole.manifest.finalists
    assert extended.manifest.rungs == whole.manifest.rungs
    assert extended.rung("full").keys() == whole.rung("full").keys()
    assert extended.manifest.status == "finished"


def test_evaluations_and_a_strategy_are_added(study: Path, whole: StudyResult) -> None:
    before, old = _made(study), StudyResult(study).manifest
    extended = Study.extend(study, MORE, ["scaled-random"])
    _check_same(extended, whole)
    after = _made(study)
    assert before.items() < after.items()
    assert extended.manifest.extended == (old.fingerprint,)


def test_one_after_the_other_is_both_at_once(study: Path, whole: StudyResult) -> None:
    Study.extend(study, strategies=["scaled-random"])
    extended = Study.extend(study, MORE)
    _check_same(extended, whole)
    assert len(extended.manifest.extended) == 2


def test_an_interrupted_extension_is_resumed_to_the_new_end(
    study: Path, whole: StudyResult
) -> None:
    rounds = iter(range(4))

    def interrupt(_: Standing) -> None:
        if next(rounds, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(InterruptedStudy):
        Study.extend(study, MORE, ["scaled-random"], interrupt)
    resumed = Study.resume(study)
    _check_same(resumed, whole)
    assert len(resumed.manifest.extended) == 1


def test_stopped_at_its_very_end_a_study_is_resumed(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StudyResult, "save", stop)
    with pytest.raises(InterruptedStudy, match="go on with 'resume "):
        Study.resume(study)
    assert StudyResult(study).manifest.status == "interrupted"


def test_killed_before_it_began_it_is_resumed_to_the_old_end(study: Path, first: Path) -> None:
    reopen(study, StudyResult(study).manifest)
    _check_same(Study.resume(study), StudyResult(first))
    assert _made(study) == _made(first)


def test_what_failed_is_tried_again_as_if_it_had_never_failed(study: Path, first: Path) -> None:
    """Where it is asked for; of the race and of the finalists."""
    before = StudyResult(first)
    policies = [before.to_dataframe()["policy_key"][2], before.manifest.finalists[0]]
    with closing(sqlite3.connect(study / "ledger.sqlite")) as ledger, ledger:
        failed = "UPDATE evaluations SET status = 'failed', metrics = '{}' WHERE policy_key = ?"
        ledger.executemany(failed, [(policy,) for policy in policies])
    made = _made(study)
    assert (StudyResult(study).to_dataframe()["status"] == "failed").any()
    _check_same(Study.resume(study, retry_failed=True), before)
    again = {key for key, when in _made(study).items() if made[key] != when}
    assert {key[: len(policies[0])] for key in again} == set(policies)


@pytest.mark.parametrize(
    ("evaluations", "strategies", "said"),
    [
        (0, [], "at least 1, or by a strategy"),
        (-3, ["random"], "at least 1"),
        (2.5, ["random"], "but there are 2.5 evaluations and 1 strategies"),
        (5, ["nsga2"], "'nsga2' takes part already"),
        (5, "nsga2", "'nsga2' takes part already"),
        (5, ["randm"], "did you mean 'random'"),
        (5, ["random", "random"], "each once"),
    ],
)
def test_what_cannot_be_added_is_refused(
    evaluations: int, strategies: str | list[str], said: str, study: Path, first: Path
) -> None:
    with pytest.raises(StudyError, match=said):
        Study.extend(study, evaluations, strategies)
    assert (study / "run.json").read_bytes() == (first / "run.json").read_bytes()
    assert StudyResult(study).spent("nsga2-1") == FIRST


def test_only_finished_and_unchanged_studies_are_extended(study: Path) -> None:
    path = study / "run.json"
    text = path.read_text()
    path.write_text(text.replace('"finished"', '"interrupted"'))
    with pytest.raises(StudyError, match="run 'resume"):
        Study.extend(study, 1)
    path.write_text(text.replace('"epochs": 1', '"epochs": 2'))
    with pytest.raises(StudyError, match="have changed"):
        Study.extend(study, 1)
    assert StudyResult(study).spent("nsga2-1") == FIRST


@pytest.fixture
def while_preparing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Have another process do something once a study has looked at its folder."""
    prepare = Study._prepare

    def have_done(work: Callable[[], object]) -> None:
        def prepared(self: Study, recorded: Any = None) -> Any:
            work()
            return prepare(self, recorded)

        monkeypatch.setattr(Study, "_prepare", prepared)

    return have_done


def _content(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_folder_that_is_taken_meanwhile_is_left_alone(
    first: Path, tmp_path: Path, while_preparing: Callable[[Callable[[], object]], None]
) -> None:
    out = tmp_path / "out"
    while_preparing(lambda: shutil.copytree(first, out))
    with pytest.raises(StudyError, match=r"must hold no study, but .* holds 'tiny' \(finished\)"):
        Study(**_settings(3, "random")).run(out)
    assert _content(out).keys() == {out / path.relative_to(first) for path in _content(first)}
    assert (out / "run.json").read_bytes() == (first / "run.json").read_bytes()
    assert _table(StudyResult(out)).equals(_table(StudyResult(first)))


@pytest.mark.parametrize("go_on", [Study.resume, partial(Study.extend, evaluations=2)])
def test_a_study_that_has_changed_meanwhile_is_left_alone(
    go_on: Callable[[Path], object],
    study: Path,
    while_preparing: Callable[[Callable[[], object]], None],
) -> None:
    after: dict[Path, tuple[bytes, int]] = {}

    def extend() -> None:
        manifest = StudyResult(study).manifest
        replace(manifest, budget=FIRST + MORE, extended=(manifest.fingerprint,)).write(study)
        after.update(_content(study))

    while_preparing(extend)
    with pytest.raises(StudyError, match="one process at a time, but another has changed"):
        go_on(study)
    assert _content(study) == after


def test_a_study_of_a_loaded_workload_goes_on_with_it_alone(first: Path, tmp_path: Path) -> None:
    mine, other = (
        load_workload(WorkloadConfig.of(model="digits_cnn", train={"epochs": 1}, seed=seed))
        for seed in (0, 1)
    )
    settings = _settings(3, "scaled-random")
    del settings["ladder"]
    started = Study(**{**settings, "workload": mine}).run(tmp_path / "study")
    folder, before = started.folder, _table(started)
    assert "workload" not in started.manifest.config
    assert started.manifest.workload["data"] == "given in memory"
    reopen(folder, started.manifest)
    with pytest.raises(StudyError, match=r"'tiny' was given in Python, .* again, as workload="):
        Study.resume(folder)
    with pytest.raises(StudyError, match="have changed"):
        Study.resume(folder, workload=other)
    with pytest.raises(StudyError, match=r"states how to load its own; leave workload= out"):
        Study.resume(first, workload=mine)
    pd.testing.assert_frame_equal(_table(Study.resume(folder, workload=mine)), before)
    assert Study.extend(folder, 1, workload=mine).manifest.budget == 4
    with pytest.raises(StudyError, match="have changed"):
        restore_study(folder, other)
    assert restore_study(folder, mine).workload is mine
    next(mine.model.parameters()).add_(1.0)
    with pytest.raises(WorkloadError, match="was changed after the workload was made; make a new"):
        restore_study(folder, mine)


def test_a_study_that_another_process_runs_is_left_alone(study: Path) -> None:
    before = _content(study)
    with (study / ".lock").open() as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(StudyError, match="once at a time, but another process runs"):
            Study.extend(study, MORE)
    assert _content(study) == before


def test_a_file_system_without_locks_is_named_and_no_other_process_blamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # as Lustre says it

    monkeypatch.setattr(fcntl, "flock", lock)
    with (
        pytest.raises(StudyError, match=r"that locks files, .* \(Function not impl"),
        locked(tmp_path),
    ):
        pass


def test_only_charges_of_the_studys_own_estimators_count(study: Path) -> None:
    manifest = StudyResult(study).manifest
    replace(manifest, estimator="another").write(study)
    assert StudyResult(study).spent("nsga2-1") == 0
