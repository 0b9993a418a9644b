import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle
from report_studies import evaluation, only, policy, write_study

from automl_compress.ledger import ContestantRecord, StudyResult
from automl_compress.report import figures
from automl_compress.report.drawing import draw_legend
from automl_compress.report.figures import (
    draw_all,
    draw_finalists,
    draw_front,
    draw_hypervolume,
    looks,
)
from automl_compress.report.scores import ContestantScores
from automl_compress.report.strategy_scores import StrategyScores
from automl_compress.report.summary import Summary


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


def test_a_network_that_is_never_right_has_a_panel():
    axes = Figure().subplots()
    fronts = [np.array([[50.0, 0.0], [100.0, 0.0]])]
    _, (low, high) = figures._zoom(axes, fronts, uncut=0.0, floor=-10.0)
    assert low == 0.0 < high


def test_eight_strategies_differ_in_colour_and_all_in_marker():
    chosen = looks(long_race(10, 1, 1)).values()
    assert len({look["color"] for look in list(chosen)[:8]}) == 8
    assert len({look["marker"] for look in chosen}) == 10


# Machado, Oliveira and Fernandes 2009, table 1, severity 1: protanopes and deuteranopes.
PROTAN = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
          [-0.003882, -0.048116, 1.051998]]  # fmt: skip
DEUTAN = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
          [-0.011820, 0.042940, 0.968881]]  # fmt: skip
# Ottosson 2020, "A perceptual color space for image processing"; linear sRGB to LMS to Lab.
LMS = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
       [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
OKLAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip


def nearest(colours, sight):
    """Distance of the two nearest colours in OKLab, hues counting 1.6 times.

    Args:
        colours: as matplotlib takes them.
        sight: (3, 3) what linear sRGB is seen as.
    """
    shares = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.transpose(sight), 0, 1)
    places = np.cbrt(seen @ np.transpose(LMS)) @ np.transpose(OKLAB) * (1, 1.6, 1.6)
    apart = np.linalg.norm(places[:, None] - places, axis=-1)
    return apart[np.triu_indices(len(places), 1)].min()


@pytest.mark.parametrize(
    ("sight", "share"), [(np.eye(3), 0.95), (PROTAN, 0.75), (DEUTAN, 0.75)], ids=("all", "p", "d")
)
def test_sixteen_strategies_can_be_told_apart(sight, share):
    """About as well as eight: bands and error bars have nothing but their colour."""
    colours = [look["color"] for look in looks(long_race(16, 1, 1)).values()]
    assert len(set(colours)) == 16
    assert nearest(colours, sight) >= share * nearest(colours[:8], sight)


def test_the_legend_of_finalists_fits_their_figure(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "svg_text", lambda figure, name: drawn.append(figure) or "<svg >")
    contestants = (
        *only("scaled-random-0", "nsga2-0"),
        ContestantRecord("uniform-0", "uniform", 0, in_race=False),
    )
    study = Summary(StudyResult(write_study(tmp_path, 8, contestants=contestants)))
    draw_finalists(study, "macs")
    (legend,) = drawn[0].legends
    assert len(legend.get_texts()) == len(study.strategies) + 3
    assert 0.5 < legend.get_window_extent().width / drawn[0].bbox.width <= 1


def test_the_given_and_the_sparsified_network_are_told_apart(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "svg_text", lambda figure, name: drawn.append(figure) or "<svg >")
    given = {"given": {"accuracy": 0.94}, "test_given": {"accuracy": 0.937}}
    study = Summary(StudyResult(write_study(tmp_path, 8, contestants=only("nsga2-0"), **given)))
    draw_finalists(study, "macs")
    marks = [mark for mark in drawn[0].axes[0].lines if mark.get_marker() == "o"]
    assert [mark.get_markerfacecolor() == "white" for mark in marks[:2]] == [True, False]
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels[-2:] == ["sparsified network, test", "given network, test"]
    lines = {line.get_linestyle(): line.get_ydata()[0] for line in drawn[0].axes[0].lines}
    assert lines["--"] == pytest.approx(93.7)
    assert lines[":"] == pytest.approx(100 * study.test_quality)
    draw_front(study, "macs")
    labels = [text.get_text() for text in drawn[1].legends[0].get_texts()]
    assert labels[-2:] == ["sparsified network", "given network"]
    zoom = drawn[1].axes[0]
    assert zoom.get_title() == "within 10 points of the given network"
    assert drawn[1].get_supxlabel() == "MACs, % of the given network"
    assert zoom.get_ylim()[0] == pytest.approx(84)
    assert {94.0, 93.4} <= {round(line.get_ydata()[0], 6) for line in zoom.lines}


def test_a_legend_of_few_is_one_line():
    figure = Figure(figsize=(8.6, 4.4), layout="constrained")
    draw_legend(figure, [Line2D([], [], label=label) for label in "abcdef"])
    assert figure.legends[0]._ncols == 6
    assert figure.get_figheight() == pytest.approx(4.4)


def test_a_long_legend_leaves_the_panels_their_height():
    heights = []
    for count in (4, 12):
        figure = Figure(figsize=(8.6, 4.4), layout="constrained")
        axes = figure.subplots()
        draw_legend(figure, [Line2D([], [], label=f"{i} " + 40 * "x") for i in range(count)])
        figure.draw_without_rendering()
        heights.append(axes.get_window_extent().height)
    assert heights[1] == pytest.approx(heights[0], rel=0.02)


def test_marks_can_be_filled_and_hollow():
    race = long_race(10, 1, 1)
    reference = StrategyScores("uniform", False, race[0].members)
    assert all(
        MarkerStyle(look["marker"]).is_filled() for look in looks([*race, reference]).values()
    )


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
