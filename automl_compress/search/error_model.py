"""Regression of the error on a policy's genes and costs, by a Gaussian process.

Whether the error's logarithm or that of the accuracy is learnt is what makes the known errors
likelier, like the weights and length scales of the process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.gaussian_process import (
    MOST,
    GaussianProcess,
    Settings,
    additive,
    joint,
    likeliest,
)
from automl_compress.space import Indices, SearchSpace

Array = NDArray[np.float64]

_OFFSET: Final = 0.005
"""Logarithms of errors count from this much below none."""
_KEPT: Final = 0.02
"""Accuracies below this are all the same ruin."""
_DOUBLING: Final = 0.3
"""How far apart the process sees networks of which one costs twice as much."""
_KERNELS: Final = (additive, joint, joint)
"""Of the genes one by one, of the genes together, and of the costs: what a gene does by itself,
what genes do to each other, and what networks of one size have in common."""


@dataclass(frozen=True)
class Link:
    """What of an error is learnt in its place.

    Args:
        forward: learnt value of each error in [0, 1]; it rises with the error.
        inverse: the error of a learnt value.
        slope: logarithm of the derivative of `forward` at each error.
    """

    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    slope: Callable[[Array], Array]


LINKS: Final = (
    # The logarithm of the error, counted from a little below none.
    Link(
        lambda errors: np.log(errors + _OFFSET),
        lambda learnt: np.exp(learnt) - _OFFSET,
        lambda errors: -np.log(errors + _OFFSET),
    ),
    # The harm: layers that each keep a share of the accuracy add up in it.
    Link(
        lambda errors: -np.log(np.maximum(_KEPT, 1.0 - errors)),
        lambda learnt: 1.0 - np.exp(-learnt),
        lambda errors: -np.log(np.maximum(_KEPT, 1.0 - errors)),
    ),
)

AS_IS: Final = Link(lambda errors: errors, lambda learnt: learnt, np.zeros_like)
"""Nothing else in its place."""


@dataclass(frozen=True)
class Known:
    """Networks that were measured.

    Args:
        space: the search space.
        indices: (n, n_genes) policies.
        costs: (n, n_costs) as shares of the baseline's.
        errors: (n,) in [0, 1].
    """

    space: SearchSpace
    indices: Indices
    costs: Array
    errors: Array

    def first(self, count: int) -> Known:
        """Those measured first."""
        return Known(self.space, self.indices[:count], self.costs[:count], self.errors[:count])

    def likeliest(self, links: Sequence[Link] = LINKS) -> tuple[Link, Settings]:
        """The link, one of several, and the settings under which the errors are likeliest."""
        inputs = _inputs(self.space, self.indices, self.costs)
        fits = [(link, *likeliest(_KERNELS, inputs, link.forward(self.errors))) for link in links]
        link, _, settings = max(
            fits, key=lambda fit: fit[1] + fit[0].slope(self.errors[-MOST:]).mean()
        )
        return link, settings


class ErrorModel:
    """What the errors of policies may be, given those of others.

    Args:
        known: what is given; two networks at least.
        link: what of the error is learnt.
        settings: of the process.
        earlier: a model by the same link and settings, of the first of these networks; from it
            this one is learnt faster.
    """

    def __init__(
        self, known: Known, link: Link, settings: Settings, earlier: ErrorModel | None = None
    ) -> None:
        self._space = known.space
        self._link = link
        inputs = _inputs(known.space, known.indices, known.costs)
        learnt, process = link.forward(known.errors), None if earlier is None else earlier._process
        self._process: GaussianProcess = GaussianProcess(
            _KERNELS, inputs, learnt, settings, process
        )

    def predict(self, indices: Indices, costs: Array, nodes: Array) -> tuple[Array, Array]:
        """Expected errors, and errors as they may be measured; they may leave [0, 1].

        A measured error scatters around the noiseless one by what the process takes for noise.

        Args:
            indices: (m, n_genes).
            costs: (m, n_costs) as shares of the baseline's.
            nodes: (n_nodes,) standard deviations from the mean of what is learnt.

        Returns:
            (m,) and (m, n_nodes).
        """
        mean, deviation = self._process.predict(_inputs(self._space, indices, costs))
        measured = np.sqrt(deviation**2 + self._process.noise)
        learnt = mean[:, None] + measured[:, None] * nodes
        return self._link.inverse(mean), self._link.inverse(learnt)


def _inputs(space: SearchSpace, indices: Indices, costs: Array) -> tuple[Array, Array, Array]:
    """Genes in the unit cube, twice, and costs in doublings, scaled by `_DOUBLING`."""
    genes = coordinates(space)[np.arange(indices.shape[1]), indices]
    return genes, genes, _DOUBLING * np.log2(np.maximum(costs, 1e-6))


def coordinates(space: SearchSpace) -> Array:
    """(n_genes, most values) where the process sees each value: 0 most, 1 least compressed.

    Channels and bits are seen as logarithms, so that halving them is one way at every size. A gene
    of one value lies at 1.
    """
    table = np.ones((len(space), int(space.sizes.max())))
    for row, gene in zip(table, space, strict=True):
        values = np.array(gene.values, dtype=np.float64)
        if gene.kind != "kernel_sparsity":
            values = np.log(values)
        if len(gene) > 1:
            row[: len(gene)] = (values - values[0]) / (values[-1] - values[0])
    return table
