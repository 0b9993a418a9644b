import itertools
from dataclasses import replace

import numpy as np
import pytest
from report_studies import evaluation, manifest, only, policy, write_study

from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.ledger import LEDGER, Ledger, Place, StudyResult
from automl_compress.report import contestant_scores, write_report
from automl_compress.report.comparison import Comparison, comparison_tables
from automl_compress.report.content import build_document
from automl_compress.report.scores import reference_points
from automl_compress.report.statistics import (
    Spread,
    Summary,
    common_reasons,
    cost_front,
    dominated,
    split_sizes,
    wilson_interval,
)
from automl_compress.report.tables import finalists_table
from automl_compress.space import Policy


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


@pytest.mark.parametrize(
    ("right", "images", "low", "high"),
    [  # Newcombe 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_agrees_with_newcombe(right, images, low, high):
    assert wilson_interval(right / images, images) == pytest.approx((low, high), abs=6e-5)


def test_wilson_interval_solves_its_equation():
    share, images, z = 0.934, 9488, 1.959963984540054
    for bound in wilson_interval(share, images):
        gap = z * np.sqrt(bound * (1 - bound) / images)
        assert abs(share - bound) == pytest.approx(gap)
    assert wilson_interval(1.0, 5)[1] == 1.0


def test_dominated_agrees_with_a_loop_and_spares_equals():
    values = np.random.default_rng(0).integers(0, 4, (40, 3)).astype(float)
    slow = [any((other <= row).all() and (other < row).any() for other in values) for row in values]
    assert dominated(values).tolist() == slow
    assert not dominated(np.ones((2, 2))).any()
    assert dominated(np.empty((0, 3))).shape == (0,)


def test_cost_front_agrees_with_a_loop():
    values = np.random.default_rng(1).random((60, 3))
    values[7] = np.inf
    best = [
        (row[1], row[0])
        for row in values
        if np.isfinite(row).all()
        and not any(
            o[0] <= row[0] and o[1] <= row[1] and (o[0], o[1]) != (row[0], row[1]) for o in values
        )
    ]
    qualities = np.where(np.isfinite(values[:, 0]), 1 - values[:, 0], np.nan)
    rows = cost_front(qualities, values[:, 1])
    assert values[rows][:, [1, 0]].tolist() == [list(pair) for pair in sorted(best)]


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


def finalists_of(folder, tests, **changes):
    """A study of one contestant whose finalists have the given (size, test accuracy)."""
    made = [evaluation(policy(2, i + 2), 0.93 - i / 100, size) for i, (size, _) in enumerate(tests)]
    changes = {"objectives": ("error", "size_bytes"), "contestants": only("nsga2-0")} | changes
    folder = write_study(
        folder, [made], finalists=0, finalists_keys=[e.policy.key for e in made],
        tests=[accuracy for _, accuracy in tests], **changes,
    )  # fmt: skip
    return Summary(StudyResult(folder))


def test_finalists_are_sorted_by_size_and_dominance_is_by_test_error(tmp_path):
    summary = finalists_of(tmp_path, [(3e5, 0.92), (1e5, 0.90), (2e5, 0.93)])
    sizes = [finalist.estimate.metrics["size_bytes"] for finalist in summary.finalists]
    assert sizes == [1e5, 2e5, 3e5]
    assert [finalist.number for finalist in summary.finalists] == [1, 2, 3]
    assert [finalist.dominated for finalist in summary.finalists] == [False, False, True]


def test_the_cheapest_within_a_loss_includes_the_limit(tmp_path):
    summary = finalists_of(
        tmp_path,
        [(1e5, 0.9187), (2e5, 0.9287), (3e5, 0.9337)],
        test_baseline={**manifest().baseline, "accuracy": 0.9337},
    )
    assert summary.cheapest(0.005, "size_bytes").number == 2
    assert summary.cheapest(0.02, "size_bytes").number == 1
    assert summary.cheapest(0.0, "size_bytes").number == 3
    assert summary.cheapest(-0.01, "size_bytes") is None


def test_losses_count_against_the_network_the_user_gave(tmp_path):
    """Sparsity training had made a worse one of it; only where it is not known they do not."""
    tests = [(1e5, 0.9187), (2e5, 0.9287), (3e5, 0.9337)]
    sparse = {"test_baseline": {**manifest().baseline, "accuracy": 0.9187}}
    given = {"given": {"accuracy": 0.94}, "test_given": {"accuracy": 0.9337}}
    summary = finalists_of(tmp_path / "told", tests, **sparse, **given)
    assert summary.cheapest(0.005, "size_bytes").number == 2
    assert [summary.lost(f) for f in summary.finalists] == pytest.approx([0.015, 0.005, 0])
    rows = finalists_table(summary).rows
    assert [(row[0], row[1], row[3]) for row in rows[:2]] == [
        ("given network", "93.37 %", "0.00"),
        ("sparsified network", "91.87 %", "1.50"),
    ]
    untold = finalists_of(tmp_path / "untold", tests, **sparse)
    assert untold.cheapest(0.005, "size_bytes").number == 1
    assert finalists_table(untold).rows[0][0] == "baseline"


def test_finalists_that_failed_or_wait_are_kept_apart(tmp_path):
    summary = finalists_of(tmp_path, [(1e5, None), (2e5, 0.93), (3e5, "killed")])
    assert [finalist.quality for finalist in summary.finalists] == [None, 0.93, None]
    assert len(summary.measured) == 1
    assert summary.finalists[2].test.reason == "killed"
    assert summary.finalists[0].interval is None


def test_a_constraint_on_accuracy_is_checked_again_on_the_test_images(tmp_path):
    rule = Constraint.parse("accuracy >= 0.9")
    summary = finalists_of(tmp_path, [(1e5, 0.89), (2e5, 0.93)], constraints=(rule,))
    assert [f.broken for f in summary.finalists] == [("accuracy >= 0.9",), ()]


def test_split_sizes_takes_numbers_and_mappings():
    splits = {"search": 512, "test": {"images": 9488, "hash": "ab"}, "other": "none"}
    assert split_sizes({"splits": splits}) == {"search": 512, "test": 9488}
    assert split_sizes({}) == {}


def test_common_reasons_are_counted(tmp_path):
    reasons = ["b", "a", "a", "b", "c", "d"]
    made = [
        Evaluation.failed(policy(*bits), manifest().estimator, reason)
        for reason, bits in zip(reasons, itertools.product((2, 3, 4), (5, 6)), strict=True)
    ]
    folder = write_study(tmp_path, [made], finalists=0, contestants=only("nsga2-0"))
    frame = StudyResult(folder).to_dataframe()
    assert common_reasons(frame) == [("a", 2), ("b", 2), ("c", 1)]


def test_the_winners_curse_is_what_the_chosen_lose_beyond_the_baseline(tmp_path):
    made = [evaluation(policy(2, i + 2), 0.93 - i / 100, 1e6 - 1e5 * i) for i in range(2)]
    folder = write_study(
        tmp_path,
        [made],
        finalists=0,
        finalists_keys=[e.policy.key for e in made],
        tests=[0.92, 0.89],  # 1 and 3 points below the estimates
        contestants=only("nsga2-0"),
        test_baseline={**manifest().baseline, "accuracy": 0.929},
    )
    found = Summary(StudyResult(folder)).optimism
    assert found.finalists == pytest.approx(0.02)
    assert found.error == pytest.approx(0.01)
    assert found.baseline == pytest.approx(0.005)
    assert found.beyond == pytest.approx(0.015)


def test_studies_compared_may_name_their_objectives_in_another_order(tmp_path):
    names = ("error", "size_bytes", "macs")
    folders = [
        write_study(tmp_path / "one", 8, finalists=0, objectives=names),
        write_study(tmp_path / "turned", 8, finalists=0, objectives=names[::-1]),
    ]
    for order in (folders, folders[::-1]):
        document = Comparison(order).document()
        rows = [{**row, "folder": ""} for row in document["strategies"]]
        assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]
        assert any(row["useful"]["mean"] > 0 for row in rows)


def _tested_once(folder, test, estimator):
    """A study of one network, with its final test."""
    found = evaluation(policy(2), 0.93, 1e5)
    return write_study(
        folder, [[found]], finalists=0, finalists_keys=[found.policy.key], tests=[test],
        contestants=only("nsga2-0"), test_estimator=estimator,
        given={"accuracy": 0.94}, test_given={"accuracy": 0.94},
    )  # fmt: skip


def test_qualities_of_final_tests_that_differ_stand_apart(tmp_path):
    tests = (("one", 0.91, "t1"), ("same", 0.91, "t1"), ("repaired", 0.93, "t2"))
    one, same, repaired = (_tested_once(tmp_path / n, q, t) for n, q, t in tests)
    for folders in ([one, same, repaired], [repaired, same, one]):
        comparison = Comparison(folders)
        table = comparison_tables(comparison)[-1]
        cells = {
            column.title: cell for column, cell in zip(table.columns, *table.rows, strict=True)
        }
        alike = ", ".join(str(folder) for folder in folders if folder != repaired)
        assert cells[f"test accuracy, {alike}"] == "91.00 %"
        assert cells[f"test accuracy, {repaired}"] == "93.00 %"
        assert "final tests differ" in table.caption
        (point,) = comparison.document()["front"]
        assert point["test_accuracy"] is None
        assert "test_accuracy_lost" not in point
        lost = {by["folder"]: by["test_accuracy_lost"] for by in point["found_by"]}
        assert lost == pytest.approx({str(one): 0.03, str(same): 0.03, str(repaired): 0.01})
        found = {by["folder"]: by["test_accuracy"] for by in point["found_by"]}
        assert found == {str(one): 0.91, str(same): 0.91, str(repaired): 0.93}
    alone = Comparison([one, same])
    table = comparison_tables(alone)[-1]
    assert [cell for c, cell in zip(table.columns, *table.rows, strict=True)
            if c.title == "test accuracy"] == ["91.00 %"]  # fmt: skip
    assert "differ" not in table.caption
    assert alone.document()["front"][0]["test_accuracy"] == 0.91


LATENCIES = {
    "estimator": "latency", "threads": 1, "batch": 1, "int8": True, "runs": 6,
    "model": {"conditions": {"runtime": "onnxruntime"}, "line": {"networks": 4}},
}  # fmt: skip


def timed_study(folder, rules, whole=0.6):
    """Two finalists of 0.30 and 0.33 ms; predicted is five sixths of what is measured.

    Args:
        folder: of the study.
        rules: constraints, shares of the predicted 0.5 ms.
        whole: measured latency of the uncompressed network, in ms.
    """
    baseline = {**manifest().baseline, "latency_ms": 0.5}
    made = [evaluation(policy(2 + i), 0.93, 1e5 + 1e4 * i) for i in range(2)]
    made = [
        replace(e, metrics={**e.metrics, "latency_ms": ms})
        for e, ms in zip(made, (0.25, 0.275), strict=True)
    ]
    folder = write_study(
        folder, [made], finalists=0, finalists_keys=[e.policy.key for e in made],
        tests=[0.91, 0.93], contestants=only("nsga2-0"), baseline=baseline,
        objectives=("error", "latency_ms"), latency=LATENCIES,
        constraints=tuple(Constraint.parse(rule).absolute(baseline) for rule in rules),
    )  # fmt: skip
    with Ledger(folder / LEDGER) as ledger:
        for place, (key, ms) in enumerate(
            ((Policy({}), whole), (made[0].policy, 0.30), (made[1].policy, 0.33))
        ):
            found = {"latency_ms": ms, "latency_ms_lower": ms, "latency_ms_upper": ms}
            ledger.add(Evaluation(key, "latency", found), Place("latencies", place, 0))
    return StudyResult(folder)


def test_a_share_of_the_latency_is_one_of_the_measured_latency(tmp_path):
    rules = ("latency_ms <= 0.55x", "accuracy >= 0.92")
    result = timed_study(tmp_path / "alike", rules)
    assert [f.broken for f in Summary(result).finalists] == [("accuracy >= 0.92",), ()]
    slow = Summary(timed_study(tmp_path / "slow", rules, whole=0.59))  # 0.33 is 0.559x of it
    assert [f.broken for f in slow.finalists] == [(rules[1],), (rules[0],)]
    fixed = Summary(timed_study(tmp_path / "fixed", ("latency_ms <= 0.31",)))
    assert [f.broken for f in fixed.finalists] == [(), ("latency_ms <= 0.31",)]
    remarks = [row[-1] for row in finalists_table(slow).rows[1:]]
    assert remarks == [
        "breaks 'accuracy >= 0.92' on the test images",
        "breaks 'latency_ms <= 0.55x' as measured",
    ]
