"""A recorded search space: every policy's metrics stand in a table, so nothing is measured.

Such a table replays searches in seconds (Dong et al. 2021, NATS-Bench, is one).
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from automl_compress.errors import EstimateError, StudyError
from automl_compress.evaluate.estimator import Estimator
from automl_compress.evaluate.evaluation import COSTS, Evaluation
from automl_compress.evaluate.objectives import Constraint
from automl_compress.pareto import Reference
from automl_compress.settings import one_line, shown, suggestion
from automl_compress.space import Gene, Policy, SearchSpace
from automl_compress.space.genes import KINDS, Kind

METRICS: Final = ("accuracy", *COSTS)
"""Metrics a table may record."""


class Simulation(Estimator):
    """Answers for every policy of a space without a network, costs included."""

    space: SearchSpace
    scored_by: str
    """What hypervolumes are measured by, for captions."""
    note: str = ""
    """What is to be said of the answers, likewise."""

    @property
    @abstractmethod
    def judged_by(self) -> str:
        """The quality that answers hold, see `QUALITIES`."""

    @property
    @abstractmethod
    def baseline(self) -> dict[str, float]:
        """Minimised metrics of the uncompressed network."""

    @property
    @abstractmethod
    def recorded(self) -> tuple[str, ...]:
        """Names of the metrics that can be minimised."""

    @property
    def counted_error(self) -> float | None:
        """Error at which the hypervolume ends that counts; None where a study's count."""
        return None

    @abstractmethod
    def costs(self, policy: Policy) -> dict[str, float]:
        """The costs of a policy by name."""

    @abstractmethod
    def scale(
        self, objectives: Sequence[str], constraints: Sequence[Constraint]
    ) -> tuple[Reference, float]:
        """A reference, and the share of its box that counts as 1.

        Raises:
            StudyError: no policy meets the constraints.
        """


class RecordedEstimator(Simulation):
    """Answers from a table that holds every policy of a space once.

    Args:
        space: the search space.
        metrics: by name, accuracy in [0, 1] among them: (size of the first gene, ..., size of
            the last) values at the indices of each policy. Where the accuracy is NaN, a policy
            failed; that of the least compressed one is known.
    """

    scored_by = "Hypervolume as a share of the exact front's"

    def __init__(self, space: SearchSpace, metrics: Mapping[str, NDArray[np.float64]]) -> None:
        self.space = space
        self._metrics = dict(metrics)
        digest = hashlib.sha256(repr(space.to_dict()).encode())
        for name in sorted(self._metrics):
            digest.update(name.encode() + np.ascontiguousarray(self._metrics[name]).tobytes())
        self._identity = "table-" + digest.hexdigest()[:16]

    @property
    def judged_by(self) -> str:
        """Tables record accuracies."""
        return "accuracy"

    @property
    def identity(self) -> str:
        """Hash of the space and all values."""
        return self._identity

    def estimate(self, policy: Policy) -> Evaluation:
        """Look a policy up."""
        row = self._row(policy)
        if math.isnan(row["accuracy"]):
            return Evaluation.failed(policy, self._identity, "the table records no accuracy")
        return Evaluation(policy, self._identity, row)

    def costs(self, policy: Policy) -> dict[str, float]:
        """The recorded costs of a policy."""
        return {name: value for name, value in self._row(policy).items() if name != "accuracy"}

    def _row(self, policy: Policy) -> dict[str, float]:
        place = tuple(self.space.encode(policy))
        return {name: float(values[place]) for name, values in self._metrics.items()}

    @property
    def baseline(self) -> dict[str, float]:
        """Minimised metrics of the least compressed policy."""
        row = self._row(self.space.largest)
        return {"error": 1.0 - row.pop("accuracy"), **row}

    @property
    def recorded(self) -> tuple[str, ...]:
        """Names of the metrics that can be minimised."""
        return ("error", *(name for name in COSTS if name in self._metrics))

    @property
    def counted_error(self) -> float:
        """The worst error of the table."""
        return float(_worst(self.values(["error"]))[0])

    def scale(
        self, objectives: Sequence[str], constraints: Sequence[Constraint]
    ) -> tuple[Reference, float]:
        """The worst values of the table, and the share that its exact front dominates."""
        values = self.values(objectives)
        reference = Reference(_worst(values))
        for limit in constraints:
            values[self.values([limit.metric])[:, 0] > limit.limit] = np.inf
        if not np.isfinite(values).all(axis=1).any():
            texts = ", ".join(limit.text for limit in constraints)
            raise StudyError(
                f"constraints must leave policies, but none of the table meets {texts}; loosen them"
            )
        whole = reference.share(values)
        if not whole:
            raise StudyError(
                "some policy must be better than the worst in every objective, but of the table "
                f"none is in {', '.join(objectives)}; choose other objectives or constraints"
            )
        return reference, whole

    def values(self, objectives: Iterable[str]) -> NDArray[np.float64]:
        """(n_policies, n_objectives) minimised values of the whole space; failed errors are inf.

        Raises:
            EstimateError: an objective is not recorded.
        """
        return np.stack([self._column(name) for name in objectives], axis=1)

    def _column(self, objective: str) -> NDArray[np.float64]:
        if objective not in self.recorded:
            raise EstimateError(
                f"an objective must be recorded, one of {', '.join(self.recorded)}, but is "
                f"'{objective}'"
            )
        if objective == "error":
            return np.nan_to_num(1.0 - self._metrics["accuracy"].ravel(), nan=math.inf)
        return self._metrics[objective].ravel()


