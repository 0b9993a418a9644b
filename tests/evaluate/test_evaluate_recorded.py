from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from automl_compress.errors import InputError, StudyError
from automl_compress.evaluate import Constraint
from automl_compress.evaluate.recorded import check_met
from automl_compress.evaluate.table import read_table
from automl_compress.pareto import front_mask
from automl_compress.space import Policy


def _frame() -> pd.DataFrame:
    rows = [
        {"weight_bits_b": bits, "channels:a": width, "kernel_sparsity:a": sparsity,
         "accuracy": 0.5 + width / 100 + bits / 50 - sparsity / 10, "macs": width * bits,
         "note": "unknown columns are ignored"}
        for width, bits, sparsity in itertools.product((4, 8, 16), (2, 8), (0.0, 0.5))
    ]  # fmt: skip
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet"])
def test_every_row_is_answered(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table.{suffix}"
    frame = _frame()
    frame.to_parquet(path) if suffix == "parquet" else frame.to_csv(path, index=False)
    table = read_table(path).estimator()
    assert [gene.name for gene in table.space] == [
        "weight_bits:b",
        "channels:a",
        "kernel_sparsity:a",
    ]
    assert table.space.cardinality == len(frame) == 12
    for row in frame.to_dict("records"):
        policy = Policy({"weight_bits:b": row["weight_bits_b"], "channels:a": row["channels:a"],
                         "kernel_sparsity:a": row["kernel_sparsity:a"]})  # fmt: skip
        metrics = table.estimate(policy).metrics
        assert metrics == {"accuracy": row["accuracy"], "macs": row["macs"]}
        assert table.costs(policy) == {"macs": row["macs"]}
    assert table.baseline == {"error": pytest.approx(1 - 0.82), "macs": 128.0}
    assert table.recorded == ("error", "macs")


def test_accuracies_in_per_cent_and_named_columns(tmp_path: Path) -> None:
    frame = _frame()
    frame["top1"] = 100 * frame["accuracy"]
    frame.drop(columns="accuracy").to_csv(tmp_path / "table.csv", index=False)
    table = read_table(tmp_path / "table.csv", {"accuracy": "top1"}).estimator()
    assert table.baseline["error"] == pytest.approx(1 - 0.82)


def test_cells_stand_below_their_columns(tmp_path: Path) -> None:
    """Commas after the last cell do not shift them; pandas took the first for rows' names."""
    header, *rows = _frame().to_csv(index=False).splitlines()
    (tmp_path / "plain.csv").write_text("\n".join([header, *rows]))
    (tmp_path / "ended.csv").write_text("\n".join([header, *(f"{row}," for row in rows)]))
    (tmp_path / "spaced.csv").write_text("\n".join([header, *rows]).replace(",", ", "))
    plain, *others = (
        read_table(tmp_path / f"{name}.csv").estimator().identity
        for name in ("plain", "ended", "spaced")
    )
    assert others == [plain, plain]


def test_a_metric_is_no_gene_and_no_second_metric(tmp_path: Path) -> None:
    path = tmp_path / "table.pq"
    _frame().rename(columns={"macs": "channels:macs"}).to_parquet(path)
    table = read_table(path, {"macs": "channels:macs"}).estimator()
    assert len(table.space) == 3
    assert table.recorded == ("error", "macs")
    with pytest.raises(StudyError, match="'channels:macs' is chosen for 'macs', and for 'params'"):
        read_table(path, {"macs": "channels:macs", "params": "channels:macs"})


def test_accuracies_read_as_per_cent_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    _frame().to_csv(path, index=False)
    assert read_table(path).note == ""
    _frame().assign(accuracy=100 * _frame()["accuracy"]).to_csv(path, index=False)
    assert read_table(path).estimator().note == "Accuracies are read as per cent"


def test_a_space_may_have_many_genes_without_a_choice(tmp_path: Path) -> None:
    """An array of numpy has 64 dimensions at most."""
    frame = _frame()
    frame.to_csv(tmp_path / "plain.csv", index=False)
    constant = pd.DataFrame({f"channels:k{i}": 7 for i in range(70)}, index=frame.index)
    pd.concat([frame, constant], axis=1).to_csv(tmp_path / "more.csv", index=False)
    plain, more = (read_table(tmp_path / f"{n}.csv").estimator() for n in ("plain", "more"))
    for row in itertools.product((4, 8, 16), (2, 8), (0.0, 0.5)):
        genes = dict(zip(("channels:a", "weight_bits:b", "kernel_sparsity:a"), row, strict=True))
        fixed = {f"channels:k{i}": 7 for i in range(70)}
        found = more.estimate(Policy({**genes, **fixed})).metrics
        assert found == plain.estimate(Policy(genes)).metrics


def test_genes_may_have_the_names_and_words_of_python(tmp_path: Path) -> None:
    """NA and None are words where others are, and gaps among numbers."""
    rows = [
        {"self": word, "cls": width, "accuracy": 0.5 + 0.01 * place, "macs": place + 1}
        for place, (word, width) in enumerate(itertools.product(("None", "NA", "conv"), (4, 8)))
    ]
    path = tmp_path / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    table = read_table(path, genes=["self", "cls"]).estimator()
    assert [gene.values for gene in table.space] == [(1, 2, 3), (4, 8)]
    assert table.costs(Policy({"channels:self": 2, "channels:cls": 4})) == {"macs": 3.0}
    path.write_text(path.read_text().replace("conv", "1").replace("None", "2"))
    with pytest.raises(StudyError, match=r"'self' .* has gaps"):
        read_table(path, genes=["self", "cls"])
    listed = pd.DataFrame([{**row, "self": [place]} for place, row in enumerate(rows)])
    listed.to_parquet(tmp_path / "lists.parquet")
    with pytest.raises(StudyError, match="numbers or words, but column 'self'"):
        read_table(tmp_path / "lists.parquet", genes=["self", "cls"])


def test_genes_of_any_name_and_choice(tmp_path: Path) -> None:
    rows = [
        {"op 1": op, "share": share, "kept": kept, "accuracy": 0.5 + 0.001 * cost, "macs": cost}
        for op, share, kept in itertools.product(("none", "conv3", "conv1"), (0.5, -1.5), (8, 16))
        if (cost := {"none": 1, "conv1": 3, "conv3": 9}[op] * kept + share + 2)
    ]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "table.csv", index=False)
    genes = ["op 1", "share", "kept"]
    table = read_table(tmp_path / "table.csv", genes=genes).estimator()
    assert {gene.name: gene.values for gene in table.space} == {
        "channels:op 1": (1, 2, 3),  # none, conv1, conv3, as they cost
        "channels:share": (1, 2),
        "channels:kept": (8, 16),
    }
    found = table.costs(Policy({"channels:op 1": 2, "channels:share": 1, "channels:kept": 16}))
    assert found["macs"] == 3 * 16 - 1.5 + 2
    for wrong, said in (
        (["op 1", "shar"], "did you mean 'share'"),
        (["macs"], "holds no metric"),
        (["op 1", "op 1"], "listed once, but is 'op 1'; correct it"),
        (["op 1"], "keep one row of each"),
    ):
        with pytest.raises(StudyError, match=said):
            read_table(tmp_path / "table.csv", genes=wrong)
    frame.loc[0, "op 1"] = None
    frame.to_csv(tmp_path / "gaps.csv", index=False)
    with pytest.raises(StudyError, match="has gaps"):
        read_table(tmp_path / "gaps.csv", genes=genes)


