import numpy as np
import pytest
from report_studies import evaluation, only, policy, write_study

from automl_compress.ledger import ContestantRecord, StudyResult
from automl_compress.report.figures import draw_all, draw_hypervolume, looks
from automl_compress.report.scores import ContestantScores
from automl_compress.report.statistics import StrategyScores, Summary


@pytest.fixture
def summary(tmp_path):
    made = [evaluation(policy(2), 0.92, 4e5), evaluation(policy(3), 0.93, 9e5)]
    folder = write_study(tmp_path, [made], finalists=0, contestants=only("nsga2-0"))
    return Summary(StudyResult(folder))


def long_race(strategies, seeds, evaluations):
    """Strategies whose hypervolume rises at every evaluation."""
    rng = np.random.default_rng(0)
    values = np.full((evaluations, 3), np.inf)
    groups = []
    for name in (f"strategy-{i}" for i in range(strategies)):
        members = []
        for seed in range(seeds):
            curve = np.sort(rng.random(evaluations))
            record = ContestantRecord(f"{name}-{seed}", name, seed)
            members.append(ContestantScores(record, values, curve, curve, curve, curve))
        groups.append(StrategyScores(name, True, tuple(members)))
    return tuple(groups)


def test_figures_of_long_studies_stay_small(summary):
    vars(summary)["strategies"] = long_race(9, 5, 3000)
    assert len(draw_hypervolume(summary, "useful").svg) < 150_000


def test_eight_strategies_differ_in_colour_and_all_in_marker():
    chosen = looks(long_race(10, 1, 1)).values()
    assert len({look["color"] for look in list(chosen)[:8]}) == 8
    assert len({look["marker"] for look in chosen}) == 10


def test_drawing_leaves_the_settings_of_matplotlib_alone(summary):
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    draw_all(summary)
    assert dict(mpl.rcParams) == before


def test_every_figure_has_its_own_ids(summary):
    for name, drawing in draw_all(summary).items():
        assert drawing.svg.count(' id="') == drawing.svg.count(f' id="{name}')
        assert drawing.alt
        assert drawing.caption
