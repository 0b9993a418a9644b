"""Costs of policies, learnt from those of others."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.space import Indices, SearchSpace

Array = NDArray[np.float64]

_MOST: Final = 2_000
"""Policies it learns from: the first."""
_TRIED_ON: Final = 500
"""Policies that inputs and ridges are chosen on: the first."""
_DEGREES: Final = (2, 3)
_CONSTANT: Final = 0.3
_RIDGES: Final = (1e-8, 1e-6, 1e-4, 1e-2)
"""Ridges tried: the first for costs that are computed, others for costs that scatter."""
_LEAST: Final = 0.01
"""Errors are relative to a cost, or to this share of the mean cost: costs may be 0."""


class CostRegression:
    """Costs as polynomials of the genes' values, by kernel ridge regression.

    A cost is a sum over layers of products of the channels before it, those it keeps, and its
    bits: a polynomial of degree 2 or 3 of what each gene keeps. Where values are ranks of words,
    it is one of which word it is, too. What is fitted is the relative error. Inputs, degree and
    ridge are, cost by cost, those of least mean relative error when each policy is left out once
    (Allen 1974, PRESS; closed form: Rasmussen and Williams 2006, equation 5.12).

    Args:
        space: the search space.
        indices: (n, n_genes), in random order: the first count.
        costs: (n, n_costs), 0 or more, in any unit.
    """

    def __init__(self, space: SearchSpace, indices: Indices, costs: Array) -> None:
        self._space = space
        indices, costs = indices[:_MOST], costs[:_MOST]
        self._least = costs.min(axis=0) / 2.0
        self._inputs = {words: _inputs(space, indices, words) for words in (False, True)}
        kernels = {
            (words, degree): _kernel(inputs, inputs, degree)
            for words, inputs in self._inputs.items()
            for degree in _DEGREES
        }
        self._fits = []
        for column in costs.T:
            scale = np.maximum(column, _LEAST * column.mean() or 1.0)
            form, ridge = _chosen(kernels, column, scale)
            system = _relative(kernels[form], scale, ridge)
            self._fits.append((form, np.linalg.solve(system, column / scale) / scale))

    def predict(self, indices: Indices) -> Array:
        """(m, n_costs) costs of (m, n_genes) indices; never below half the least known."""
        inputs = {words: _inputs(self._space, indices, words) for words in self._inputs}
        predicted = [
            _kernel(inputs[words], self._inputs[words], degree) @ weights
            for (words, degree), weights in self._fits
        ]
        return np.asarray(np.maximum(self._least, np.stack(predicted, axis=1)), np.float64)


def _chosen(
    kernels: Mapping[tuple[bool, int], Array], column: Array, scale: Array
) -> tuple[tuple[bool, int], float]:
    """The key of a kernel, and the ridge, of least error when each policy is left out once."""
    count = min(_TRIED_ON, len(column))

    def error(fit: tuple[tuple[bool, int], float]) -> float:
        form, ridge = fit
        inverse = np.linalg.inv(_relative(kernels[form][:count, :count], scale[:count], ridge))
        left_out = inverse @ (column[:count] / scale[:count]) / np.diag(inverse)
        return float(np.abs(left_out).mean())

    return min(itertools.product(kernels, _RIDGES), key=error)


def _relative(kernel: Array, scale: Array, ridge: float) -> Array:
    """(n, n) system whose solution fits relative costs, with its ridge."""
    relative = kernel / scale[:, None] / scale
    system: Array = relative + ridge * np.trace(relative) / len(scale) * np.eye(len(scale))
    return system


def _kernel(one: Array, other: Array, degree: int) -> Array:
    """(m, n) kernel of polynomials."""
    kernel: Array = ((_CONSTANT + one @ other.T) / (_CONSTANT + 1.0)) ** degree
    return kernel


def _inputs(space: SearchSpace, indices: Indices, words: bool) -> Array:
    """(m, n_inputs) what each gene keeps; with words also, which value it has, 0 or 1."""
    kept = _kept_shares(space)[np.arange(len(space)), indices]
    if words:
        which = [np.eye(size)[column] for size, column in zip(space.sizes, indices.T, strict=True)]
        kept = np.hstack([kept, *which]) / np.sqrt(2.0)
    scaled: Array = kept / np.sqrt(len(space))
    return scaled


def _kept_shares(space: SearchSpace) -> Array:
    """(n_genes, most values) share of channels, bits or kernels that each value keeps."""
    table = np.ones((len(space), int(space.sizes.max())))
    for row, gene in zip(table, space, strict=True):
        values = np.array(gene.values, dtype=np.float64)
        sparse = gene.kind == "kernel_sparsity"
        row[: len(gene)] = 1.0 - values if sparse else values / values[-1]
    return table
