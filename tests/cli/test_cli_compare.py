"""`compare` on studies of the digits network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from automl_compress.cli import main
from automl_compress.engine import Study
from automl_compress.evaluate import references
from automl_compress.ledger import StudyResult
from automl_compress.report.scores import minimised_baseline


@pytest.fixture
def longer(study: Path, folder: Path) -> Path:
    """The study with three more evaluations and a strategy more."""
    copy = Path(shutil.copytree(study, folder / "longer"))
    Study.extend(copy, 3, ["random"])
    return copy


def test_studies_of_one_problem_are_compared(
    study: Path, longer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(study), str(longer), "--json", "found.json"]) == 0
    printed = capsys.readouterr().out
    assert "useful at 10" in printed
    found = json.loads(Path("found.json").read_text())
    one, two = found["studies"]
    assert (one["folder"], two["folder"]) == (str(study), str(longer))
    assert two["useful"] >= one["useful"] > 0
    assert two["plain"] >= one["plain"] > 0
    manifest = StudyResult(study).manifest
    plain, _ = references(manifest.objectives, minimised_baseline(manifest))
    values = np.array(
        [[p.objectives[n] for n in manifest.objectives] for p in StudyResult(longer).front()]
    )
    assert two["plain"] == pytest.approx(plain.share(values))
    # The longer study has all that the shorter has, so that its front is the common one.
    assert two["on_common_front"] == two["front"] == len(found["front"])
    for point in found["front"]:
        assert str(longer) in [by["folder"] for by in point["found_by"]]
    by_strategy = {(r["folder"], r["strategy"]): r for r in found["strategies"]}
    alike = [by_strategy[str(f), "scaled-random"]["useful_at_common"] for f in (study, longer)]
    assert alike[0] == alike[1] is not None


def _refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["compare", *arguments, "--json", "found.json"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert not captured.out
    assert not Path("found.json").exists()
    return captured.err


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ('"identity": "', '"identity": "0', "workload"),
        ('"macs"\n ]', '"params"\n ]', "objectives"),
        ('"estimator": "', '"estimator": "0', "estimates"),
        ('"given": {}', '"given": {"accuracy": 0.9}', "given networks"),
    ],
)
def test_other_problems_are_refused(
    before: str, after: str, what: str, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(study, "other"))
    text = (other / "run.json").read_text()
    assert before in text
    (other / "run.json").write_text(text.replace(before, after))
    assert f"same {what}" in _refused(capsys, str(study), str(other))


def test_the_same_limit_may_be_rounded_otherwise(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stated as `0.57x` of 100 it is 56.99999999999999."""
    others = []
    for limit in (56.99999999999999, 57.0, 58.0):
        others.append(str(shutil.copytree(study, f"other-{limit:g}-{len(others)}")))
        data = json.loads((Path(others[-1]) / "run.json").read_text())
        stated = {"metric": "macs", "limit": limit, "relative": False, "text": "macs <= 57"}
        (Path(others[-1]) / "run.json").write_text(json.dumps({**data, "constraints": [stated]}))
    assert main(["compare", *others[:2]]) == 0
    capsys.readouterr()
    assert "same constraints" in _refused(capsys, *others[1:])


def test_no_study_and_the_same_study_are_refused(
    study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "at least two" in _refused(capsys, str(study))
    assert "each once" in _refused(capsys, str(study), f"{study}/../{study.name}")
    assert "must hold run.json" in _refused(capsys, str(study), "nowhere")
