"""`extend` on a small study."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl_compress.cli import commands, main
from automl_compress.engine import Study
from automl_compress.ledger import StudyResult


@pytest.mark.usefixtures("no_figures")
def test_extend_goes_beyond_the_end(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["extend", str(study), "--evaluations", "3", "--strategy", "random"]) == 0
    assert f"report: {study / 'report.html'}" in capsys.readouterr().out
    result = StudyResult(study)
    assert result.spent("scaled-random-0") == result.spent("random-0") == 13


def test_what_failed_is_tried_again_where_it_is_asked_for(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a study that is finished."""
    asked: list[dict[str, object]] = []

    def resume(*_: object, **given: object) -> StudyResult:
        asked.append(given)
        return StudyResult(study)

    monkeypatch.setattr(Study, "resume", resume)
    monkeypatch.setattr(commands, "_finish", lambda *_: 0)
    assert main(["resume", str(study)]) == main(["resume", str(study), "--retry-failed"]) == 0
    assert asked == [{"retry_failed": True}]
    assert "only its report is written again" in capsys.readouterr().out


def test_stopped_while_its_report_is_written(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("automl_compress.report.write_report", stop)
    assert main(["resume", str(study)]) == 130
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert f"only its report is missing, which 'report {study}' writes" in errors


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give more of either"),
        (("--evaluations", "-2"), "at least 1"),
        (("--strategy", "randm"), "did you mean 'random'"),
        (("--evaluations", "2", "--workers", "0"), "--workers must be at least 1"),
    ],
)
def test_bad_input_changes_nothing(
    arguments: tuple[str, ...], said: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (study / "run.json").read_bytes()
    assert main(["extend", str(study), *arguments]) == 2
    errors = capsys.readouterr().err
    assert said in errors
    assert errors.count("\n") == 1
    assert (study / "run.json").read_bytes() == before
