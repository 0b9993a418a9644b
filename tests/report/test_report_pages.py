import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_studies import (
    BASELINE,
    CONTESTANTS,
    TEST_IMAGES,
    evaluation,
    manifest,
    only,
    policy,
    write_study,
)

from automl_compress.errors import StudyError
from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.ledger import (
    LEDGER,
    ContestantRecord,
    Ledger,
    Manifest,
    Place,
    StudyResult,
)
from automl_compress.report import front_table, write_report
from automl_compress.report.content import build_document
from automl_compress.report.document import Document
from automl_compress.report.figures import draw_front
from automl_compress.report.formats import percent, points
from automl_compress.report.html import to_html
from automl_compress.report.markdown import to_markdown
from automl_compress.report.summary import Summary
from automl_compress.report.table import Table, columns_of
from automl_compress.report.tables import NO_FRONT

EVIL = '<script>alert("1")</script> & | `x`'
VOID = {"meta", "br", "img", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that elements close in order, and collects what a test asks about."""

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.targets, self.resources = [], [], [], []
        self.tags, self.words = [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href", "data", "poster"):
                (self.targets if value.startswith("#") else self.resources).append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def pages(folder):
    """Write the report and read it back: parsed HTML, raw HTML and raw Markdown."""
    path = write_report(folder)
    raw = path.read_text(encoding="utf-8")
    return Page(raw), raw, (folder / "report.md").read_text(encoding="utf-8")


def words(folder):
    """The same without figures, which take most of the time: parsed HTML and raw Markdown."""
    document = build_document(Summary(StudyResult(folder)), {})
    return Page(to_html(document)), to_markdown(document)


def contents(folder):
    names = ("report.html", "report.md", "front.json", "evaluations.parquet")
    files = [*(folder / name for name in names), *sorted((folder / "figures").iterdir())]
    return {file.name: file.read_bytes() for file in files}


def outcomes(count):
    """One evaluation for each of the seven contestants' turns, then none."""
    return [[evaluation(policy(2 + i), 0.93, 1e6)] if i < count else [] for i in range(7)]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study with its report; tests must not change it."""
    folder = write_study(tmp_path_factory.mktemp("studies") / "whole", 30, finalists=5)
    write_report(folder)
    return folder


@pytest.fixture
def copy(study, tmp_path):
    return Path(shutil.copytree(study, tmp_path / "whole"))


def change(folder, **changes):
    replace(Manifest.read(folder), **changes).write(folder)


def test_a_report_of_what_a_study_returned(study, copy, undrawn):
    """Its folder is read as it is now, and no file is another than of the folder's name."""
    result = StudyResult(copy)
    shutil.rmtree(copy / "figures")
    change(copy, study="renamed")
    with undrawn():
        assert write_report(result) == copy / "report.html"
    assert "renamed" in (copy / "report.md").read_text()
    change(copy, study=StudyResult(study).manifest.study)
    write_report(result)
    assert contents(copy) == contents(study)


def test_every_file_is_written(study):
    assert sorted(contents(study)) == [
        "evaluations.parquet",
        "finalists.svg",
        "front.json",
        "front_macs.svg",
        "front_size_bytes.svg",
        "hypervolume_plain.svg",
        "hypervolume_useful.svg",
        "report.html",
        "report.md",
    ]
    assert not list(study.rglob("*.part"))


def test_a_second_report_in_another_process_is_the_same_without_torch_or_ray(copy):
    before = contents(copy)
    code = (
        "import sys; from automl_compress.report import write_report; write_report(sys.argv[1]);"
        "heavy = {'torch', 'ray', 'scipy.stats', 'matplotlib.pyplot'}; "
        "found = heavy & set(sys.modules); assert not found, found"
    )
    root = Path(__file__).parents[2]
    settings = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code, str(copy)], check=True, env=settings)
    assert contents(copy) == before


def test_the_page_is_well_formed_and_loads_nothing(study):
    raw = (study / "report.html").read_text(encoding="utf-8")
    page = Page(raw)
    assert page.resources == []
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(target.startswith("#") for target in re.findall(r"url\(['\"]?([^)]*)", raw))
    assert "@import" not in raw


def test_ids_are_unique_and_every_link_has_its_target(study):
    raw = (study / "report.html").read_text(encoding="utf-8")
    page = Page(raw)
    assert len(page.ids) == len(set(page.ids))
    wanted = {target[1:] for target in page.targets} | set(re.findall(r"url\(#([^)]*)\)", raw))
    assert wanted <= set(page.ids)


