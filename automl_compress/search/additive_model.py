"""Error as a sum over genes: the table that a knapsack is filled from.

HAWQ-V2 (Dong et al. 2020) and ZeroQ (Cai et al. 2020) take the harm of a network as the sum of
its layers' harms, each by itself, and find the front of such sums by dynamic programming. Here
the summed quantity is log(baseline accuracy / accuracy), so that harms which each keep a share of
the accuracy add up. What one gene does is a strength times a curve:

- channels and kernels: (share removed) ** p, p one of `EXPONENTS`;
- bits: base ** -bits, base one of `BASES` (4 for the squared error of rounding, HAWQ-V2).

Each kind's curve is chosen by what leaves least unexplained; the strengths have a Gaussian
posterior around their kind's mean. Pairs, neighbouring genes of one kind and the genes that
decide about one layer, have strengths of their own, expected to be small.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.space import Gene, Indices, SearchSpace

Array = NDArray[np.float64]

EXPONENTS: Final = (1.0, 2.0, 3.0)
BASES: Final = (2.0, 4.0)
NOISE: Final = 0.3
"""Share of a harm that the sum is taken not to explain: harms add up only roughly."""
NOISES: Final = (NOISE, 0.1, 0.03)
"""Such shares, of which the likeliest is taken where everything known is harmed much: 0.3 of that
would hide what single genes do. Elsewhere the likeliest trusts the sum too much (on the NATS-Bench
size space it costs 0.003 of the hypervolume)."""
_LEAST_NOISE: Final = 0.015  # of a harm that is none
_SPREAD: Final = 1.0  # prior deviation of a strength, as a share of its kind's mean
_PAIRED: Final = 0.25  # the same for pairs
_FLOOR: Final = 0.03  # least strength, as a share of its kind's mean


@dataclass(frozen=True, eq=False)
class Shape:
    """What harms look like but for their strengths.

    Args:
        curves: (n_genes, most values) harm of each value per unit of strength; 0 at the least
            compressed.
        noise: share of a harm that the sum does not explain.
    """

    curves: Array
    noise: float


@dataclass(frozen=True)
class Strengths:
    """One set of strengths.

    Args:
        curves: (n_genes, most values) harm of each value per unit of strength; 0 at the least
            compressed.
        single: (n_genes,) each above 0.
        pairs: (n_genes, n_genes) symmetric, at least 0.
    """

    curves: Array
    single: Array
    pairs: Array

    def slopes(self, indices: Indices) -> Array:
        """(n_genes,) harm per unit of each gene's curve, the others as given."""
        slopes: Array = self.single + self.pairs @ self._harms(indices)
        return slopes

    def harm(self, indices: Indices) -> float:
        """Harm of (n_genes,) indices: log(baseline accuracy / accuracy)."""
        harms = self._harms(indices)
        return float(harms @ (self.single + 0.5 * self.pairs @ harms))

    def _harms(self, indices: Indices) -> Array:
        return self.curves[np.arange(len(indices)), indices]


