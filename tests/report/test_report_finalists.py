"""Finalists, and what a report's summary says of them."""

from dataclasses import replace

import pytest
from report_studies import evaluation, manifest, only, policy, write_study

from automl_compress.evaluate import Constraint, Evaluation
from automl_compress.ledger import LEDGER, Ledger, Place, StudyResult
from automl_compress.report.headline import _latency_note
from automl_compress.report.summary import Summary, split_sizes
from automl_compress.report.tables import finalists_table
from automl_compress.space import Policy


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
        "breaks 'accuracy >= 0.92' on the test examples",
        "breaks 'latency_ms <= 0.55x' as measured",
    ]


def test_one_thread_is_no_threads(tmp_path):
    (note,) = _latency_note(Summary(timed_study(tmp_path, ())))
    assert note.text.startswith("Latencies are those of onnxruntime with 1 thread and batch 1 on")
    assert "fitted to 4 measured networks. A measured latency is the median of 6 runs" in note.text