def test_figures_are_small_named_and_well_formed(study):
    raw = (study / "report.html").read_text(encoding="utf-8")
    for file in (study / "figures").iterdir():
        assert file.stat().st_size < 150_000
        ElementTree.fromstring(file.read_bytes())
        assert f'id="{file.stem}"' in raw
    assert len(re.findall(r'<svg role="img" aria-label="[^"]+"', raw)) == 5
    text = (study / "report.md").read_text(encoding="utf-8")
    assert "drawn more often" not in text  # answers were counted
    for link in re.findall(r"\]\((figures/[^)]*)\)", text):
        assert (study / link).is_file()


def test_both_pages_carry_the_headline_numbers(study):
    summary = Summary(StudyResult(study))
    text = (study / "report.md").read_text(encoding="utf-8")
    assert "Kendall's tau with it" not in text  # there is no ladder
    page = Page((study / "report.html").read_text(encoding="utf-8"))
    numbers = ["93.37 %", "3,430.0 kB", "125.5 M", f"{TEST_IMAGES:,}"]
    for finalist in summary.finalists:
        numbers += [
            percent(finalist.quality),
            points(summary.lost(finalist)),
            f"{finalist.estimate.metrics['size_bytes'] / 1e3:,.1f} kB",
            percent(finalist.estimate.metrics["accuracy"]),
            finalist.estimate.policy.key,
        ]
    for number in numbers:
        assert number in text
        assert number in page.text


def test_both_pages_carry_the_same_table_cells(study):
    raw = (study / "report.html").read_text(encoding="utf-8")
    text = (study / "report.md").read_text(encoding="utf-8")
    in_page = re.findall(r"<t[dh][^>]*>([^<]*)</t[dh]>", raw)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "| ---" not in line]
    in_text = [cell.strip().replace("\\", "") for row in rows for cell in row[1:-1].split("|")]
    assert in_page == in_text


def test_user_text_is_escaped_everywhere(tmp_path):
    failed = Evaluation.failed(policy(3), manifest().estimator, EVIL)
    made = [evaluation(policy(2), 0.93, 1e6), failed]
    folder = write_study(
        tmp_path,
        [made],
        finalists=0,
        finalists_keys=[made[0].policy.key],
        tests=[EVIL],
        study=EVIL,
        contestants=(ContestantRecord(EVIL, "$evil<_>_", 0),),
        config={"estimate": {EVIL: EVIL}},
        workload={"name": EVIL, "data": {EVIL: EVIL}, "splits": {EVIL: 3}},
        coverage={"groups": EVIL, "idle": [EVIL], "skipped": [{"name": EVIL, "reason": EVIL}]},
        environment={"versions": {EVIL: [EVIL]}},
    )
    page, raw, text = pages(folder)
    assert "<script" not in raw
    assert "script" not in page.tags
    assert '<script>alert("1")</script>' in page.text
    outside_code = re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.DOTALL)
    assert "<script" not in outside_code
    for file in (folder / "figures").iterdir():
        ElementTree.fromstring(file.read_bytes())


def test_an_empty_study_still_has_a_report(tmp_path):
    folder = write_study(tmp_path, outcomes(0), status="running")
    page, _, text = pages(folder)
    assert "still running: 0 of 900 evaluations" in text
    assert "No evaluation is made yet" in page.text
    assert list((folder / "figures").iterdir()) == []


def test_one_evaluation_is_enough_for_figures(tmp_path):
    folder = write_study(tmp_path, outcomes(1), finalists=0, status="interrupted")
    page, _, text = pages(folder)
    assert "was interrupted: 1 of 900 evaluations" in text
    assert f"automl-compress resume {folder.name}" in page.text
    assert "No finalist is chosen yet" in page.text
    assert "nothing is ranked" in page.text
    assert len(list((folder / "figures").iterdir())) == 4


def test_a_study_whose_evaluations_all_failed_says_why(tmp_path):
    failed = Evaluation.failed(policy(2), manifest().estimator, "out of memory")
    folder = write_study(tmp_path, [[failed]], finalists=0, contestants=only("nsga2-0"))
    page, _, text = pages(folder)
    assert "No evaluation has succeeded" in page.text
    assert "| nsga2 | 1 | out of memory |" in text
    assert list((folder / "figures").iterdir()) == []


def test_useless_networks_alone_can_be_drawn(tmp_path):
    made = [evaluation(policy(2), 0.1, 1e5), evaluation(policy(3), 0.3, 2e5)]
    folder = write_study(tmp_path, [made], finalists=0, contestants=only("nsga2-0"))
    pages(folder)
    assert "no network here yet" in (folder / "figures/front_size_bytes.svg").read_text()