class AdditiveModel:
    """Posterior of the strengths, given measured harms.

    Args:
        space: the search space.
        indices: (n, n_genes) policies.
        harms: (n,) log(baseline accuracy / accuracy) of each.
        pairs: give pairs strengths of their own.
        shape: of the harms; None chooses the likeliest.
        noises: shares of harms that may not be explained, to choose from.
    """

    def __init__(
        self,
        space: SearchSpace,
        indices: Indices,
        harms: Array,
        pairs: bool = True,
        shape: Shape | None = None,
        noises: Sequence[float] = (NOISE,),
    ) -> None:
        self._kinds = np.array([gene.kind for gene in space])
        self._pairs = _pairs(space) if pairs else np.zeros((0, 2), dtype=np.int64)
        tried = [shape] if shape else _shapes(space, sorted(set(self._kinds)), noises)
        fits = [self._fit(shape, indices, harms) for shape in tried]
        _, self.shape, self._mean, self._root, self._floor = min(fits, key=lambda fit: fit[0])

    def _fit(
        self, shape: Shape, indices: Indices, harms: Array
    ) -> tuple[float, Shape, Array, Array, Array]:
        """Unexplained harm, the shape, posterior mean and root of its covariance, floor."""
        curves = shape.curves
        weights = 1.0 / (_LEAST_NOISE + shape.noise * np.maximum(0.0, harms)) ** 2
        single = curves[np.arange(curves.shape[0]), indices]
        pairs = single[:, self._pairs[:, 0]] * single[:, self._pairs[:, 1]]
        design = np.hstack([single, pairs])
        centre = self._centre(single, harms, weights)
        means = np.concatenate([centre, np.zeros(len(self._pairs))])
        paired = np.sqrt(centre[self._pairs[:, 0]] * centre[self._pairs[:, 1]])
        spread = np.concatenate([_SPREAD * centre, _PAIRED * paired])
        scaled = design * spread
        weighted = scaled * np.sqrt(weights)[:, None]
        precision = weighted.T @ weighted  # by itself: half the products
        precision[np.diag_indices_from(precision)] += 1.0
        left = harms - design @ means
        root = np.linalg.cholesky(precision)
        move = np.linalg.solve(precision, scaled.T @ (weights * left))
        rest = left - scaled @ move
        floor = np.concatenate([_FLOOR * centre, np.zeros(len(self._pairs))])
        unexplained = weights @ rest**2 + move @ move
        unexplained += 2 * np.log(np.diag(root)).sum() - np.log(weights).sum()
        return float(unexplained), shape, means + spread * move, root.T / spread, floor

    def _centre(self, single: Array, harms: Array, weights: Array) -> Array:
        """(n_genes,) the mean strength of each gene's kind, by regression on the kinds' sums."""
        kinds = sorted(set(self._kinds))
        sums = np.stack([single[:, self._kinds == kind].sum(axis=1) for kind in kinds], axis=1)
        prior = 1.0 / np.maximum(1.0, np.array([(self._kinds == kind).sum() for kind in kinds]))
        scaled = sums * prior
        precision = 0.1 * np.eye(len(kinds)) + (scaled.T * weights) @ scaled
        target = 0.1 * np.ones(len(kinds)) + scaled.T @ (weights * harms)
        found = np.maximum(0.02, np.linalg.solve(precision, target)) * prior
        centre: Array = found[[kinds.index(kind) for kind in self._kinds]]
        return centre

    def mean(self) -> Strengths:
        """The expected strengths."""
        return self._strengths(self._mean)

    def draw(self, rng: np.random.Generator) -> Strengths:
        """Strengths drawn from the posterior."""
        noise = rng.standard_normal(len(self._mean))
        return self._strengths(self._mean + np.linalg.solve(self._root, noise))

    @cached_property
    def deviations(self) -> Array:
        """(n_genes,) posterior standard deviation of each gene's strength."""
        inverse = np.linalg.inv(self._root)
        deviations: Array = np.sqrt((inverse**2).sum(axis=1))[: len(self._kinds)]
        return deviations

    def _strengths(self, flat: Array) -> Strengths:
        count = len(self._kinds)
        flat = np.maximum(flat, self._floor)
        pairs = np.zeros((count, count))
        one, other = self._pairs.T
        pairs[one, other] = pairs[other, one] = flat[count:]
        return Strengths(self.shape.curves, flat[:count], pairs)


def _pairs(space: SearchSpace) -> NDArray[np.int64]:
    """(n_pairs, 2) neighbouring genes of one kind, and genes that decide about one layer."""
    found = []
    genes = list(enumerate(space))
    for kind in dict.fromkeys(gene.kind for gene in space):
        places = [place for place, gene in genes if gene.kind == kind]
        found += list(itertools.pairwise(places))
    targets: dict[str, list[int]] = {}
    for place, gene in genes:
        targets.setdefault(gene.target, []).append(place)
    for places in targets.values():
        found += list(itertools.combinations(places, 2))
    return np.array(sorted(set(found)), dtype=np.int64).reshape(-1, 2)


def _shapes(space: SearchSpace, kinds: list[str], noises: Sequence[float]) -> list[Shape]:
    """Curves of all genes for every choice per kind, with every noise."""
    shapes = [BASES if kind.endswith("bits") else EXPONENTS for kind in kinds]
    return [
        Shape(_curves(space, dict(zip(kinds, chosen, strict=True))), noise)
        for chosen in itertools.product(*shapes)
        for noise in noises
    ]


def _curves(space: SearchSpace, shapes: Mapping[str, float]) -> Array:
    """(n_genes, most values) harm of each value per unit of strength; the largest is about 1."""
    curves = np.zeros((len(space), int(space.sizes.max())))
    for row, gene in zip(curves, space, strict=True):
        row[: len(gene)] = _curve(gene, shapes[gene.kind])
    return curves


def _curve(gene: Gene, shape: float) -> Array:
    values = np.array(gene.values, dtype=np.float64)
    if gene.kind.endswith("bits"):
        harms = shape ** (values[0] - values)
    elif gene.kind == "channels":
        harms = (1.0 - values / values[-1]) ** shape
    else:
        harms = values**shape
    curve: Array = harms - harms[-1]
    return curve
