"""What a report states, computed once from a study's folder."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from automl_compress.evaluate import (
    COSTS,
    LATENCY,
    LOSSES,
    QUALITIES,
    USEFUL_LOSS,
    Constraint,
    Evaluation,
    beyond,
    error_name,
    quality_name,
    quality_of,
    violations,
)
from automl_compress.ledger import FrontPoint, StudyResult
from automl_compress.pareto import Values, front_mask
from automl_compress.report.audit import Audit, read_audit
from automl_compress.report.recovered import RecoveredNetwork, recovered_networks
from automl_compress.report.scores import ContestantScores, contestant_scores
from automl_compress.report.ties import levelled
from automl_compress.space import Policy

HEADLINE_LOSSES: Final = (0.005, 0.01, 0.02)
"""Losses of test quality that the headline answers for."""

_Z95: Final = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def wilson_interval(share: float, images: int) -> tuple[float, float]:
    """95 % score interval of a share that was counted (Wilson 1927).

    Args:
        share: counted share in [0, 1].
        images: how many were counted, at least 1.

    Returns:
        Lower and upper bound in [0, 1].
    """
    spread = _Z95**2 / images
    centre = (share + spread / 2) / (1 + spread)
    variance = share * (1 - share) / images + spread / (4 * images)
    half = _Z95 * math.sqrt(variance) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def quality_interval(metrics: Mapping[str, float], images: int) -> tuple[float, float] | None:
    """95 % interval of the quality among metrics; None where its error is not known.

    Of a counted accuracy Wilson's, of others the normal one by the standard error.

    Args:
        metrics: hold a quality, and its standard error where it is no accuracy.
        images: it was measured on, at least 1.
    """
    name, share = quality_name(metrics), quality_of(metrics)
    if error_name(name) not in metrics:
        return wilson_interval(share, images) if name == "accuracy" else None
    half = _Z95 * metrics[error_name(name)]
    return max(0.0, share - half), min(1.0, share + half)


def dominated(values: Values) -> NDArray[np.bool_]:
    """(n,) True where another row is no worse anywhere and better somewhere.

    Unlike in `front_mask`, equal rows do not dominate each other.

    Args:
        values: (n, n_objectives) minimised and finite.
    """
    no_worse = (values[:, None] <= values[None]).all(axis=2)
    better = (values[:, None] < values[None]).any(axis=2)
    return np.asarray((no_worse & better).any(axis=0))


@dataclass(frozen=True)
class Spread:
    """Mean and range of one number over seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """Spread of at least one number."""
        return cls(float(np.mean(numbers)), min(numbers), max(numbers), len(numbers))

    def __str__(self) -> str:
        if self.seeds == 1:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ({self.low:.4f}..{self.high:.4f})"


@dataclass(frozen=True, eq=False)
class StrategyScores:
    """The contestants of one strategy.

    Args:
        strategy: registered name.
        in_race: False for the line that is drawn for reference only.
        members: one per seed.
    """

    strategy: str
    in_race: bool
    members: tuple[ContestantScores, ...]

    @property
    def label(self) -> str:
        """Name for tables and legends."""
        return self.strategy if self.in_race else f"{self.strategy} (reference)"

    @property
    def names(self) -> list[str]:
        """Names of the contestants."""
        return [member.record.name for member in self.members]

    @property
    def evaluations(self) -> list[int]:
        """Evaluations of each member."""
        return [len(member) for member in self.members]

    @property
    def values(self) -> Values:
        """(n, n_objectives) minimised values of all members; inf where unusable."""
        return np.concatenate([member.values for member in self.members])

    @property
    def qualities(self) -> NDArray[np.float64]:
        """(n,) qualities of all members, as shares; NaN where unusable."""
        return np.concatenate([member.qualities for member in self.members])

    @property
    def standard_errors(self) -> NDArray[np.float64]:
        """(n,) standard errors of the qualities of all members; NaN where not known."""
        return np.concatenate([member.standard_errors for member in self.members])

    def curves(self, kind: str) -> NDArray[np.float64]:
        """(n_seeds, n) hypervolume after 1..n evaluations, n being what all started members made.

        Args:
            kind: `useful` or `plain`.
        """
        started = [getattr(member, kind) for member in self.members if len(member)]
        length = min(map(len, started), default=0)
        return np.array([curve[:length] for curve in started]).reshape(len(started), length)

    def at(self, kind: str, evaluations: int) -> Spread | None:
        """Hypervolume after so many evaluations; None unless all members made them."""
        if min(self.evaluations) < evaluations:
            return None
        return Spread.of([float(getattr(m, kind)[evaluations - 1]) for m in self.members])

    def last(self, kind: str) -> Spread | None:
        """Hypervolume after the last evaluation of each member that made any."""
        ends = [float(getattr(member, kind)[-1]) for member in self.members if len(member)]
        return Spread.of(ends) if ends else None


