from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_studies import (
    BASELINE,
    TEST_IMAGES,
    draw_policy,
    evaluation,
    manifest,
    only,
    write_study,
)

from automl_compress.errors import StudyError
from automl_compress.evaluate import Evaluation
from automl_compress.ledger import StudyResult
from automl_compress.report import write_report
from automl_compress.report.recovered_figure import draw_recovered
from automl_compress.report.statistics import wilson_interval
from automl_compress.report.summary import Summary


def _recovered(folder: Path, seed: int, size: float, **changes: Any) -> str:
    """A document as `recover` writes it; returns its policy's key."""
    policy = draw_policy(np.random.default_rng(seed), 0.4, 0.4)
    document = {
        "version": 1,
        "study": manifest().fingerprint,
        "policy": policy.to_dict(),
        "finalist": seed or None,
        "costs": {**BASELINE, "size_bytes": size},
        "images": {"train": 50_000, "validation": 512, "test": TEST_IMAGES},
        "settings": {"training": {"epochs": 30}},
        "seconds": 125.0,
        "device": "cuda:0",
        "earlier_epochs": 7,
        "accuracy": {
            "original": {"validation": 0.94, "test": 0.9337},
            "before": {"validation": 0.71, "test": 0.7012},
            "after": {"validation": 0.93, "test": 0.9286},
        },
    }
    place = folder / "recovered" / policy.key
    place.mkdir(parents=True)
    (place / "recovered.json").write_text(json.dumps({**document, **changes}))
    return policy.key


def _report(folder: Path) -> str:
    write_report(folder)
    return (folder / "report.md").read_text()


def test_networks_recovered_before_an_extension_have_the_numbers_of_now(tmp_path: Path) -> None:
    old = manifest().fingerprint
    folder = write_study(tmp_path, fingerprint="e" * 64, extended=(old,))
    _recovered(folder, 2, 343_000.0)
    (network,) = Summary(StudyResult(folder)).recovered
    assert network.finalist is None


@pytest.mark.usefixtures("no_figures")
def test_a_study_without_recovered_networks_does_not_speak_of_them(tmp_path: Path) -> None:
    assert "Recovered" not in _report(write_study(tmp_path))


@pytest.mark.usefixtures("no_figures")
def test_recovered_networks_stand_with_their_test_accuracies(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    _recovered(folder, 2, 343_000.0)
    key = _recovered(folder, 0, 171_500.0)
    text = _report(folder)
    assert "## Recovered networks" in text
    rows = [line for line in text.splitlines() if "70.12 %" in line]
    low, high = wilson_interval(0.9286, TEST_IMAGES)
    assert [row.split(" | ")[0].strip("| ") for row in rows] == [key[:12], "finalist 2"]
    for row, share in zip(rows, ("5.0 %", "10.0 %"), strict=True):
        for cell in ("92.86 %", f"{100 * low:.2f}..{100 * high:.2f} %", "0.51", "37", share):
            assert cell in row
        assert "2 min 05 s" in row
        assert "cuda:0" in row
    assert "Recovered networks" in (folder / "report.html").read_text()


def test_the_front_before_and_after_is_drawn(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    _recovered(folder, 2, 343_000.0)
    assert "figures/recovered.svg" in _report(folder)
    summary = Summary(StudyResult(folder))
    figure = (folder / "figures" / "recovered.svg").read_text()
    for text in ("after recovery", "not trained", "baseline", "size, % of the baseline", "MACs"):
        assert text in figure
    drawing = draw_recovered(summary)
    assert drawing.svg == figure
    assert "before and after recovery" in drawing.alt


@pytest.mark.parametrize(("told", "panel"), [(True, "predicted latency"), (False, "size")])
def test_where_the_latency_is_minimised_the_searchs_prediction_stands_with_them(
    tmp_path: Path, told: bool, panel: str
) -> None:
    """Documents lack it; of a policy that the search was not told of, nobody knows it."""
    chosen = draw_policy(np.random.default_rng(2 if told else 3), 0.4, 0.4)
    found = evaluation(chosen, 0.9, 343_000.0)
    found = Evaluation(chosen, found.estimator, {**found.metrics, "latency_ms": 0.25}, images=512)
    folder = write_study(
        tmp_path,
        [[found]],
        finalists=0,
        finalists_keys=[chosen.key],
        tests=[0.9],
        objectives=("error", "latency_ms"),
        contestants=only("nsga2-0"),
        baseline={**BASELINE, "latency_ms": 0.5},
    )
    _recovered(folder, 2, 343_000.0)
    (row,) = (line for line in _report(folder).splitlines() if "70.12 %" in line)
    assert ("0.2500 ms (50.0 %)" in row) == told
    figure = (folder / "figures" / "recovered.svg").read_text()
    assert f"{panel}, % of the baseline" in figure


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "newer"),
        ({"study": "another"}, "another's"),
        ({"accuracy": {}}, "broken"),
        ({"policy": {"genes": {"nothing": 1}}}, "broken"),
    ],
)
def test_documents_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = write_study(tmp_path)
    _recovered(folder, 1, 1000.0, **changes)
    with pytest.raises(StudyError, match=said) as caught:
        write_report(folder)
    assert "recovered.json" in str(caught.value)