def test_constraints_are_stated_and_counted(copy):
    change(copy, constraints=(Constraint("size_bytes", 3e5, text="size_bytes <= 300 kB"),))
    page, text = words(copy)
    assert "Constraints: size_bytes <= 300 kB." in page.text
    frame = StudyResult(copy).to_dataframe()
    over = frame[(frame["strategy"] == "ddpg") & (frame["size_bytes"] > 3e5)]
    assert re.search(rf"\| ddpg \| 60 \| \d+ \| \d+ \| {len(over)} \|", text)


def test_no_test_baseline_yet(copy):
    change(copy, test_baseline={}, status="running")
    page, _ = words(copy)
    assert "not measured on the test examples yet" in page.text
    assert "Cheapest finalists" not in page.text


def test_finalists_that_are_missing_or_failed_are_named(tmp_path):
    made = [evaluation(policy(2, i + 2), 0.93 - i / 100, 1e6 - 1e5 * i) for i in range(3)]
    folder = write_study(
        tmp_path,
        [made],
        finalists=0,
        finalists_keys=[e.policy.key for e in made],
        tests=[0.92, "killed", None],
        contestants=only("nsga2-0"),
    )
    page, _ = words(folder)
    assert "measurement failed: killed" in page.text
    assert "not measured yet" in page.text
    assert "2 finalists have no test result" in page.text


@pytest.mark.parametrize(("tests", "said"), [((0.91, 0.92), True), ((0.92, 0.91), False)])
def test_what_dominated_means_is_said_where_a_finalist_is(tmp_path, tests, said):
    made = [evaluation(policy(2, 2), 0.93, 2e5), evaluation(policy(2, 3), 0.9, 1e5)]
    keys = [e.policy.key for e in made]
    changes = {"contestants": only("nsga2-0"), "objectives": ("error", "size_bytes")}
    folder = write_study(tmp_path, [made], finalists=0, finalists_keys=keys, tests=tests, **changes)
    assert ("A finalist is dominated where another is no worse" in words(folder)[1]) == said


def test_dominated_finalists_and_lost_points_are_stated(tmp_path):
    made = [
        evaluation(policy(2, i + 2), a, s) for i, (a, s) in enumerate([(0.93, 2e5), (0.9, 1e5)])
    ]
    folder = write_study(
        tmp_path,
        [made],
        finalists=0,
        finalists_keys=[e.policy.key for e in made],
        tests=[0.91, 0.92],
        contestants=only("nsga2-0"),
    )
    page, text = words(folder)
    assert page.text.count("dominated on the test examples") == 1
    assert "| at most 1 | no finalist reaches it | no finalist reaches it |" in text
    assert "| at most 2 | 100.0 kB (2.9 %): finalist 1 | 1.0 M (0.8 %): finalist 1 |" in text


@pytest.mark.parametrize(
    ("rule", "pick", "said"),
    [
        (
            "accuracy >= 0.915",
            "200.0 kB (5.8 %): finalist 2",
            "the best of 1 finalist by test accuracy, so their test accuracy tends to be slightly "
            "too high as well. 1 finalist that breaks a constraint as measured is left out.",
        ),
        ("accuracy >= 0.93", "no finalist within the constraints reaches it", "so none is picked"),
    ],
)
def test_what_breaks_a_constraint_is_no_pick(tmp_path, rule, pick, said):
    """The smaller finalist has 91 % on the test images, the other 92 %; estimates are higher."""
    made = [evaluation(policy(2, i + 2), 0.935, 1e5 * (i + 1), 1e6 * (i + 1)) for i in range(2)]
    folder = write_study(
        tmp_path,
        [made],
        finalists=0,
        finalists_keys=[e.policy.key for e in made],
        tests=[0.91, 0.92],
        contestants=only("nsga2-0"),
        objectives=("error", "size_bytes"),
        constraints=(Constraint.parse(rule),),
    )
    _, text = words(folder)
    (row,) = (line for line in text.splitlines() if line.startswith("| at most 2 |"))
    assert row.split(" | ")[1] == pick
    assert said in text
    assert f"breaks '{rule.replace('>', '&gt;')}' on the test examples" in text


def test_few_seeds_are_said_plainly(study, copy):
    text = (study / "report.md").read_text(encoding="utf-8")
    assert "Every strategy ran with 2 seeds" in text
    assert "too few to call a difference significant" in text
    change(copy, contestants=(CONTESTANTS[0], *CONTESTANTS[2:]))
    assert "Every strategy ran with 1 to 2 seeds" in words(copy)[1]


