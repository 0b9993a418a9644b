"""Hypervolumes of contestants and strategies, and where the useful box ends."""

import numpy as np
import pytest
from report_studies import evaluation, manifest, only, policy, write_study

from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.ledger import StudyResult
from automl_compress.report import contestant_scores, write_report
from automl_compress.report.comparison import Comparison
from automl_compress.report.content import build_document
from automl_compress.report.scores import reference_points
from automl_compress.report.statistics import (
    Spread,
)
from automl_compress.report.summary import Summary


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    """A study of seven contestants with 15 evaluations each."""
    return Summary(StudyResult(write_study(tmp_path_factory.mktemp("studies"), 15)))


def share_2d(points, reference):
    """Closed form: the staircase below the reference, as a share of the box."""
    inside = sorted(p for p in points if p[0] < reference[0] and p[1] < reference[1])
    area, roof = 0.0, reference[1]
    for x, y in inside:
        if y < roof:
            area += (reference[0] - x) * (roof - y)
            roof = y
    return area / (reference[0] * reference[1])


def share_by_sampling(values, reference, rng, samples=40_000):
    """Monte Carlo: how many random points of the box are dominated."""
    darts = rng.random((samples, len(reference))) * reference
    return (values[None] <= darts[:, None]).all(axis=2).any(axis=1).mean()


def test_hypervolume_curves_agree_with_the_closed_form(tmp_path):
    folder = write_study(tmp_path, 12, finalists=0, objectives=("error", "size_bytes"))
    result = StudyResult(folder)
    baseline = result.manifest.baseline
    error = 1 - baseline["accuracy"]
    for scores in contestant_scores(result):
        for end in range(1, len(scores) + 1):
            points = [tuple(row) for row in scores.values[:end]]
            plain = share_2d(points, (1.0, baseline["size_bytes"]))
            useful = share_2d(points, (error + 0.1, baseline["size_bytes"]))
            assert scores.plain[end - 1] == pytest.approx(plain)
            assert scores.useful[end - 1] == pytest.approx(useful)


def test_hypervolume_agrees_with_sampling_in_three_dimensions(summary):
    baseline = summary.result.manifest.baseline
    reference = np.array([1.0, baseline["size_bytes"], baseline["macs"]])
    rng = np.random.default_rng(3)
    for scores in contestant_scores(summary.result)[:2]:
        sampled = share_by_sampling(scores.values, reference, rng)
        assert scores.plain[-1] == pytest.approx(sampled, abs=0.01)


def test_failures_and_broken_constraints_count_nothing(tmp_path):
    small = evaluation(policy(2), 0.93, 5e5)
    large = evaluation(policy(8), 0.934, 2e6)
    failed = Evaluation.failed(policy(4), manifest().estimator, "out of memory")
    folder = write_study(
        tmp_path,
        [[failed, large, small]],
        finalists=0,
        objectives=("error", "size_bytes"),
        contestants=only("nsga2-0"),
        constraints=(Constraint("size_bytes", 1e6, text="size_bytes <= 1 MB"),),
    )
    (scores,) = contestant_scores(StudyResult(folder))
    assert scores.usable.tolist() == [False, False, True]
    assert scores.useful[:2].tolist() == [0.0, 0.0]
    expected = share_2d([(0.07, 5e5)], (0.17, 3_430_000.0))
    assert scores.useful[2] == pytest.approx(expected)


def _tight(folder, errors, **changes):
    """A study whose constraint leaves the uncompressed network out, two contestants by turns."""
    made = [evaluation(policy(2 + i), 1 - e, 5e5 - 5e4 * i) for i, e in enumerate(errors)]
    return write_study(
        folder,
        [made[::2], made[1::2]],
        finalists=0,
        objectives=("error", "size_bytes"),
        contestants=only("nsga2-0", "ddpg-0"),
        **{"constraints": (Constraint("size_bytes", 1e6, text="size_bytes <= 1 MB"),), **changes},
    )


