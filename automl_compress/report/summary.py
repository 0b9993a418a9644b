"""What a report states, computed once from a study's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import pandas as pd

from automl_compress.evaluate import (
    COSTS,
    LATENCY,
    QUALITIES,
    USEFUL_LOSS,
    Evaluation,
    beyond,
    quality_name,
    quality_of,
)
from automl_compress.ledger import FrontPoint, StudyResult
from automl_compress.report.audit import Audit, read_audit
from automl_compress.report.finalists import Finalist, Optimism, find_finalists
from automl_compress.report.recovered import RecoveredNetwork, recovered_networks
from automl_compress.report.scores import contestant_scores
from automl_compress.report.statistics import quality_interval
from automl_compress.report.strategy_scores import StrategyScores, strategy_scores
from automl_compress.report.ties import levelled
from automl_compress.space import Policy

HEADLINE_LOSSES: Final = (0.005, 0.01, 0.02)
"""Losses of test quality that the headline answers for."""


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
    def has_ranges(self) -> bool:
        """Whether any strategy ran with several seeds, so that means and ranges are shown."""
        return any(len(group.members) > 1 for group in self.strategies)

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
        return find_finalists(self.result, self.frame)

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
    def reference(self) -> str:
        """What the network is called that losses and costs count against."""
        return "uncompressed network" if self.given_quality is None else "given network"

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


def _completed(network: RecoveredNetwork, told: Evaluation | None) -> RecoveredNetwork:
    """A network with the costs that only the search knew, where it was told of its policy."""
    known = {} if told is None else {n: told.metrics[n] for n in COSTS if n in told.metrics}
    return replace(network, costs={**known, **network.costs})