@pytest.mark.parametrize("names", [("nsga2-0",), ("nsga2-0", "ddpg-1")])
def test_of_one_seed_no_range_is_spoken_of(tmp_path, names):
    """Nor of an order that another set of seeds may turn around."""
    made = [[evaluation(policy(2), 0.92, 4e5)] for _ in names]
    folder = write_study(tmp_path, made, finalists=0, contestants=only(*names), budget=1)
    _, _, text = pages(folder)
    several = len(names) > 1
    assert f"{'Every' if several else 'One'} strategy ran with 1 seed." in text
    assert ("another seed may turn the order around" in text) == several
    assert ("The rank is by useful hypervolume at the end." in text) == several
    for wrong in (
        "range",
        "mean over",
        "(lowest..highest)",
        "all seeds of a strategy",
        "reference",
    ):
        assert wrong not in text


def test_nothing_is_said_of_ranks_where_nothing_is_ranked(study, copy):
    rule = "The rank is by mean useful hypervolume at the end."
    assert rule in (study / "report.md").read_text(encoding="utf-8")
    with Ledger(copy / LEDGER) as ledger:
        late = evaluation(policy(2), 0.92, 4e5)
        places = [Place(CONTESTANTS[0].name, 30, 3)]
        ledger.add(late, places[0])
        ledger.charge(places, [late])
    text = words(copy)[1]
    assert "so nothing is ranked" in text
    assert rule not in text


@pytest.mark.parametrize(
    ("rules", "said"), [((), False), ((Constraint("size_bytes", 1e6, "size_bytes <= 1 MB"),), True)]
)
def test_constraints_are_spoken_of_where_there_are_any(tmp_path, rules, said):
    made = [[evaluation(policy(2), 0.92, 4e5)]]
    folder = write_study(
        tmp_path, made, finalists=0, contestants=only("nsga2-0"), constraints=rules
    )
    drawing = draw_front(Summary(StudyResult(folder)), "size_bytes")
    assert ("meet the constraints" in drawing.caption) == said


@pytest.mark.parametrize(("macs", "said"), [(BASELINE["macs"], True), (1e6, False)])
def test_why_a_strategy_has_no_hypervolume_is_said(tmp_path, macs, said):
    """Bits alone leave the multiply-accumulates as they are, and so the networks on the edge."""
    made = [[evaluation(policy(2), 0.92, 4e5, macs)], [evaluation(policy(3), 0.92, 9e5, 1e6)]]
    folder = write_study(tmp_path, made, finalists=0, contestants=only("haq-0", "nsga2-0"))
    text = words(folder)[1]
    assert ("| haq | 2 | 1 | 1 | – | – | 0.0000 |" in text) == said
    assert ("All hypervolumes of haq are 0, for none of the networks" in text) == said
    assert "of nsga2 are 0" not in text


@pytest.mark.parametrize("count", [0, 1])
def test_a_terminal_is_shown_no_table_without_rows(tmp_path, count):
    made = [[evaluation(policy(2 + i), 0.92, 4e5) for i in range(count)]]
    folder = write_study(tmp_path, made, finalists=0, contestants=only("nsga2-0"))
    lines = front_table(StudyResult(folder)).splitlines()
    assert (lines == [NO_FRONT]) == (count == 0)


def test_nothing_of_a_wide_table_is_cut_off_on_paper_or_its_caption_on_phones():
    """There is no scrolling on paper; a caption is as wide as its table, which may be scrolled."""
    table = Table("what it shows", columns_of("<a", "b"), (("1", "2"),))
    page = to_html(Document("title", (table,)))
    paper = page[page.index("@media print {") : page.index("</style>")]
    assert ".scroll, figure .card { overflow: visible; }" in paper
    assert ".label, .number { white-space: normal; }" in paper
    assert "<caption><span>what it shows</span></caption>" in page
    assert re.search(r"caption span {[^}]*max-width: calc\(100vw", page)


def test_what_objectives_mean_is_said_of_those_there_are(copy):
    text = words(copy)[1]
    assert "Bit operations are" not in text
    assert "Divergence is" not in text
    change(copy, objectives=("error", "bitops"))
    assert "Bit operations are" in words(copy)[1]


