"""What an audit's verdict says, and how surely."""

from __future__ import annotations

import numpy as np
import pytest

from automl_compress.report import audit_views
from automl_compress.report.audit import NULLS, SEARCH, Audit, audit_verdict

DOUBT = "leave the other answer possible"
Interval = tuple[float | None, float | None, float | None]


def _audit(overall: Interval, within: Interval) -> Audit:
    def measures(low: float | None, value: float | None, high: float | None) -> dict[str, object]:
        found = {"low": low, "value": value, "high": high}
        return {"kendall": found, "spearman": found}

    both = {"overall": measures(*overall), "within_bands": measures(*within)}
    return Audit(
        policies=({},) * 12,
        correlations=dict.fromkeys((SEARCH, *NULLS), both),  # type: ignore[arg-type]
        noise={},
        rungs={},
        settings={},
        failed=0,
        quality="accuracy",
        loss="error",
    )


@pytest.mark.parametrize(
    ("overall", "within", "warned", "doubted"),
    [
        ((0.75, 0.8, 0.9), (0.71, 0.8, 0.9), False, False),
        ((0.75, 0.8, 0.9), (0.2, 0.8, 0.9), False, True),
        ((0.6, 0.8, 0.9), (0.71, 0.8, 0.9), False, True),
        ((0.75, 0.8, 0.9), (0.1, 0.6, 0.8), True, True),
        ((0.5, 0.6, 0.8), (0.1, 0.6, 0.8), True, True),
        ((0.5, 0.6, 0.65), (0.1, 0.6, 0.8), True, False),
        ((0.75, 0.8, 0.9), (0.1, 0.6, 0.69), True, False),
        ((None, None, None), (None, None, None), True, True),
    ],
)
def test_a_verdict_says_where_its_intervals_allow_the_other(
    overall: Interval, within: Interval, warned: bool, doubted: bool
) -> None:
    said = audit_verdict(_audit(overall, within))
    assert said.startswith("Warning") == warned
    assert (DOUBT in said) == doubted


def test_doubts_name_policies_intervals_and_the_remedy() -> None:
    said = audit_verdict(_audit((0.75, 0.8, 0.9), (-0.25, 0.8, 0.9)))
    assert "12 policies leave" in said
    assert "intervals are 0.75 to 0.90 and -0.25 to 0.90; more of them (audit --policies)" in said


def test_a_verdict_says_where_nothing_is_known() -> None:
    said = audit_verdict(_audit((0.75, 0.8, 0.9), (None, None, None)))
    assert "tau is 0.800 overall, and Spearman's rho within budget bands unknown;" in said
    assert "–" not in said


def test_bands_differ_in_form_too() -> None:
    handles = audit_views._handles(np.array([0, 1, 2, 3, 4]))
    assert len({handle.get_marker() for handle in handles}) == 5


def test_bands_are_spoken_of_where_there_are_any() -> None:
    assert audit_views._bands_note(np.array([0, 0])) == ""
    assert "shown larger below" in audit_views._bands_note(np.array([0, 1]))