def test_the_identity_is_the_content(tmp_path: Path) -> None:
    frame = _frame()
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.sort_values("macs").to_csv(tmp_path / "b.csv", index=False)
    frame.iloc[0, frame.columns.get_loc("accuracy")] += 0.001
    frame.to_csv(tmp_path / "c.csv", index=False)
    one, same, other = (read_table(tmp_path / f"{n}.csv").estimator().identity for n in "abc")
    assert one == same != other


def test_policies_without_an_accuracy_failed(tmp_path: Path) -> None:
    frame = _frame()
    failed = frame["channels:a"] == 4
    worst = 1 - frame.loc[~failed, "accuracy"].min()
    frame.loc[failed, "accuracy"] = np.nan
    frame.to_csv(tmp_path / "table.csv", index=False)
    table = read_table(tmp_path / "table.csv").estimator()
    policy = Policy({"weight_bits:b": 2, "channels:a": 4, "kernel_sparsity:a": 0.0})
    found = table.estimate(policy)
    assert (found.status, found.reason) == ("failed", "the table records no accuracy")
    assert table.costs(policy) == {"macs": 8.0}
    assert table.counted_error == pytest.approx(worst)
    reference, whole = table.scale(("error", "macs"), ())
    assert reference.point == pytest.approx([worst, 128.0])
    assert 0 < whole < 1
    assert (table.values(("error", "macs"))[:, 0] == np.inf).sum() == 4


