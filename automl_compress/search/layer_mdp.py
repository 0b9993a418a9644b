"""Compression as a sequence of decisions: one gene after another, in the network's order.

He et al. 2018 (AMC) walk through the layers and decide a ratio for each; here every gene is a
step, so that ratios and bits are decided together. An episode can be rebuilt from a policy
alone, so an agent can learn from any evaluation, whoever asked for it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.strategy import Problem
from automl_compress.space import Indices

Array = NDArray[np.float64]


class LayerMDP:
    """States and actions of the walk through a problem's genes.

    A state holds what the gene decides about (`Problem.features`), its place in the walk, what
    the decisions so far have saved of bytes and multiply-accumulates, what the remaining ones
    can still save, and the previous action. Savings are first-order: each gene's share times how
    far its action is from the least compressed value.

    Args:
        problem: space and features.
    """

    def __init__(self, problem: Problem) -> None:
        self._space = problem.space
        features = problem.features
        count = len(self._space)
        if len(features) != count:
            features = _plain_features(problem)
        self._static = np.hstack([features, np.arange(count)[:, None] / max(1, count - 1)])
        self._shares = features[:, -2:] / np.maximum(features[:, -2:].sum(axis=0), 1e-12)

    @property
    def steps(self) -> int:
        """Decisions of an episode."""
        return len(self._space)

    @property
    def state_size(self) -> int:
        """Length of a state."""
        return int(self._static.shape[1]) + 2 * int(self._shares.shape[1]) + 1

    def state(self, step: int, actions: Array) -> Array:
        """State before a decision.

        Args:
            step: which decision, from 0.
            actions: (..., step) actions decided so far, in [0, 1].

        Returns:
            (..., state_size).
        """
        leading = actions.shape[:-1]
        saved = (1.0 - actions) @ self._shares[:step]
        left = np.broadcast_to(self._shares[step:].sum(axis=0), (*leading, 2))
        previous = actions[..., -1:] if step else np.ones((*leading, 1))
        static = np.broadcast_to(self._static[step], (*leading, self._static.shape[1]))
        return np.concatenate([static, saved, left, previous], axis=-1)

    def states(self, actions: Array) -> Array:
        """(steps, state_size) all states of an episode with (steps,) actions."""
        saved = np.vstack([np.zeros(2), np.cumsum((1.0 - actions)[:, None] * self._shares, axis=0)])
        left = self._shares.sum(axis=0) - np.vstack([np.zeros(2), np.cumsum(self._shares, axis=0)])
        previous = np.concatenate([[1.0], actions[:-1]])[:, None]
        return np.hstack([self._static, saved[:-1], left[:-1], previous])

    def execute(self, step: int, actions: Array) -> tuple[Indices, Array]:
        """Decode actions to choices.

        Args:
            step: which decision.
            actions: (...) wanted actions in [0, 1].

        Returns:
            The chosen indices, and the executed actions: the centres of the choices.
        """
        size = int(self._space.sizes[step])
        indices = np.clip(np.floor(actions * size), 0, size - 1).astype(np.int64)
        return indices, (indices + 0.5) / size

    def actions(self, indices: Indices) -> Array:
        """(steps,) executed actions of a policy."""
        return self._space.to_unit(indices)


def _plain_features(problem: Problem) -> Array:
    """Features when nothing is known of the genes: kind, and equal shares of the costs."""
    kinds = sorted({gene.kind for gene in problem.space})
    one_hot = [[float(gene.kind == kind) for kind in kinds] for gene in problem.space]
    return np.hstack([np.array(one_hot), np.ones((len(problem.space), 2))])
