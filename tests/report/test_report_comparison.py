"""Studies of one problem beside each other."""

import pytest
from report_studies import evaluation, only, policy, write_study

from automl_compress.report.comparison import Comparison, comparison_tables


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