def test_rows_of_one_policy_are_averaged(tmp_path: Path) -> None:
    """Trainings with several seeds: those that failed count in no mean, unless all did."""
    first, largest = _frame(), {"channels:a": 16, "weight_bits:b": 8, "kernel_sparsity:a": 0.0}
    second = first.assign(
        accuracy=(first["accuracy"] + 0.02).where(first["channels:a"] > 4),
        latency_ms=3.0,
        macs=first["macs"] * 1.001,
    )
    failed = first["channels:a"] == 8
    first = first.assign(latency_ms=1.0, accuracy=first["accuracy"].mask(failed))
    second.loc[failed & (first["weight_bits_b"] == 2), "accuracy"] = np.nan
    pd.concat([first, second]).to_csv(tmp_path / "table.csv", index=False)
    table = read_table(tmp_path / "table.csv").estimator()
    assert table.note == "24 rows of 12 policies: those of one policy are averaged"
    found = table.estimate(Policy(largest)).metrics
    assert found == pytest.approx({"accuracy": 0.83, "macs": 128.064, "latency_ms": 2.0})
    small = table.estimate(Policy({**largest, "channels:a": 4})).metrics
    assert small["accuracy"] == pytest.approx(0.70)
    once = table.estimate(Policy({**largest, "channels:a": 8})).metrics
    assert once["accuracy"] == pytest.approx(0.76)
    assert not table.estimate(Policy({**largest, "channels:a": 8, "weight_bits:b": 2})).ok
    _frame().to_csv(tmp_path / "once.csv", index=False)
    assert read_table(tmp_path / "once.csv").estimator().note == ""


def test_the_least_compressed_policy_has_an_accuracy(tmp_path: Path) -> None:
    frame = _frame()
    largest = (frame["macs"] == 128) & (frame["kernel_sparsity:a"] == 0)
    frame.loc[largest, "accuracy"] = np.nan
    frame.to_csv(tmp_path / "table.csv", index=False)
    with pytest.raises(StudyError, match="must have an accuracy"):
        read_table(tmp_path / "table.csv")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.iloc[1:], "each of its space's 12 policies, but .* has 11"),
        (
            lambda f: pd.concat([f, f.iloc[:1].assign(macs=f.macs.iloc[0] * 1.1)]),
            "13 rows with 12 different policies, one of them with 'macs' from",
        ),
        (lambda f: f.iloc[:0], "must have rows"),
        (lambda f: f.assign(macs=f.macs.where(f.macs < 128, 0)), "must have 'macs' above 0"),
        (lambda f: f.drop(columns="accuracy"), "record accuracy and a cost"),
        (lambda f: f.drop(columns="macs"), "record accuracy and a cost"),
        (lambda f: f[["accuracy", "macs"]], "a column for every gene"),
        (lambda f: f.assign(accuracy=np.nan), "'accuracy' must be a number"),
        (lambda f: f.assign(accuracy=120.0), "from 0 to 100"),
        (lambda f: f.assign(accuracy="failed"), "leave those of policies that failed empty"),
        (lambda f: f.assign(macs=-1.0), "'macs' must be a number"),
        (lambda f: f.assign(macs="many"), "'macs' must be a number"),
        (lambda f: f.assign(weight_bits_b=f.weight_bits_b + 8), "weight_bits must be among"),
        (lambda f: f.assign(weight_bits_b="low"), "'weight_bits_b' holds 'low'"),
        (lambda f: f.assign(weight_bits_b=[2, "x"] * 6), "'weight_bits_b' holds 'x'"),
        (lambda f: f.assign(weight_bits_b=f.weight_bits_b.replace(2, np.nan)), "holds nan"),
        (
            lambda f: f.assign(weight_bits_b=f.weight_bits_b.replace(2, np.inf)),
            "'weight_bits:b' has inf",
        ),
        (lambda f: f.to_csv(sep=";").encode(), "columns ';weight_bits_b;channels:a"),
        (lambda f: f.to_csv(sep=";", decimal=",").encode(), "parted by commas"),
        (lambda f: f.to_csv(sep="\t").encode(), "parted by commas"),
        (lambda f: f.to_csv(index=False).encode("utf-16"), "in UTF-8"),
        (lambda f: f.rename(columns={"macs": "MACs"}), "such as macs=MACs"),
        (lambda f: f.rename(columns={"accuracy": "Accuracy"}), "such as accuracy=Accuracy"),
        (lambda f: f.rename(columns={"macs": "cost"}), "such as macs=flops"),
        (lambda f: f.rename(columns={"note": "macs "}), "repeats 'macs'"),
        (lambda f: f.rename(columns={"note": "macs"}), "repeats 'macs'; rename or remove one$"),
        (lambda f: f.assign(other=1).rename(columns={"other": "note"}), "repeats 'note'"),
        (lambda f: f.assign(macs=f.macs.where(f.macs < 128, np.inf)), "of at least 0, and finite"),
        (
            lambda f: f.assign(accuracy=f.accuracy.where(f.accuracy < 0.8, 81.0)),
            "has 1 above 1 and 11 from 0 to 1",
        ),
        (lambda f: f.to_csv(index_label=False).encode(), "as many cells as the header"),
    ],
)
def test_wrong_tables_are_refused(tmp_path: Path, change: object, said: str) -> None:
    changed = change(_frame())  # type: ignore[operator]
    path = tmp_path / "table.csv"
    path.write_bytes(
        changed if isinstance(changed, bytes) else changed.to_csv(index=False).encode()
    )
    with pytest.raises(InputError, match=said):
        read_table(path).estimator()


