import numpy as np
import pytest
from report_studies import evaluation, policy, write_study

from automl_compress.ledger import StudyResult
from automl_compress.report import formats, front_table
from automl_compress.report.markdown_text import escape
from automl_compress.report.summary import Summary
from automl_compress.report.table import Column, Table
from automl_compress.report.tables import policy_text

TABLE = Table(
    "Sizes & more",
    (Column("name", "label"), Column("size"), Column("why", "text")),
    (("a|b", "1.0 kB", "<script>"), ("longer", "10.0 kB", "")),
)


def test_text_is_aligned():
    assert TABLE.to_text().splitlines() == [
        "name       size  why",
        "------  -------  --------",
        "a|b      1.0 kB  <script>",
        "longer  10.0 kB",
    ]


def test_markdown_is_aligned_and_escaped():
    assert TABLE.to_markdown().splitlines() == [
        "*Sizes &amp; more*",
        "",
        "| name | size | why |",
        "| --- | ---: | --- |",
        r"| a\|b | 1.0 kB | &lt;script&gt; |",
        "| longer | 10.0 kB |  |",
    ]


def test_html_has_scopes_and_is_escaped():
    page = TABLE.to_html()
    assert "<caption><span>Sizes &amp; more</span></caption>" in page
    assert page.count('scope="col"') == 3
    assert '<th scope="row" class="label">a|b</th>' in page
    assert "&lt;script&gt;" in page
    assert "<script>" not in page


def test_markdown_text_stays_on_one_line_without_markup():
    assert escape("a_b *c*\n[d](e)") == r"a\_b \*c\* \[d\](e)"


@pytest.mark.parametrize(
    ("name", "value", "baseline", "text"),
    [
        ("size_bytes", 301_234.0, 3_430_000.0, "301.2 kB"),
        ("size_bytes", 5_100_000.0, 102_000_000.0, "5.1 MB"),
        ("size_bytes", 320.0, 4_000.0, "320 B"),
        ("macs", 61_234_567.0, 125_485_706.0, "61.2 M"),
        ("params", None, 855_770.0, "–"),
    ],
)
def test_costs_have_the_unit_of_their_baseline(name, value, baseline, text):
    assert formats.cost(name, value, baseline) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0.0 s"), (59.94, "59.9 s"), (59.97, "1 min 00 s"), (200.0, "3 min 20 s"),
     (3599.7, "1 h 00 min"), (7500.0, "2 h 05 min")],
)  # fmt: skip
def test_durations_carry_over(seconds, text):
    assert formats.duration(seconds) == text


def test_points_have_no_negative_zero():
    assert formats.points(-1e-9) == "0.00"
    assert formats.points(-0.0012) == "-0.12"


def test_a_policy_is_listed_by_target():
    chosen = policy(4, 8)
    assert policy_text(evaluation(chosen, 0.9, 1.0)) == (
        "layer0: weight_bits=4\nlayer1: weight_bits=8"
    )


def test_the_terminal_sees_finalists_on_the_test_images(tmp_path):
    result = StudyResult(write_study(tmp_path, 12, finalists=3))
    text = front_table(result)
    finalists = Summary(result).finalists
    assert len(text.splitlines()) == 4 + len(finalists)
    for finalist in finalists:
        assert formats.percent(finalist.quality) in text
    assert "<" not in text


def test_the_terminal_sees_estimates_while_there_is_no_finalist(tmp_path):
    made = [evaluation(policy(2), 0.9, 1e6), evaluation(policy(4), 0.8, 2e6)]
    result = StudyResult(write_study(tmp_path, [made, *[[]] * 6], finalists=0))
    lines = front_table(result).splitlines()
    assert "estimate" in lines[0]
    assert len(lines) == 4
    assert "90.00 %" in lines[-1]
    assert np.array_equal([p.objectives["error"] for p in result.front()], [1 - 0.9])