def strategy_scores(scores: Iterable[ContestantScores]) -> tuple[StrategyScores, ...]:
    """Contestants grouped by strategy, those in the race first, else in the given order."""
    groups: dict[tuple[str, bool], list[ContestantScores]] = {}
    for member in scores:
        groups.setdefault((member.record.strategy, member.record.in_race), []).append(member)
    made = [StrategyScores(*key, tuple(members)) for key, members in groups.items()]
    return tuple(sorted(made, key=lambda group: not group.in_race))


@dataclass(frozen=True)
class Finalist:
    """A policy chosen for the final test images.

    Args:
        number: 1 for the smallest.
        estimate: what the search measured.
        test: what the final test images gave; None when not measured yet.
        strategy: who found it first.
        seed: that contestant's seed.
        dominated: whether another finalist is no worse in any objective on the test images and
            better in one.
        broken: constraints that do not hold on the test images, or for the measured latency, as
            the user wrote them.
        latency: its measured latency, see `StudyResult.latency`; None when there is none.
        too_slow: those of `broken` that the measured latency breaks.
    """

    number: int
    estimate: Evaluation
    test: Evaluation | None
    strategy: str
    seed: int
    dominated: bool
    broken: tuple[str, ...]
    latency: Evaluation | None = None
    too_slow: tuple[str, ...] = ()

    @property
    def quality(self) -> float | None:
        """Test quality in [0, 1]; None when not measured, or when that failed."""
        return self.test.quality if self.test is not None and self.test.ok else None

    @property
    def metrics(self) -> dict[str, float]:
        """The search's metrics, with the quality and the latency that were measured since."""
        measured = _measured_latency(self.estimate, self.latency).metrics
        name = quality_name(self.estimate.metrics)
        return {**measured, **({} if self.quality is None else {name: self.quality})}

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the test quality; None when not measured or not known."""
        if self.quality is None or self.test is None or self.test.images < 1:
            return None
        return quality_interval(self.test.metrics, self.test.images)


@dataclass(frozen=True)
class Optimism:
    """How far estimates lie above test qualities, as shares.

    Args:
        finalists: mean of the finalists, who were chosen by their estimates.
        baseline: of the uncompressed network, which nobody chose: what the images differ by.
        error: standard error of `finalists` over finalists; NaN for a single one. It takes them
            as independent, which networks measured on the same images are not.
    """

    finalists: float
    baseline: float
    error: float

    @property
    def beyond(self) -> float:
        """What the finalists' estimates have beyond those of a network that nobody chose.

        Where search and test judge the very same networks, that is the winner's curse: what
        choosing by noisy estimates adds to those of the chosen.
        """
        return self.finalists - self.baseline


@dataclass(frozen=True, eq=False)
class Summary:
    """A study and everything its report is made from."""

    result: StudyResult

    @cached_property
    def frame(self) -> pd.DataFrame:
        """`StudyResult.to_dataframe`."""
        return self.result.to_dataframe()

    @cached_property
    def strategies(self) -> tuple[StrategyScores, ...]:
        """Scores by strategy."""
        return strategy_scores(contestant_scores(self.result))

    @cached_property
    def ranking(self) -> tuple[StrategyScores, ...]:
        """Strategies by their last useful hypervolume, best first; the reference comes last."""
        level = self._level_scores
        return tuple(sorted(self.strategies, key=lambda g: (not g.in_race, -level[g.label])))

    def rank(self, group: StrategyScores) -> int:
        """1 more than how many strategies of the race are ahead; equal ones share a rank."""
        level = self._level_scores
        return 1 + sum(level[other.label] > level[group.label] for other in self.race)

    @cached_property
    def _level_scores(self) -> dict[str, float]:
        """Mean of the last useful hypervolumes by label, see `levelled`; -1 where there is none."""
        scores = levelled(np.array([_score(group) for group in self.strategies]))
        labels = [group.label for group in self.strategies]
        return dict(zip(labels, scores.tolist(), strict=True))

    @property
    def race(self) -> tuple[StrategyScores, ...]:
        """The strategies that are compared; the reference is not among them."""
        return tuple(group for group in self.strategies if group.in_race)

    @property
    def level(self) -> bool:
        """Whether all contestants of the race made equally many evaluations, at least one."""
        counts = {number for group in self.race for number in group.evaluations}
        return len(counts) == 1 and 0 not in counts

    @property
    def has_values(self) -> bool:
        """Whether any evaluation can be drawn."""
        return any(member.usable.any() for group in self.strategies for member in group.members)

    @cached_property
    def costs(self) -> tuple[str, ...]:
        """Costs that tables show: size, MACs, parameters, and whatever else is an objective."""
        return self._known_costs("size_bytes", "macs", "params")

    @property
    def pick_costs(self) -> tuple[str, ...]:
        """Costs the headline picks by: size, MACs, and whatever else is an objective."""
        return self._known_costs("size_bytes", "macs")

    def _known_costs(self, *always: str) -> tuple[str, ...]:
        manifest = self.result.manifest
        shown = {*always, *manifest.objectives}
        return tuple(name for name in COSTS if name in shown and name in manifest.baseline)

    @cached_property
    def finalists(self) -> tuple[Finalist, ...]:
        """Finalists, the smallest first."""
        return _finalists(self.result, self.frame)

    @property
    def measured(self) -> tuple[Finalist, ...]:
        """Finalists with a test quality."""
        return tuple(f for f in self.finalists if f.quality is not None)

    @property
    def allowed(self) -> tuple[Finalist, ...]:
        """Finalists with a test quality that break no constraint as measured."""
        return tuple(f for f in self.measured if not f.broken)

    @cached_property
    def front(self) -> tuple[FrontPoint, ...]:
        """The merged front, smallest error first."""
        return tuple(self.result.front())

    @property
    def other_front(self) -> tuple[FrontPoint, ...]:
        """Points of the merged front that are no finalists."""
        chosen = {finalist.estimate.policy.key for finalist in self.finalists}
        return tuple(point for point in self.front if point.policy.key not in chosen)

    @cached_property
    def splits(self) -> dict[str, int]:
        """Images of every data split, from the manifest; empty when it does not say."""
        return split_sizes(self.result.manifest.workload)

    @property
    def test_images(self) -> int:
        """Images of the final test; 0 when unknown."""
        counted = [f.test.images for f in self.measured if f.test is not None]
        return max(counted, default=0) or self.splits.get("test", 0)

    @property
    def quality(self) -> str:
        """What networks are judged by, as readers call it: `accuracy` or `mAP50`."""
        return QUALITIES[quality_name(self.result.manifest.baseline)]

    @property
    def test_quality(self) -> float | None:
        """Test quality of the uncompressed network; None when not measured yet."""
        baseline = self.result.manifest.test_baseline
        return quality_of(baseline) if baseline else None

    @property
    def test_interval(self) -> tuple[float, float] | None:
        """95 % interval of `test_quality`."""
        return self._interval(self.result.manifest.test_baseline)

    def _interval(self, tested: Mapping[str, float]) -> tuple[float, float] | None:
        """95 % interval of a quality on the test images; None where it was not measured."""
        known = tested and self.test_images
        return quality_interval(tested, self.test_images) if known else None

    @property
    def alike(self) -> bool:
        """Whether search and test repair networks alike, and so judge the very same ones."""
        networks = self.result.manifest.networks
        return bool(networks) and len(set(networks)) == 1

    @property
    def given_quality(self) -> float | None:
        """Test quality of what the user gave, where sparsity training made another of it."""
        given = self.result.manifest.test_given
        return quality_of(given) if given else None

    @property
    def given_interval(self) -> tuple[float, float] | None:
        """95 % interval of `given_quality`."""
        return self._interval(self.result.manifest.test_given)

    @property
    def reference_quality(self) -> float | None:
        """Test quality that losses count against: of the network the user gave."""
        return self.test_quality if self.given_quality is None else self.given_quality

    @property
    def whole(self) -> str:
        """What the network that policies compress is called."""
        return f"{'uncompressed' if self.given_quality is None else 'sparsified'} network"

    @property
    def useful_start(self) -> str:
        """What the network is called from whose quality useful ones are reckoned."""
        given = self.given_quality is not None and not self.lost_too_much
        return "given network" if given else self.whole

    @property
    def lost_too_much(self) -> bool:
        """Whether sparsity training left no useful network, see `evaluate.useful_baseline`."""
        return beyond("error", self.result.manifest.sparsity_loss, USEFUL_LOSS) > 0

    @property
    def optimism(self) -> Optimism | None:
        """How far the finalists' estimates lie above their test qualities; None before a test."""
        if not self.measured or self.test_quality is None:
            return None
        above = np.array([f.estimate.quality - (f.quality or 0.0) for f in self.measured])
        error = above.std(ddof=1) / math.sqrt(len(above)) if len(above) > 1 else math.nan
        baseline = quality_of(self.result.manifest.baseline) - self.test_quality
        return Optimism(float(above.mean()), baseline, float(error))

    @cached_property
    def recovered(self) -> tuple[RecoveredNetwork, ...]:
        """Networks that were trained after the search, the smallest first.

        Costs that their documents lack, which is the latency, are those that the search predicted
        for the same policies.
        """
        documents = recovered_networks(self.result.folder, self.result.manifest.fingerprints)
        told = self.result.usable_evaluations() if documents else {}
        found = tuple(_completed(n, told.get(n.policy.key)) for n in documents)
        if not self.result.manifest.extended:
            return found
        numbers = {finalist.estimate.policy.key: finalist.number for finalist in self.finalists}
        return tuple(replace(n, finalist=numbers.get(n.policy.key)) for n in found)

    @cached_property
    def rungs(self) -> tuple[str, ...]:
        """Names of the rungs that measured candidates, from cheap to dear."""
        names = (rung.name for rung in self.result.manifest.rungs)
        return tuple(name for name in names if self.result.rung(name))

    def rung_quality(self, name: str, finalist: Finalist) -> float | None:
        """A finalist's quality on a rung's search-validation images, in [0, 1]."""
        found = self.result.rung(name).get(finalist.estimate.policy.key)
        return found.quality if found is not None and found.ok else None

    def rung_baseline(self, name: str) -> float | None:
        """The uncompressed network's quality there; None where it has none."""
        rung = next(rung for rung in self.result.manifest.rungs if rung.name == name)
        return quality_of(rung.baseline) if rung.baseline else None

    @cached_property
    def audit(self) -> Audit | None:
        """What the study's estimates are worth; None where nobody audited them."""
        return read_audit(self.result.folder, self.result.manifest.fingerprints)

    def lost(self, finalist: Finalist) -> float | None:
        """Test quality lost against `reference_quality`, as a share; negative when gained."""
        if self.reference_quality is None or finalist.quality is None:
            return None
        return self.reference_quality - finalist.quality

    def cheapest(self, loss: float, cost: str) -> Finalist | None:
        """The finalist of least cost among those that lose at most `loss` on the test images.

        Of equally cheap ones, the best. Those that break a constraint do not count.
        """
        good = [f for f in self.allowed if (lost := self.lost(f)) is not None
                and beyond("error", lost, loss) <= 0]  # fmt: skip
        return min(good, key=lambda f: (f.metrics[cost], self.lost(f)), default=None)

    @property
    def latency(self) -> Evaluation | None:
        """Measured latency of the uncompressed network; None when there is none."""
        return self.result.latency(Policy({}))

    def measured_baseline(self, cost: str) -> float:
        """A cost of the uncompressed network; its latency as measured, where it was."""
        if cost == LATENCY and self.latency is not None:
            return self.latency.metrics[LATENCY]
        return self.result.manifest.baseline[cost]


