"""Recorded evaluations of a space, made to answer for every policy of it.

A study's ledger, or a table, may hold a few of a space's policies, and a strategy asks for others.
So what it would be told is predicted by regressions over what is recorded: costs by polynomials
(`cost_regression`), the error by a Gaussian process or by boosted trees (`error_regressions`),
whichever predicts better in cross-validation. A race on it is a simulation, and says as much as the
regressions are good: `Quality` states what cross-validation finds.

Recorded policies are predicted like all others, for what was measured once has its noise: were they
answered as recorded, the best of them would be the luckiest, and a race would be won by who finds
the recorded ones. Regressions over single measurements can be nearer to the mean of many than a
measurement is (Zela et al. 2022, Surrogate NAS Benchmarks). How much noise there is, they find
themselves: where there is none, they give recorded policies back.

Two limits are not cured by that:

- Far from all that is recorded a regression knows nothing. A policy that is farther from the
  nearest recorded one than recorded ones are from each other has no answer: it fails. So does one
  whose nearest recorded policy failed.
- Strategies that learn by the same kind of regression are favoured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.engine.cost_regression import CostRegression
from automl_compress.engine.surrogate_quality import PROCESS, better
from automl_compress.evaluate import Constraint, Evaluation, references_around, useful_baseline
from automl_compress.evaluate.recorded import Simulation, check_met, worst_scale
from automl_compress.pareto import Reference
from automl_compress.search.error_model import Known, coordinates
from automl_compress.space import Indices, Policy, SearchSpace

Array = NDArray[np.float64]

LEAST: Final = 50
"""Evaluations that worked, of different policies, that regressions need."""
REACH: Final = 0.99
"""Share of the recorded policies whose nearest neighbour tells how far answers reach."""
_ASKED: Final = 1_000
"""Policies, at most, whose nearest neighbours are looked for."""
_AT_ONCE: Final = 50
"""Policies whose nearest neighbours are looked for at once."""
_SAME: Final = 1e-6
"""Distances that differ by less are the same."""


@dataclass(frozen=True)
class Recordings:
    """What is recorded of a space.

    Args:
        source: what it is from, such as `ledger`, for messages.
        space: the search space.
        judged_by: the quality, see `QUALITIES`.
        indices: (n, n_genes) different policies that worked, `LEAST` at least.
        errors: (n,) in [0, 1].
        costs: (n, n_costs), 0 or more.
        names: of the costs.
        failed: (n_failed, n_genes) policies that failed.
        baseline: minimised metrics of the uncompressed network; where it is None, those of the
            least compressed policy are predicted.
        worst_counts: whether the hypervolume that counts ends at the worst that is recorded, as
            for tables; otherwise the useful one counts, as in a study.
        sparsity_loss: as `Manifest.sparsity_loss` of a study.
    """

    source: str
    space: SearchSpace
    judged_by: str
    indices: Indices
    errors: Array
    costs: Array
    names: tuple[str, ...]
    failed: Indices
    baseline: Mapping[str, float] | None
    worst_counts: bool
    sparsity_loss: float = 0.0

    def mixed(self) -> Recordings:
        """The same in an order that depends on nothing but the policies, and is random."""
        order = np.lexsort(self.indices.T)
        order = order[np.random.default_rng(0).permutation(len(order))]
        changed = {name: getattr(self, name)[order] for name in ("indices", "errors", "costs")}
        return replace(self, **changed)

    def digest(self) -> str:
        """Hash of all that decides answers."""
        digest = hashlib.sha256(repr((self.space.to_dict(), self.names, self.baseline)).encode())
        failed = self.failed[np.lexsort(self.failed.T)]
        for part in (self.indices, self.errors, self.costs, failed):
            digest.update(np.ascontiguousarray(part).tobytes())
        return digest.hexdigest()


class Surrogate(Simulation):
    """Predicts every policy of a space from those that are recorded. Without noise.

    Args:
        recordings: what it learns from.
        note: what else is to be said of the answers.
    """

    def __init__(self, recordings: Recordings, note: str = "") -> None:
        self._recordings = recordings = recordings.mixed()
        self.space = recordings.space
        self._names = recordings.names
        counted = "Hypervolume up to the worst that is recorded"
        self.scored_by = (
            f"{counted if recordings.worst_counts else 'Useful hypervolume'}, simulated on a "
            f"surrogate of a {recordings.source}"
        )
        self._costs = CostRegression(self.space, recordings.indices, recordings.costs)
        self._full = self._full_costs()
        known = Known(
            self.space, recordings.indices, recordings.costs / self._full, recordings.errors
        )
        self.quality, regression = better(known, self._names)
        self._errors = regression(known)
        places = self._places(recordings.indices)
        self._known = _Neighbours(places)
        self._failed = _Neighbours(self._places(recordings.failed))
        apart = self._known.distances(places[:_ASKED], skipped=1)
        self._reach = float(np.quantile(apart, REACH))
        self._baseline = self._measured_against()
        self.note = ". ".join(self._notes(note))
        self._cached: dict[Policy, dict[str, float]] = {}
        self._identity = "surrogate-" + recordings.digest()[:16]

    def _full_costs(self) -> Array:
        """(n_costs,) of the least compressed policy: nothing that is recorded costs more."""
        if (baseline := self._recordings.baseline) is not None:
            return np.array([baseline[name] for name in self._names])
        predicted = self._costs.predict((self.space.sizes - 1)[None])[0]
        full: Array = np.maximum(predicted, self._recordings.costs.max(axis=0))
        return np.where(full > 0, full, 1.0)

    def _measured_against(self) -> dict[str, float]:
        if (baseline := self._recordings.baseline) is not None:
            error = baseline["error"]
        else:
            shares = np.ones((1, len(self._names)))
            predicted = self._errors((self.space.sizes - 1)[None], shares)
            error = min(float(predicted[0]), float(self._recordings.errors.max()))
        return {"error": error, **dict(zip(self._names, self._full.tolist(), strict=True))}

    def _notes(self, note: str) -> Iterator[str]:
        source = self._recordings.source
        yield f"Simulated on a surrogate of the {source}: {self.quality}"
        if note:
            yield note
        if self._recordings.baseline is None:
            values = ", ".join(f"{name} {value:.4g}" for name, value in self._baseline.items())
            yield f"The least compressed policy is not recorded, but predicted: {values}"
        failed = (
            ", and so do those nearest to one that failed" if len(self._recordings.failed) else ""
        )
        yield (
            f"Policies farther than {self._reach:.3f} (root mean square over genes) from all "
            f"recorded ones fail{failed}"
        )
        if self.quality.regression == PROCESS:
            yield "Strategies that learn by the same kind of regression are favoured"

    @property
    def judged_by(self) -> str:
        """As what is recorded is."""
        return self._recordings.judged_by

    @property
    def identity(self) -> str:
        """Hash of all that is recorded."""
        return self._identity

    @property
    def baseline(self) -> dict[str, float]:
        """Minimised metrics of the uncompressed network."""
        return dict(self._baseline)

    @property
    def recorded(self) -> tuple[str, ...]:
        """The error and the costs."""
        return ("error", *self._names)

    @property
    def counted_error(self) -> float | None:
        """The worst error that is recorded, where the hypervolume ends there."""
        return float(self._recordings.errors.max()) if self._recordings.worst_counts else None

    def costs(self, policy: Policy) -> dict[str, float]:
        """Predicted costs."""
        if policy not in self._cached:
            costs = self._costs.predict(self.space.encode(policy)[None])[0]
            self._cached[policy] = dict(zip(self._names, costs.tolist(), strict=True))
        return self._cached[policy]

    def estimate(self, policy: Policy) -> Evaluation:
        """Predicted quality and costs; failed where nothing near is recorded, or what is failed."""
        indices = self.space.encode(policy)[None]
        if reason := self._unanswered(self._places(indices)):
            return Evaluation.failed(policy, self._identity, reason)
        costs = self.costs(policy)
        shares = np.array([list(costs.values())]) / self._full
        error = float(self._errors(indices, shares)[0])
        return Evaluation(policy, self._identity, {self.judged_by: 1.0 - error, **costs})

    def scale(
        self, objectives: Sequence[str], constraints: Sequence[Constraint]
    ) -> tuple[Reference, float]:
        """The worst that is recorded, or a study's reference; the best front is not known.

        A study's is around what is recorded, where constraints leave the uncompressed network out.
        """
        found = self._recordings
        values = dict(zip(self.recorded, [found.errors, *found.costs.T], strict=True))
        limits = [(limit, values[limit.metric]) for limit in constraints]
        met = check_met(limits, len(found.errors), found.source)
        columns = np.stack([values[name] for name in objectives], axis=1)
        if not found.worst_counts:
            known = np.where(met[:, None], columns, np.inf)
            start = useful_baseline(self.baseline, found.sparsity_loss)
            return references_around(objectives, start, constraints, known)[1], 1.0
        return worst_scale(columns, met, objectives)[0], 1.0

    def _unanswered(self, place: Array) -> str:
        """Why a (1, n_genes) place has no answer; empty where it has one."""
        distance = self._known.distances(place)[0]
        if self._failed.distances(place)[0] + _SAME < distance:
            return f"the nearest policy of the {self._recordings.source} failed"
        if distance > self._reach + _SAME:
            return f"{distance:.3f} from all recorded policies, beyond {self._reach:.3f}"
        return ""

    def _places(self, indices: Indices) -> Array:
        """(m, n_genes) coordinates."""
        return coordinates(self.space)[np.arange(len(self.space)), indices]


class _Neighbours:
    """How far places are from the nearest of some points, as root mean square over genes.

    Args:
        points: (n, n_genes), n may be 0.
    """

    def __init__(self, points: Array) -> None:
        self._points = points
        self._squares = (points**2).mean(axis=1)

    def distances(self, places: Array, skipped: int = 0) -> Array:
        """(m,) distances of (m, n_genes) places; inf where there are no points.

        Args:
            places: where.
            skipped: of the nearest: 1 for places that are among the points.
        """
        if len(self._points) <= skipped:
            return np.full(len(places), np.inf)
        parts = [places[at : at + _AT_ONCE] for at in range(0, len(places), _AT_ONCE)]
        squares = np.concatenate([self._squared(part, skipped) for part in parts])
        distances: Array = np.sqrt(np.maximum(0.0, squares))
        return distances

    def _squared(self, places: Array, skipped: int) -> Array:
        mixed = places @ self._points.T / self._points.shape[1]
        squares = (places**2).mean(axis=1)[:, None] + self._squares - 2.0 * mixed
        nearest: Array = np.partition(squares, skipped, axis=1)[:, skipped]
        return nearest