def test_columns_without_names_and_columns_that_differ_by_a_number_are_read(tmp_path: Path) -> None:
    frame = _frame().assign(one=1, two=2).rename(columns={"note": "macs.1", "one": "", "two": ""})
    frame.to_csv(tmp_path / "table.csv", index=False)
    assert read_table(tmp_path / "table.csv").estimator().recorded


@pytest.mark.parametrize("odd", ["2", [2], pd.Timestamp(0)])
def test_choices_that_are_no_numbers_are_refused(tmp_path: Path, odd: object) -> None:
    frame = _frame()
    frame["weight_bits_b"] = [odd] * len(frame)
    frame.to_parquet(tmp_path / "table.parquet")
    with pytest.raises(StudyError, match="'weight_bits_b' holds"):
        read_table(tmp_path / "table.parquet")


def test_a_table_without_trade_off_is_told_from_constraints_nobody_meets(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    _frame().assign(macs=7).to_csv(path, index=False)
    with pytest.raises(StudyError, match="of the table none is in error, macs"):
        read_table(path).estimator().scale(("error", "macs"), ())
    with pytest.raises(StudyError, match="none of the table meets macs <= 6"):
        read_table(path).estimator().scale(("error", "macs"), [Constraint.parse("macs <= 6")])


def test_a_policy_just_as_good_as_a_limit_meets_it() -> None:
    limit = Constraint.parse("error <= 0.02")
    met = check_met([(limit, 1 - np.array([0.979, 0.98, 0.981]))], 3, "table")
    assert met.tolist() == [False, True, True]


def test_wrong_columns_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    _frame().to_csv(path, index=False)
    with pytest.raises(StudyError, match="did you mean 'accuracy'"):
        read_table(path, {"acuracy": "macs"})
    with pytest.raises(StudyError, match="did you mean 'macs'"):
        read_table(path, {"macs": "mac"})
    with pytest.raises(StudyError, match="cannot be read"):
        read_table(tmp_path / "missing.csv")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    with pytest.raises(StudyError, match="cannot be read"):
        read_table(tmp_path / "broken.parquet")


@pytest.mark.table
@pytest.mark.skipif("AUTOML_COMPRESS_TEST_NATS" not in os.environ, reason="no recorded table")
def test_the_nats_size_space() -> None:
    """Dong et al. 2021: 32,768 networks; best 93.65 %; 84 points on the exact front."""
    table = read_table(
        Path(os.environ["AUTOML_COMPRESS_TEST_NATS"]),
        {"accuracy": "test_accuracy_cifar10", "macs": "macs_cifar10"},
    ).estimator()
    values = table.values(("error", "macs"))
    assert table.space.cardinality == len(values) == 32_768
    assert values[:, 0].min() == pytest.approx(1 - 0.9365)
    assert values[:, 0].max() == pytest.approx(0.2021)
    assert front_mask(values).sum() == 84
