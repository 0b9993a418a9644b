"""Tables of policies and their metrics, as they are read from files."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from automl_compress.errors import StudyError
from automl_compress.evaluate.evaluation import COSTS, LATENCY
from automl_compress.evaluate.recorded import RecordedEstimator
from automl_compress.evaluate.table_file import read_frame
from automl_compress.settings import nearest, shown, suggestion
from automl_compress.space import Gene, Indices, SearchSpace, counted
from automl_compress.space.genes import KINDS, Kind

METRICS: Final = ("accuracy", *COSTS)
"""Metrics a table may record."""
_ALIKE: Final = 0.01
"""Share by which rounding may part the costs of rows of one policy."""


@dataclass(frozen=True)
class RecordedTable:
    """Policies of a space and their metrics.

    Args:
        path: the file.
        space: of the values that occur.
        indices: (n, n_genes) different policies, in order, the last gene running fastest.
        metrics: (n,) by name, `accuracy` among them: a share, NaN where a policy failed.
        rows: of the file, n or more.
        per_cent: whether the file states accuracies in per cent.
    """

    path: Path
    space: SearchSpace
    indices: Indices
    metrics: Mapping[str, NDArray[np.float64]]
    rows: int
    per_cent: bool = False

    @property
    def complete(self) -> bool:
        """Whether every policy of the space is there."""
        return len(self.indices) == self.space.cardinality

    @property
    def note(self) -> str:
        """What is to be said of how it was read; empty where nothing is."""
        notes = []
        if self.per_cent:
            notes.append("Accuracies are read as per cent")
        if (count := len(self.indices)) != self.rows:
            notes.append(f"{self.rows} rows of {count} policies: those of one policy are averaged")
        return ". ".join(notes)

    def estimator(self) -> RecordedEstimator:
        """Answers by looking policies up.

        Raises:
            StudyError: the table is not complete.
        """
        if not self.complete:
            raise StudyError(
                f"a table must hold each of its space's {counted(self.space.cardinality)} "
                f"policies, but '{self.path}' has {len(self.indices)}; complete it"
            )
        return RecordedEstimator(self.space, self.metrics, self.note)


def read_table(
    path: Path, columns: Mapping[str, str] | None = None, genes: Sequence[str] = ()
) -> RecordedTable:
    """Read a recorded space, or a part of one.

    Columns named `kind:target` or `kind_target` are genes, of the kinds of a search space; or
    those that are listed, whatever they are named and hold. Columns named as metrics (`METRICS`)
    are metrics, and those that are chosen for one, which are no genes then. Accuracies are read
    as per cent where most are above 1. A policy without an accuracy failed; its
    costs must be there. Other columns are ignored.

    Rows of one policy, such as trainings with several seeds, are averaged: those that have an
    accuracy, and their costs. To keep the best would favour policies that were trained more often.
    Costs other than the latency must agree: where they do not, a gene is missing that tells the
    rows apart.

    Args:
        path: `.csv`, also compressed, or `.parquet` or `.pq`.
        columns: column by metric, where a metric's column has another name.
        genes: columns of the genes. Choices that are not whole numbers from 1 become such: in
            their order where they are numbers, else in that of their policies' mean first cost.

    Raises:
        StudyError: the file cannot be read, holds no genes and metrics, or what it says of the
            least compressed policy cannot be measured against.
    """
    frame = read_frame(path, genes)
    chosen = _metric_columns(frame, dict(columns or {}), path)
    if genes:
        frame = _ranked(frame, genes, chosen, path)
        named = _any_named(genes)
    else:
        names = [column for column in map(str, frame) if column not in chosen.values()]
        named = {name: gene for name in names if (gene := _gene_name(name)) is not None}
    if not named:
        raise StudyError(
            f"a table must have a column for every gene, named KIND:TARGET with a kind of "
            f"{', '.join(KINDS)}, but '{path}' has none; rename its columns or list them: --genes"
        )
    if not len(frame):
        raise StudyError(f"a table must have rows, but '{path}' has none; add some")
    space = SearchSpace(
        [_gene(frame[column], name, kind) for column, (name, kind) in named.items()]
    )
    indices, places = _policies(frame, list(named), space)
    metrics = {
        metric: _averaged(_numbers(frame[column], metric, path), places, metric, path)
        for metric, column in chosen.items()
    }
    per_cent = _in_per_cent(frame[chosen["accuracy"]])
    table = RecordedTable(path, space, indices, metrics, len(frame), per_cent)
    _check_largest(table)
    return table


def _check_largest(table: RecordedTable) -> None:
    """Check what others are measured against, where it is recorded."""
    for place in np.flatnonzero((table.indices == table.space.sizes - 1).all(axis=1)):
        for metric, values in table.metrics.items():
            what = "an accuracy" if metric == "accuracy" else f"'{metric}' above 0"
            if math.isnan(values[place]) or (metric != "accuracy" and values[place] == 0):
                raise StudyError(
                    f"the least compressed policy, which others are measured against, must have "
                    f"{what}, but in '{table.path}' it has none; add it"
                )


def _metric_columns(frame: pd.DataFrame, given: dict[str, str], path: Path) -> dict[str, str]:
    for metric, column in given.items():
        if metric not in METRICS:
            raise StudyError(
                f"a column must be named for one of {', '.join(METRICS)}, but is for '{metric}'"
                f"{suggestion(metric, METRICS)}; correct it"
            )
        if column not in frame:
            raise StudyError(
                f"the column of '{metric}' must be in '{path}', but '{column}' is not"
                f"{suggestion(column, map(str, frame))}; correct it"
            )
    found = {metric: given.get(metric, metric) for metric in METRICS}
    found = {metric: column for metric, column in found.items() if column in frame}
    if "accuracy" not in found or len(found) < 2:
        raise StudyError(
            f"a table must record accuracy and a cost ({', '.join(COSTS)}), but of the columns "
            f"{shown(', '.join(map(str, frame)))} of '{path}' only {', '.join(found) or 'none'} is "
            f"known; name columns, such as {_example(frame, found)}"
        )
    for metric, column in found.items():
        if len(both := [name for name, other in found.items() if other == column]) > 1:
            raise StudyError(
                f"metrics must be in different columns, but column '{column}' is chosen for "
                f"'{metric}', and for '{both[1]}' too; choose another"
            )
    return found


def _example(frame: pd.DataFrame, found: Mapping[str, str]) -> str:
    """How a column is named for a metric that is missing."""
    missing = COSTS if "accuracy" in found else ("accuracy",)
    usual = "macs=flops" if "accuracy" in found else "accuracy=test_accuracy"
    others = [column for column in map(str, frame) if column not in found.values()]
    near = [f"{metric}={column}" for metric in missing if (column := nearest(metric, others))]
    return (near or [usual])[0]


def _gene_name(column: str) -> tuple[str, Kind] | None:
    """Name and kind of the gene in a column; None when it holds none."""
    for kind in KINDS:
        for separator in (":", "_"):
            target = column.removeprefix(f"{kind}{separator}")
            if target and target != column:
                return f"{kind}:{target}", kind
    return None


def _any_named(genes: Sequence[str]) -> dict[str, tuple[str, Kind]]:
    """Name and kind by column, of columns that may be named anyhow."""
    return {column: _gene_name(column) or (f"channels:{column}", "channels") for column in genes}


def _ranked(
    frame: pd.DataFrame, genes: Sequence[str], metrics: Mapping[str, str], path: Path
) -> pd.DataFrame:
    """The table with the choices of listed genes that no kind allows as ranks, from 1.

    Raises:
        StudyError: a column is not there, holds a metric, is listed twice, has gaps or holds
            other things than numbers and words.
    """
    cost = next(column for metric, column in metrics.items() if metric != "accuracy")
    ranked = frame.copy(deep=False)
    for column in genes:
        if column not in frame or column in metrics.values() or list(genes).count(column) > 1:
            raise StudyError(
                f"a gene must be a column of '{path}' that holds no metric, listed once, but is "
                f"'{column}'{suggestion(column, map(str, frame))}; correct it"
            )
        if frame[column].isna().any():
            raise StudyError(
                f"a gene must have a choice in every row, but column '{column}' of '{path}' has "
                "gaps; fill them"
            )
        if odd := [choice for choice in frame[column] if not isinstance(choice, Hashable)]:
            raise StudyError(
                f"the choices of a gene must be numbers or words, but column '{column}' of "
                f"'{path}' holds {shown(odd[0])}; correct it"
            )
        if _gene_name(column) is None and not _counts(frame[column]):
            ranked[column] = frame[column].map(_ranks(frame[column], frame[cost]))
    return ranked


def _counts(column: pd.Series[float]) -> bool:
    """Whether its choices are whole numbers from 1, which genes take as they are."""
    return pd.api.types.is_integer_dtype(column) and bool((column > 0).all())


def _ranks(column: pd.Series[float], cost: pd.Series[float]) -> dict[object, int]:
    """Rank by choice, the most compressed first."""
    if pd.api.types.is_numeric_dtype(column):
        ordered = sorted(set(column.tolist()))
    else:
        means = pd.to_numeric(cost, errors="coerce").groupby(column).mean()
        ordered = sorted(means.index, key=lambda choice: (means[choice], str(choice)))
    return {choice: rank for rank, choice in enumerate(ordered, 1)}


def _gene(column: pd.Series[float], name: str, kind: Kind) -> Gene:
    """A gene of the numbers that occur; which of them are allowed is the gene's to say.

    Raises:
        StudyError: something else occurs.
        SpaceError: a number is not allowed.
    """
    numeric = pd.api.types.is_numeric_dtype(column)  # others may hold what cannot be compared
    values = (column.drop_duplicates() if numeric else column).tolist()
    odd = [value for value in values if not isinstance(value, int | float) or math.isnan(value)]
    if odd:  # where a word stands in a column, its numbers are read as texts: words sort last
        raise StudyError(
            f"the choices of a gene must be numbers, but column '{column.name}' holds "
            f"{shown(max(odd, key=str))}; correct it"
        )
    found = sorted(set(values), reverse=kind == "kernel_sparsity")
    return Gene(name, kind, tuple(_whole(value, kind) for value in found))


def _whole(value: float, kind: Kind) -> int | float:
    """A number as genes of a kind have it: whole, where it is, for all kinds but shares."""
    return int(value) if kind != "kernel_sparsity" and float(value).is_integer() else value


def _policies(
    frame: pd.DataFrame, columns: list[str], space: SearchSpace
) -> tuple[Indices, NDArray[np.int64]]:
    """(n, n_genes) different policies, in order, and (n_rows,) which of them each row is."""
    indices = [
        frame[column].map({value: index for index, value in enumerate(gene.values)}).to_numpy()
        for column, gene in zip(columns, space, strict=True)
    ]
    rows = np.stack(indices, axis=1).astype(np.int64)
    policies, places = np.unique(rows, axis=0, return_inverse=True)
    return policies, places.ravel()


def _averaged(
    numbers: NDArray[np.float64], places: NDArray[np.int64], metric: str, path: Path
) -> NDArray[np.float64]:
    """(n,) mean of the rows of each policy, of those that are known.

    Args:
        numbers: (n_rows,) a metric; NaN where an accuracy is not known.
        places: (n_rows,) which policy each row is.
        metric: its name.
        path: of the table.

    Raises:
        StudyError: a cost that is no latency differs between rows of one policy.
    """
    grouped = pd.Series(numbers).groupby(places)
    if metric in COSTS and metric != LATENCY:
        least, most = grouped.min(), grouped.max()
        if (apart := (most - least > _ALIKE * most).to_numpy()).any():
            worst = int(np.argmax(apart))
            raise StudyError(
                f"rows of one policy must cost the same, but '{path}' has {len(numbers)} rows with "
                f"{len(apart)} different policies, one of them with '{metric}' from "
                f"{least.iloc[worst]:g} to {most.iloc[worst]:g}; list all genes, or keep one row "
                "of each"
            )
    return np.asarray(grouped.mean(), np.float64)


def _numbers(column: pd.Series[float], metric: str, path: Path) -> NDArray[np.float64]:
    try:
        numbers: NDArray[np.float64] = np.asarray(column, dtype=np.float64)
    except (ValueError, TypeError):
        numbers = np.array([math.nan])
    judged = metric == "accuracy"
    known = numbers[~np.isnan(numbers)] if judged else numbers
    per_cent = judged and _in_per_cent(numbers)
    highest = 100.0 if per_cent else (1.0 if judged else math.inf)
    if not (len(known) and np.isfinite(known).all() and ((known >= 0) & (known <= highest)).all()):
        rule = f"from 0 to {highest:g}" if judged else "of at least 0, and finite,"
        raise StudyError(
            f"'{metric}' must be a number {rule} in every row, but column "
            f"'{column.name}' of '{path}' holds others; correct them"
            + (", and leave those of policies that failed empty" if judged else "")
        )
    if per_cent and 2 * (above := int((known > 1.0).sum())) < len(known):
        raise StudyError(
            f"accuracies must all be shares or all be in per cent, but column '{column.name}' of "
            f"'{path}' has {above} above 1 and {len(known) - above} from 0 to 1; correct them, or "
            "state all as shares"
        )
    shares: NDArray[np.float64] = numbers / 100.0 if per_cent else numbers
    return shares


def _in_per_cent(accuracies: NDArray[np.float64] | pd.Series[float]) -> bool:
    """Whether they are read so."""
    return bool((np.asarray(accuracies, dtype=np.float64) > 1.0).any())