def test_what_strategies_set_out_to_do_is_said(copy):
    assert "set out" not in words(copy)[1]
    change(copy, plans={"ddpg": ["draws 3 policies.", "then acts."]})
    assert "\n- ddpg: draws 3 policies; then acts.\n" in words(copy)[1]


@pytest.mark.parametrize(
    "objectives",
    [("error", "params"), ("macs", "error", "size_bytes", "params", "bitops")],
)
def test_every_cost_objective_has_its_front(copy, objectives):
    shutil.rmtree(copy / "figures")
    change(copy, objectives=objectives)
    pages(copy)
    fronts = {file.stem for file in (copy / "figures").glob("front_*")}
    assert fronts == {f"front_{name}" for name in objectives if name != "error"}


def test_a_missing_manifest_is_one_line(tmp_path):
    with pytest.raises(StudyError, match=r"must hold run\.json") as caught:
        write_report(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_written_is_one_line(copy, monkeypatch):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    monkeypatch.setattr(os, "access", lambda *_: False)  # as for users who may not do everything
    with pytest.raises(StudyError, match="cannot be written; correct its perm") as caught:
        write_report(copy)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_an_empty_manifest_leaves_gaps_only(tmp_path):
    bare = {"config": {}, "space": {}, "coverage": {}, "workload": {}, "environment": {}}
    page, _ = words(write_study(tmp_path, outcomes(2), finalists=0, **bare))
    assert "the manifest does not say" in page.text
    assert "does not state the search space" in page.text


def test_a_study_whose_constraints_nothing_met_says_so(tmp_path):
    limit = Constraint("size_bytes", 1.0, text="size_bytes <= 1 B")
    study = {"finalists": 0, "constraints": (limit,), "contestants": only("nsga2-0", "ddpg-0")}
    told = [evaluation(policy(2), 0.93, 5e5)]
    _, _, text = pages(write_study(tmp_path / "broken", [told, told], **study))
    assert "No network meets the constraints, so none was tested." in text
    assert "found to meet the constraints" not in text
    assert "The useful box" not in text
    assert re.search(r"\| nsga2 \| 1 \|.*\n\| ddpg \| 1 \|", text)
    failed = [Evaluation.failed(policy(2), manifest().estimator, "out of memory")]
    _, _, text = pages(write_study(tmp_path / "failed", [failed, failed], **study))
    assert "No network could be measured, so none was tested." in text


@pytest.mark.usefixtures("no_figures")
def test_equal_strategies_share_their_rank(tmp_path):
    better = [evaluation(policy(2), 0.93, 5e5)]
    worse = [evaluation(policy(3), 0.93, 9e5)]
    folder = write_study(
        tmp_path, [worse, better, better], finalists=0,
        contestants=only("nsga2-0", "ddpg-0", "local-0"),
    )  # fmt: skip
    _, _, text = pages(folder)
    ranks = re.findall(r"^\| (\w+) \| (\d) \|", text, flags=re.MULTILINE)
    assert ranks[:3] == [("ddpg", "1"), ("local", "1"), ("nsga2", "3")]


@pytest.mark.usefixtures("no_figures")
@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(
    ("test", "said"),
    [
        (0.90, "exceed their test accuracy by 3.00 points on average"),
        (0.96, "lie below their test accuracy by 3.00 points on average"),
    ],
)
def test_estimates_lie_above_or_below_tests(tmp_path, test, said, alike):
    chosen = policy(2)
    folder = write_study(
        tmp_path, [[evaluation(chosen, 0.93, 5e5)]], finalists=0, contestants=only("nsga2-0"),
        finalists_keys=[chosen.key], tests=[test],
        test_baseline={**manifest().baseline, "accuracy": 0.944},
        networks=("a", "a" if alike else "b"),
    )  # fmt: skip
    page, _, _ = pages(folder)
    assert said in page.text
    difference = 4.0 if test == 0.90 else -2.0
    assert f"The difference, {difference:.2f} points, is " in page.text
    assert ("is what choosing by noisy estimates made of them" in page.text) is alike
    assert ("finalists were chosen by it, so it tends to be too high" in page.text) is alike
    assert ("is two things in one: tested networks are repaired anew" in page.text) is not alike
    assert ("that of the test as final_repair says" in page.text) is not alike
    assert "network, which nobody chose, lies below its own by 1.00." in page.text


def test_the_settings_say_where_their_paths_begin(tmp_path):
    summary = Summary(StudyResult(write_study(tmp_path, 2, environment={"base": "sweeps"})))
    said = "settings below, whose relative paths begin at the sweep's folder, 'sweeps'. The same"
    assert said in str(build_document(summary, {}))