def _score(group: StrategyScores) -> float:
    last = group.last("useful")
    return -1.0 if last is None else last.mean


def split_sizes(workload: Mapping[str, object]) -> dict[str, int]:
    """Images by split from a manifest's `workload["splits"]`.

    Args:
        workload: `splits` maps names to a number, or to a mapping that holds `images`.
    """
    splits = workload.get("splits")
    if not isinstance(splits, Mapping):
        return {}
    sizes = {k: v.get("images") if isinstance(v, Mapping) else v for k, v in splits.items()}
    return {str(name): size for name, size in sizes.items() if isinstance(size, int)}


def _finalists(result: StudyResult, frame: pd.DataFrame) -> tuple[Finalist, ...]:
    estimates = result.usable_evaluations()
    first = frame[~frame["shared"].astype(bool)].set_index("policy_key")
    chosen = [estimates[key] for key in result.manifest.finalists if key in estimates]
    tests = [result.test_evaluation(estimate.policy) for estimate in chosen]
    order = sorted(range(len(chosen)), key=lambda i: _by_size(chosen[i], tests[i]))
    latencies = [result.latency(estimate.policy) for estimate in chosen]
    measured = [_measured_latency(e, m) for e, m in zip(chosen, latencies, strict=True)]
    beaten = _dominated_on_test(result, measured, tests)
    limits = constraints_as_measured(result)
    broken = [_broken(limits, t, m) for t, m in zip(tests, latencies, strict=True)]
    return tuple(
        Finalist(
            number=number,
            estimate=chosen[i],
            test=tests[i],
            strategy=str(first.at[chosen[i].policy.key, "strategy"]),
            seed=int(str(first.at[chosen[i].policy.key, "seed"])),
            dominated=beaten[i],
            broken=tuple(c.text for c in broken[i]),
            latency=latencies[i],
            too_slow=tuple(c.text for c in broken[i] if c.metric == LATENCY),
        )
        for number, i in enumerate(order, start=1)
    )


