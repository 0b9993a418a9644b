"""Compression as a sequence of decisions, in the network's order.

He et al. 2018 (AMC) walk through the layers and decide a ratio for each. Here a step decides one
gene, or all genes of a layer together, one action for each kind (Ma et al. 2025, CoTrim): either
way, ratios and bits are decided in one walk. An episode can be rebuilt from a policy alone, so an
agent can learn from any evaluation, whoever asked for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.strategy import Problem
from automl_compress.space import KINDS, Indices

Array = NDArray[np.float64]


class LayerMDP:
    """States and actions of the walk through a problem's genes.

    A state holds what the genes decide about (`Problem.features`), their place in the walk, what
    the decisions so far have saved of bytes and multiply-accumulates, what the remaining ones
    can still save, and the previous action. Savings are first-order: each gene's share times how
    far its point is from the least compressed value.

    A point is (n_genes,) in the unit cube, in the space's order; an action is (action_size,).

    Args:
        problem: space and features.
        together: decide the genes of a layer in one step; a kind the layer lacks has an action
            without effect.
    """

    def __init__(self, problem: Problem, together: bool = False) -> None:
        self._space = problem.space
        features = problem.features
        if len(features) != len(self._space):
            features = _plain_features(problem)
        self._steps = _layers(problem) if together else [[g] for g in range(len(self._space))]
        self._kinds = _kinds(problem) if together else []
        self._order = np.concatenate(self._steps)
        self._step_of, self._slot_of = self._places()
        self._ends = np.cumsum([0, *map(len, self._steps)])
        shares = features[:, -2:] / np.maximum(features[:, -2:].sum(axis=0), 1e-12)
        self._shares = shares[self._order]
        self._static = self._describe(features)
        self._left = np.stack([self._shares[end:].sum(axis=0) for end in self._ends[:-1]])

    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n_genes,) the step that decides each gene, and its part of the step's action."""
        places = np.zeros((2, len(self._space)), dtype=np.int64)
        for step, genes in enumerate(self._steps):
            places[:, genes] = np.full(len(genes), step), self._slots(step)
        return places[0], places[1]

    def _describe(self, features: Array) -> Array:
        """(steps, ...) features of what each step decides, zeros for what it lacks; the place."""
        table = np.zeros((self.steps, self.action_size, features.shape[1]))
        for step in range(self.steps):
            table[step, self._slots(step)] = features[self._steps[step]]
        place = np.arange(self.steps)[:, None] / max(1, self.steps - 1)
        return np.hstack([table.reshape(self.steps, -1), place])

    @property
    def steps(self) -> int:
        """Decisions of an episode."""
        return len(self._steps)

    @property
    def action_size(self) -> int:
        """Length of an action."""
        return max(1, len(self._kinds))

    @property
    def state_size(self) -> int:
        """Length of a state."""
        return int(self._static.shape[1]) + 4 + self.action_size

    def genes(self, step: int) -> list[int]:
        """Positions in the space of the genes a step decides."""
        return self._steps[step]

    def _slots(self, step: int) -> list[int]:
        """Which parts of an action the genes of a step take."""
        if not self._kinds:
            return [0]
        return [self._kinds.index(self._space.genes[gene].kind) for gene in self._steps[step]]

    def state(self, step: int, points: Array) -> Array:
        """(..., state_size) states before a decision, of (..., n_genes) points.

        Only the genes decided before it are read.
        """
        decided = self._order[: self._ends[step]]
        saved = (1.0 - points[..., decided]) @ self._shares[: len(decided)]
        left = self._left[step]
        previous = np.ones((*points.shape[:-1], self.action_size))
        if step:
            previous[..., self._slots(step - 1)] = points[..., self._steps[step - 1]]
        static, left = (
            np.broadcast_to(row, (*saved.shape[:-1], len(row)))
            for row in (self._static[step], left)
        )
        return np.concatenate([static, saved, left, previous], axis=-1)

    def states(self, points: Array) -> Array:
        """(..., steps, state_size) all states of episodes that end in (..., n_genes) points."""
        saved = (1.0 - points[..., self._order, None]) * self._shares
        left = self._shares.sum(axis=0) - self._before(self._shares)
        rows = (*points.shape[:-1], self.steps)
        return np.concatenate(
            [
                np.broadcast_to(self._static, (*rows, self._static.shape[1])),
                self._before(saved),
                np.broadcast_to(left, (*rows, left.shape[1])),
                self._previous(points),
            ],
            axis=-1,
        )

    def _before(self, values: Array) -> Array:
        """(..., steps, n) sums of (..., n_genes, n) values, in the walk's order, before steps."""
        sums = np.cumsum(values, axis=-2)
        sums = np.concatenate([np.zeros_like(sums[..., :1, :]), sums], axis=-2)
        return np.take(sums, self._ends[:-1], axis=-2)

    def _previous(self, points: Array) -> Array:
        """(..., steps, action_size) the action before each step, ones before the first."""
        actions = np.ones((*points.shape[:-1], self.steps + 1, self.action_size))
        actions[..., self._step_of + 1, self._slot_of] = points
        return actions[..., :-1, :]

    def wanted(self, step: int, actions: Array) -> Array:
        """(..., genes of the step) what (..., action_size) actions want of each gene."""
        return actions[..., self._slots(step)]

    def execute(self, step: int, wanted: Array) -> tuple[Indices, Array]:
        """Decode what is wanted to choices.

        Args:
            step: which decision.
            wanted: (..., genes of the step) in [0, 1].

        Returns:
            The chosen indices, and the executed coordinates: the centres of the choices.
        """
        sizes = self._space.sizes[self._steps[step]]
        indices = np.clip(np.floor(wanted * sizes), 0, sizes - 1).astype(np.int64)
        return indices, (indices + 0.5) / sizes

    def actions(self, points: Array, rng: np.random.Generator) -> Array:
        """(..., steps, action_size) executed actions that lead to (..., n_genes) points.

        Parts of an action that have no effect are drawn at random, so that a critic learns that
        they have none.
        """
        shape = (*points.shape[:-1], self.steps, self.action_size)
        whole = len(self._space) == self.steps * self.action_size
        actions = np.empty(shape) if whole else rng.random(shape)
        actions[..., self._step_of, self._slot_of] = points
        return actions

    def point(self, actions: Array) -> Array:
        """(n_genes,) where (steps, action_size) actions lead."""
        point: Array = actions[self._step_of, self._slot_of]
        return point


def _layers(problem: Problem) -> list[list[int]]:
    """Positions of the genes of every layer, layers in the order of their first gene."""
    layers: dict[str, list[int]] = {}
    for position, gene in enumerate(problem.space):
        layers.setdefault(gene.target, []).append(position)
    return list(layers.values())


def _kinds(problem: Problem) -> list[str]:
    present = {gene.kind for gene in problem.space}
    return [kind for kind in KINDS if kind in present]


def _plain_features(problem: Problem) -> Array:
    """Features when nothing is known of the genes: kind, and equal shares of the costs."""
    kinds = sorted({gene.kind for gene in problem.space})
    one_hot = [[float(gene.kind == kind) for kind in kinds] for gene in problem.space]
    return np.hstack([np.array(one_hot), np.ones((len(problem.space), 2))])