def test_where_the_uncompressed_network_is_left_out_useful_is_what_is_near_the_best(tmp_path):
    errors = (0.4, 0.45, 0.6, 0.49)
    scores = contestant_scores(StudyResult(_tight(tmp_path / "tight", errors)))
    points, box = [(e, 5e5 - 5e4 * i) for i, e in enumerate(errors)], (0.5, 3_430_000.0)
    for found, own in zip(scores, (points[::2], points[1::2]), strict=True):
        assert found.useful[-1] == pytest.approx(share_2d([p for p in own if p[0] < 0.5], box))
        assert found.useful[-1] > 0
    loose = (Constraint("size_bytes", 4e6, text="size_bytes <= 4 MB"),)
    for constraints in ((), loose):
        folder = _tight(tmp_path / str(len(constraints)), errors, constraints=constraints)
        assert not any(found.useful[-1] for found in contestant_scores(StudyResult(folder)))


def test_studies_compared_have_the_box_of_the_best_among_them(tmp_path):
    folders = [
        _tight(tmp_path / name, errors)
        for name, errors in {"one": (0.4, 0.55), "other": (0.3, 0.39)}.items()
    ]
    results = [StudyResult(folder) for folder in folders]
    _, useful = reference_points(*results)
    assert useful.point.tolist() == pytest.approx([0.4, 3_430_000.0])
    assert reference_points(results[0])[1].point[0] == pytest.approx(0.5)
    rows = Comparison(folders).document()["studies"]
    assert [row["useful"] > 0 for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        (0.964, 0.136, "the given network plus 10 points, so"),
        (0.914, 0.186, "the given network plus 10 points, so"),
        (0.999, 0.401, "the sparsified network plus 10 points, as sparsity training alone lost"),
    ],
)
def test_what_is_useful_of_a_sparsified_network_counts_from_the_given_one(
    tmp_path, given, error, said
):
    baseline = {**manifest().baseline, "accuracy": 0.699} if error > 0.4 else manifest().baseline
    result = StudyResult(
        write_study(
            tmp_path, 3, finalists=0, baseline=baseline, given={"accuracy": given},
            test_given={"accuracy": given},
        )
    )  # fmt: skip
    assert reference_points(result)[1].point[0] == pytest.approx(error)
    document = build_document(Summary(result), {})
    assert f"the error of {said}" in str(document)


def test_the_report_says_where_the_useful_box_ends(tmp_path):
    folder = _tight(tmp_path, (0.4, 0.45))
    text = write_report(folder).with_suffix(".md").read_text()
    assert "the least error that was found to meet the constraints plus 10 points" in text
    figure = (folder / "figures/front_size_bytes.svg").read_text()
    assert "within 10 points of the best found" in figure


def test_strategies_are_grouped_and_the_reference_comes_last(summary):
    assert [group.label for group in summary.strategies] == [
        "nsga2",
        "ddpg",
        "scaled-random",
        "uniform (reference)",
    ]
    assert summary.ranking[-1].label == "uniform (reference)"
    ends = [group.last("useful").mean for group in summary.ranking[:-1]]
    assert ends == sorted(ends, reverse=True)


def test_scores_at_a_checkpoint_are_those_of_the_members(summary):
    group = summary.strategies[0]
    ends = [float(member.useful[6]) for member in group.members]
    assert group.at("useful", 7) == Spread(sum(ends) / 2, min(ends), max(ends), 2)
    assert group.at("useful", 16) is None
    assert group.curves("plain").shape == (2, 15)


def test_unequal_contestants_are_not_level(tmp_path):
    one, two = evaluation(policy(2), 0.9, 1e6), evaluation(policy(3), 0.91, 2e6)
    made = [[one, two], [one], []]
    folder = write_study(
        tmp_path, made, finalists=0, contestants=only("nsga2-0", "nsga2-1", "ddpg-0")
    )
    summary = Summary(StudyResult(folder))
    assert not summary.level
    assert summary.strategies[0].curves("useful").shape == (2, 1)
    assert summary.strategies[0].at("useful", 2) is None
    assert summary.strategies[1].last("useful") is None