def _completed(network: RecoveredNetwork, told: Evaluation | None) -> RecoveredNetwork:
    """A network with the costs that only the search knew, where it was told of its policy."""
    known = {} if told is None else {n: told.metrics[n] for n in COSTS if n in told.metrics}
    return replace(network, costs={**known, **network.costs})


def _by_size(estimate: Evaluation, test: Evaluation | None) -> tuple[float, float, str]:
    error = test.minimised("error") if test is not None else math.inf
    return estimate.metrics.get("size_bytes", math.inf), error, estimate.policy.key


def _dominated_on_test(
    result: StudyResult, estimates: Sequence[Evaluation], tests: Sequence[Evaluation | None]
) -> list[bool]:
    """Which finalists are dominated: the test's error, the exact costs of the search."""
    names = result.manifest.objectives
    measured = [i for i, test in enumerate(tests) if test is not None and test.ok]
    values = np.array(
        [
            [
                tests[i].minimised("error") if n in LOSSES else estimates[i].minimised(n)  # type: ignore[union-attr]
                for n in names
            ]
            for i in measured
        ]
    ).reshape(-1, len(names))
    beaten = dict(zip(measured, dominated(values).tolist(), strict=True))
    return [beaten.get(i, False) for i in range(len(tests))]


def constraints_as_measured(result: StudyResult) -> tuple[Constraint, ...]:
    """A study's constraints as what was measured after the search is held against them.

    A share of the uncompressed network's latency was one of the predicted latency for the search.
    It is one of the measured latency here: both are off by what the prediction is.
    """
    whole = result.latency(Policy({}))
    constraints = result.manifest.constraints
    if whole is None:
        return constraints
    return tuple(
        Constraint.parse(c.text).absolute(whole.metrics) if c.metric == LATENCY and c.text else c
        for c in constraints
    )


