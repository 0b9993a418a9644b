"""A multiple-choice knapsack over measured per-gene harms: the baseline learners must beat.

HAWQ-V2 (Dong et al. 2020) and ZeroQ (Cai et al. 2020) measure what each layer loses by itself and
find the allocations that lose least in sum for every size. Here:

1. Probes measure per-gene harms. A probe starts from the least compressed network that meets the
   constraints and cuts the genes whose strength is least known, until its predicted harm can be
   told from noise: one gene at first, several once they are known to be harmless. So with many
   genes the budget is not spent on a table of single changes, most of them within the noise.
2. `additive_model` gives all strengths a posterior, which every further evaluation, whoever
   asked for it, sharpens.
3. A front is filled greedily by the ratio of harm to cost saved (Sinha and Zoltners 1979, the
   convex relaxation of the multiple-choice knapsack), one chain of policies from the least to the
   most compressed for each weighting of the costs. Savings are exact for single changes, but
   costs do not add up, because neighbours' channels multiply: they are taken from the nearest of
   several uniformly compressed networks. Chosen policies are costed exactly.
4. Of a chain, the policy of largest predicted hypervolume improvement is evaluated. Chains after
   an ask's first use strengths drawn from the posterior (Thompson 1933).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.evaluate import Evaluation
from automl_compress.search.additive_model import NOISE, NOISES, AdditiveModel, Shape, Strengths
from automl_compress.search.improvement import CostCells
from automl_compress.search.priors import draw_new, mildest, scaled_indices
from automl_compress.search.record import Record, milestone
from automl_compress.search.strategy import Problem, Seen, State, Strategy
from automl_compress.space import Indices, Policy

Array = NDArray[np.float64]

UNIFORM: Final = (1.0, 0.75, 0.5, 0.25)
"""Mildness of the first policies, as shares of the mildest allowed: they tell how harm grows."""
ANCHORS: Final = (0.0, 0.35, 0.7, 1.0)
"""Mildness of the networks at which savings are computed."""
PROBE_HARM: Final = 0.05
"""Predicted harm of a probe: a loss of some 5 % of the accuracy stands out of the noise."""
PROBES: Final = 0.4
"""Share of asked policies that are probes, while genes are unprobed."""
COSTED: Final = 32
"""Policies of a chain whose exact costs are computed."""


class Knapsack(Strategy):
    """Per-gene harms, a posterior of their strengths, and the fronts they predict.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        batch: how many policies it likes to be asked for at once.
        pairs: let genes that decide about one layer or about neighbours harm each other.
    """

    def __init__(self, problem: Problem, seed: int, batch: int = 5, pairs: bool = True) -> None:
        super().__init__(problem, seed)
        self.batch = batch
        self._with_pairs = pairs
        self._seen = Seen()
        self._record = Record(problem)
        self._mildest = mildest(problem)
        self._start = deque(self._mildest * share for share in UNIFORM)
        self._probed = np.zeros(len(problem.space), dtype=np.int64)
        self._owed = 0.0
        self._chosen_on = -1  # rows of the record that the shape is of
        self._shape: Shape | None = None

    def ask(self, count: int) -> list[Policy]:
        """Uniform policies, then probes and points of fronts; fewer when the space is exhausted."""
        asked: list[Policy] = []
        model = self._model()
        cells = self._record.cells() if len(self._record) else None
        while len(asked) < count:
            if self._start or cells is None:
                policy = self._first()
            elif self._probe_is_due():
                policy = self._probe(model)
            else:
                strengths = model.draw(self.rng) if asked else model.mean()
                policy, cells = self._point(strengths, model.mean(), cells)
            if policy is None:
                break
            asked.append(policy)
        return asked

    def _first(self) -> Policy | None:
        """A uniformly compressed policy; draws around one once these are used up."""
        space = self.problem.space
        if self._start:
            point = np.full(len(space), self._start.popleft())
            return self._new(space.from_unit(point))
        return self._drawn()

    def _drawn(self) -> Policy | None:
        space = self.problem.space
        mildness = self._mildest * float(self.rng.random())
        return draw_new(
            self.problem, self._seen, lambda: scaled_indices(space, self.rng, mildness), self.rng
        )

    def _new(self, indices: Indices) -> Policy | None:
        """A policy of these indices, or one drawn when it was tried or costs too much."""
        policy = self.problem.space.decode(indices)
        if policy in self._seen or self.problem.cost_violation(policy):
            return self._drawn()
        self._seen.add(policy)
        return policy

    # Harms.

    def _model(self) -> AdditiveModel:
        """The posterior given everything that worked; its shape is that of a milestone."""
        worked = self._record.worked
        kept = 1.0 - self._record.errors[worked]
        whole = max(1.0 - self.problem.baseline[self.problem.loss], 1e-3)
        harms = np.log(whole / np.maximum(kept, 0.02 * whole))
        indices, space = self._record.indices[worked], self.problem.space
        if self._chosen_on != (rows := milestone(len(harms))):
            noises = NOISES if self._record.bound else (NOISE,)
            early = indices[:rows], harms[:rows]
            first = AdditiveModel(space, *early, self._with_pairs, noises=noises)
            self._chosen_on, self._shape = rows, first.shape
        return AdditiveModel(space, indices, harms, self._with_pairs, self._shape)

    def _probe_is_due(self) -> bool:
        """Whether the next policy is a probe: a fixed share, while genes are unprobed."""
        if (self._probed[self.problem.space.sizes > 1] > 0).all():
            return False
        self._owed += PROBES
        if self._owed < 1.0:
            return False
        self._owed -= 1.0
        return True

    def _probe(self, model: AdditiveModel) -> Policy | None:
        """The unprobed genes of least known strength cut as hard as possible, a few at once."""
        space = self.problem.space
        indices = space.from_unit(np.full(len(space), self._mildest))
        strengths, deviations = model.mean(), model.deviations
        start = strengths.harm(indices)
        waiting = np.flatnonzero((self._probed == 0) & (space.sizes > 1))
        for gene in waiting[np.argsort(-deviations[waiting], kind="stable")]:
            cut = indices.copy()
            cut[gene] = 0
            if self._probed[waiting].any() and strengths.harm(cut) - start > PROBE_HARM:
                break
            indices = cut
            self._probed[gene] += 1
        return self._new(indices)

    # Fronts.

    def _point(
        self, strengths: Strengths, expected: Strengths, cells: CostCells
    ) -> tuple[Policy | None, CostCells]:
        """The point of a chain that promises most, and what is believed once it is tried."""
        chain = self._chain(strengths, self.rng.dirichlet(np.full(len(self._record.names), 0.5)))
        indices = chain[np.unique(np.linspace(0, len(chain) - 1, COSTED).round().astype(int))]
        policies = [self.problem.space.decode(row) for row in indices]
        new = [
            place
            for place, policy in enumerate(policies)
            if policy not in self._seen and not self.problem.cost_violation(policy)
        ]
        if not new:
            return self._drawn(), cells
        kept = 1.0 - self.problem.baseline[self.problem.loss]
        errors = 1.0 - kept * np.exp([-expected.harm(indices[place]) for place in new])
        costs = self._record.shares(policies[place] for place in new)
        gains = cells.gains(costs, errors)
        best = int(np.argmax(gains)) if gains.max() > 0 else int(self.rng.integers(len(new)))
        self._seen.add(policies[new[best]])
        return policies[new[best]], cells.joined(costs[best], float(errors[best]))

    def _chain(self, strengths: Strengths, weights: Array) -> Indices:
        """(n_steps, n_genes) policies from the least to the most compressed.

        Args:
            strengths: of the harms.
            weights: (n_costs,) how much saving the same share of each cost counts.
        """
        genes = np.arange(len(self.problem.space))
        levels = self._costs @ weights  # (n_anchors, n_genes, most values)
        below = np.arange(levels.shape[2])
        together = max(1, len(genes) // COSTED)  # genes a step cuts; fewer are not told apart
        indices = self.problem.space.sizes - 1
        chain = [indices]
        while indices.any():
            mildness = self.problem.space.to_unit(indices).mean()
            level = levels[int(np.argmin(np.abs(np.array(ANCHORS) - mildness)))]
            saved = level[genes, indices][:, None] - level
            curves = strengths.curves
            harm = strengths.slopes(indices)[:, None] * (curves - curves[genes, indices][:, None])
            ratio = np.where(
                below < indices[:, None], (harm + 1e-9) / np.maximum(saved, 1e-9), np.inf
            )
            values = ratio.argmin(axis=1)
            moved = np.argsort(ratio[genes, values], kind="stable")[:together]
            moved = moved[indices[moved] > 0]
            indices = indices.copy()
            indices[moved] = values[moved]
            chain.append(indices)
        return np.stack(chain)

    @cached_property
    def _costs(self) -> Array:
        """(n_anchors, n_genes, most values, n_costs) with one gene changed, as shares of none."""
        space = self.problem.space
        shape = (len(ANCHORS), len(space), int(space.sizes.max()), len(self._record.names))
        found = np.zeros(shape)
        for anchor, mildness in enumerate(ANCHORS):
            base = space.from_unit(np.full(len(space), mildness))
            for gene, size in enumerate(space.sizes):
                rows = np.repeat(base[None], size, axis=0)
                rows[:, gene] = np.arange(size)
                found[anchor, gene, :size] = self._record.shares(space.decode(row) for row in rows)
            found[anchor] /= np.maximum(self._record.shares([space.decode(base)])[0], 1e-12)
        return found

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Add what was evaluated, asked for or not."""
        for evaluation in evaluations:
            self._seen.add(evaluation.policy)
        self._record.add(evaluations)

    def skip_start(self) -> None:
        """Go on from what is told in place of uniform policies."""
        self._start.clear()

    def state_dict(self) -> State:
        """Generator, start to come, what was probed, told and seen."""
        return {
            "rng": self.rng.bit_generator.state,
            "seen": self._seen.state_dict(),
            "start": list(self._start),
            "probed": self._probed.copy(),
            "owed": self._owed,
            "record": self._record.state_dict(),
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self.rng.bit_generator.state = state["rng"]
        self._seen.load_state_dict(state["seen"])
        self._start = deque(state["start"])
        self._probed = state["probed"].copy()
        self._owed = state["owed"]
        self._record.load_state_dict(state["record"])
        self._chosen_on = -1