def _worst(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n_objectives,) largest values of the policies that did not fail."""
    worst: NDArray[np.float64] = values[np.isfinite(values).all(axis=1)].max(axis=0)
    return worst


def read_table(
    path: Path, columns: Mapping[str, str] | None = None, genes: Sequence[str] = ()
) -> RecordedEstimator:
    """Read a recorded space.

    Columns named `kind:target` or `kind_target` are genes, of the kinds of a search space; or
    those that are listed, whatever they are named and hold. Every combination of the values that
    occur must have exactly one row. Columns named as metrics
    (`METRICS`) are metrics; accuracies above 1 are read as per cent. A policy without an
    accuracy failed; its costs must be there. Other columns are ignored.

    Args:
        path: `.csv`, also compressed, or `.parquet`.
        columns: column by metric, where a metric's column has another name.
        genes: columns of the genes. Choices that are not whole numbers from 1 become such: in
            their order where they are numbers, else in that of their policies' mean first cost.

    Raises:
        StudyError: the file cannot be read, or holds no complete space with its accuracies.
    """
    frame = _read(path)
    chosen = _metric_columns(frame, dict(columns or {}), path)
    if genes:
        frame = _ranked(frame, genes, chosen, path)
        named = _any_named(genes)
    else:
        named = {name: gene for name in map(str, frame) if (gene := _gene_name(name)) is not None}
    if not named:
        raise StudyError(
            f"a table must have a column for every gene, named KIND:TARGET with a kind of "
            f"{', '.join(KINDS)}, but '{path}' has none; rename its columns or list them: --genes"
        )
    space = SearchSpace(
        [_gene(frame[column], name, kind) for column, (name, kind) in named.items()]
    )
    places = _places(frame, list(named), space, path)
    metrics = {}
    for metric, column in chosen.items():
        filled = np.empty(space.cardinality)
        filled[places] = _numbers(frame[column], metric, path)
        metrics[metric] = filled.reshape(tuple(space.sizes))
    if math.isnan(metrics["accuracy"][tuple(space.encode(space.largest))]):
        raise StudyError(
            f"the least compressed policy, which others are measured against, must have an "
            f"accuracy, but in '{path}' it has none; add it"
        )
    return RecordedEstimator(space, metrics)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except Exception as reason:
        raise StudyError(
            f"a table must be CSV or Parquet, but '{path}' cannot be read: {one_line(reason)}; "
            "give another file"
        ) from reason


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
            "known; name columns, such as accuracy=test_accuracy"
        )
    return found


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
        StudyError: a column is not there, holds a metric, is listed twice or has gaps.
    """
    cost = next(column for metric, column in metrics.items() if metric != "accuracy")
    ranks = {}
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
        if _gene_name(column) is None and not _counts(frame[column]):
            ranks[column] = frame[column].map(_ranks(frame[column], frame[cost]))
    return frame.assign(**ranks)


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
    values = column.tolist()
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


def _places(
    frame: pd.DataFrame, columns: list[str], space: SearchSpace, path: Path
) -> NDArray[np.int64]:
    """(n_rows,) position of each row in the space, the last gene running fastest."""
    indices = [
        frame[column].map({value: index for index, value in enumerate(gene.values)}).to_numpy()
        for column, gene in zip(columns, space, strict=True)
    ]
    distinct = len(set(zip(*indices, strict=True)))
    if distinct != len(frame) or distinct != space.cardinality:
        remedy = "keep one row of each" if distinct < len(frame) else "complete it"
        raise StudyError(
            f"a table must hold each of its space's {space.cardinality} policies once, but "
            f"'{path}' has {len(frame)} rows with {distinct} different ones; {remedy}"
        )
    return np.ravel_multi_index(tuple(indices), tuple(space.sizes)).astype(np.int64)


def _numbers(column: pd.Series[float], metric: str, path: Path) -> NDArray[np.float64]:
    try:
        numbers: NDArray[np.float64] = np.asarray(column, dtype=np.float64)
    except ValueError:
        numbers = np.array([math.nan])
    judged = metric == "accuracy"
    known = numbers[~np.isnan(numbers)] if judged else numbers
    percent = judged and bool((known > 1.0).any())
    highest = 100.0 if percent else (1.0 if judged else math.inf)
    if not (len(known) and np.isfinite(known).all() and ((known >= 0) & (known <= highest)).all()):
        raise StudyError(
            f"'{metric}' must be a number from 0 to {highest:g} in every row, but column "
            f"'{column.name}' of '{path}' holds others; correct them"
            + (", and leave those of policies that failed empty" if judged else "")
        )
    shares: NDArray[np.float64] = numbers / 100.0 if percent else numbers
    return shares