def _broken(
    constraints: Iterable[Constraint], test: Evaluation | None, latency: Evaluation | None
) -> list[Constraint]:
    """Constraints on the error or the latency that measuring breaks; other costs are exact.

    A latency that is predicted only breaks none: the search has held it against its own limit.
    """
    if test is None or not test.ok:
        return []
    found = _measured_latency(test, latency)
    limited = ("error",) if latency is None else ("error", LATENCY)
    return [c for c in constraints if c.metric in limited and violations([found], [c]).any()]


def _measured_latency(evaluation: Evaluation, latency: Evaluation | None) -> Evaluation:
    """An evaluation whose predicted latency gives way to the measured one."""
    if latency is None:
        return evaluation
    metrics = {**evaluation.metrics, LATENCY: latency.metrics[LATENCY]}
    return replace(evaluation, metrics=metrics)


def common_reasons(frame: pd.DataFrame, most: int = 3) -> list[tuple[str, int]]:
    """The most common reasons of failed evaluations with their counts; ties by their text.

    Args:
        frame: rows of `StudyResult.to_dataframe`.
        most: how many to give.
    """
    counts = Counter(frame.loc[frame["status"] == "failed", "reason"].astype(str))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def wall_clock(frame: pd.DataFrame) -> float:
    """Seconds from the start of the first to the end of the last evaluation, pauses included."""
    if frame.empty:
        return 0.0
    finished = frame["finished"].astype(float)
    return max(0.0, float(finished.max() - (finished - frame["seconds"].astype(float)).min()))


def cost_front(qualities: NDArray[np.float64], costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """(n,) rows of the best quality at every cost: the front of these two, cheapest first.

    Args:
        qualities: (n_points,) shares; NaN where a point does not count.
        costs: (n_points,) minimised.
    """
    pair = np.column_stack([costs, 1.0 - qualities])
    pair[np.isnan(qualities)] = np.inf
    kept = np.flatnonzero(front_mask(pair))
    return kept[np.argsort(pair[kept, 0])]
