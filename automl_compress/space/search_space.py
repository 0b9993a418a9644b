"""Search spaces: finite products of ordered choices, and the ways to read one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from automl_compress.errors import SpaceError
from automl_compress.settings import shown
from automl_compress.space.genes import Gene, Value
from automl_compress.space.policy import Policy, canonical
from automl_compress.space.rules import SpaceRules

if TYPE_CHECKING:
    from torch import Tensor, nn

Indices = NDArray[np.int64]
"""(n_genes,) index of the chosen value of every gene, in the space's order."""


def counted(policies: int) -> str:
    """A number of policies, however many: `1,024` or `about 10^9`."""
    if policies < 1e6:
        return f"{policies:,}"
    return f"about 10^{int(math.log10(policies) + 1e-9)}"


class SearchSpace:
    """An ordered tuple of genes; every policy picks one value of each.

    Searchers read it as integers (`encode`, `decode`) or as points of the unit cube
    (`to_unit`, `from_unit`); in both, larger means less compressed.

    Args:
        genes: at least one gene, names all different.

    Raises:
        SpaceError: there is no gene, or two share a name.
    """

    def __init__(self, genes: Sequence[Gene]) -> None:
        if not isinstance(genes, Sequence) or not all(isinstance(g, Gene) for g in genes):
            raise SpaceError(
                f"a search space must be given genes, but is given {shown(genes)}; give a tuple"
            )
        if not genes:
            raise SpaceError(
                "a search space must have a gene, but has none; unprotect a layer or add choices"
            )
        names = [gene.name for gene in genes]
        for name in names:
            if names.count(name) > 1:
                raise SpaceError(f"gene names must differ, but '{name}' is repeated; remove one")
        self._genes = tuple(genes)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        example_input: Tensor,
        rules: SpaceRules | None = None,
        time_limit: float = 120.0,
    ) -> SearchSpace:
        """Derive the space of a network: a gene per coupled channel group and per layer.

        Args:
            model: the network; it is not changed.
            example_input: (1, channels, height, width) or whatever the network takes.
            rules: ratios, bits, overrides and protection; the defaults when not given.
            time_limit: seconds that following the network may take.

        Raises:
            TraceError: the network cannot be followed in time, or nothing in it can be compressed.
            SpaceError: the rules do not fit the network.
        """
        # The one import that goes against the data flow: the public one-liner, on call only.
        from automl_compress.compress.derive import derive_space

        if not isinstance(rules, SpaceRules | None):
            raise SpaceError(
                f"a search space is derived by SpaceRules, but was given {shown(rules)}; read "
                "those of a file by load_rules(PATH)"
            )
        return derive_space(model, example_input, rules, time_limit).space

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The genes, in order."""
        return self._genes

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(n_genes,) number of choices of every gene."""
        return np.array([len(gene) for gene in self._genes], dtype=np.int64)

    @property
    def cardinality(self) -> int:
        """Number of policies, exact."""
        return math.prod(len(gene) for gene in self._genes)

    def __len__(self) -> int:
        return len(self._genes)

    def __iter__(self) -> Iterator[Gene]:
        return iter(self._genes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SearchSpace) and self._genes == other._genes

    def __hash__(self) -> int:
        return hash(self._genes)

    def __repr__(self) -> str:
        return f"SearchSpace({len(self)} genes, {counted(self.cardinality)} policies)"

    def encode(self, policy: Mapping[str, Any]) -> Indices:
        """Indices of a policy of this space.

        Raises:
            SpaceError: the policy lacks a gene, has an unknown one, or a value is not allowed.
        """
        if policy.keys() != self._names:
            missing = [gene.name for gene in self._genes if gene.name not in policy]
            extra = sorted(set(policy) - self._names)
            what = f"lacks '{missing[0]}'" if missing else f"has the unknown '{extra[0]}'"
            raise SpaceError(
                f"a policy must have exactly the {len(self)} genes of its space, but {what}; "
                "use a policy made for this space"
            )
        chosen = dict(policy.items())
        found = [places.get(chosen[name]) for name, places in self._places]
        if None in found or any(value is True for value in chosen.values()):
            # What a table does not know is the gene's to refuse; True is no 1.
            found = [gene.index(chosen[gene.name]) for gene in self._genes]
        return np.array(found, dtype=np.int64)

    def decode(self, indices: ArrayLike) -> Policy:
        """Policy of (n_genes,) indices.

        Raises:
            SpaceError: the shape is wrong or an index is out of range.
        """
        array = np.asarray(indices)
        if array.shape != (len(self),) or array.dtype.kind not in "iu":
            raise SpaceError(
                f"indices must be {len(self)} integers, but are {array.dtype} of shape "
                f"{array.shape}; give one per gene"
            )
        if (array < 0).any() or (array >= self.sizes).any():
            worst = int(np.argmax((array < 0) | (array >= self.sizes)))
            raise SpaceError(
                f"the index of gene '{self._genes[worst].name}' must be in "
                f"0..{self.sizes[worst] - 1}, but is {array[worst]}; repair it"
            )
        chosen = array.tolist()
        return Policy.trusted({name: values[chosen[at]] for name, at, values in self._by_name})

    @cached_property
    def _places(self) -> list[tuple[str, dict[Value, int]]]:
        """Name, and index by value, of every gene."""
        return [
            (gene.name, {value: index for index, value in enumerate(gene.values)})
            for gene in self._genes
        ]

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(gene.name for gene in self._genes)

    @cached_property
    def _by_name(self) -> list[tuple[str, int, tuple[Value, ...]]]:
        """Name, position and values, as a policy holds them, of every gene, names sorted."""
        found = [
            (gene.name, position, tuple(canonical(gene.name, value) for value in gene.values))
            for position, gene in enumerate(self._genes)
        ]
        return sorted(found)

    def to_unit(self, indices: ArrayLike) -> NDArray[np.float64]:
        """Centre of each choice's cell in the unit cube: `(index + 0.5) / size`.

        Args:
            indices: (..., n_genes).
        """
        return (np.asarray(indices) + 0.5) / self.sizes

    def from_unit(self, points: ArrayLike) -> Indices:
        """Indices of the cells that hold points of the unit cube; values outside are clipped.

        Args:
            points: (..., n_genes).
        """
        # Of NaN and a number, `fmax` gives the number.
        inside = np.fmin(np.fmax(np.asarray(points, dtype=np.float64), 0.0), 1.0)
        return np.minimum((inside * self.sizes).astype(np.int64), self.sizes - 1)

    def repair(self, indices: ArrayLike) -> Indices:
        """Nearest allowed indices to any numbers: rounded, then clipped. Idempotent."""
        rounded = np.rint(np.asarray(indices, dtype=np.float64))
        return np.fmin(np.fmax(rounded, 0.0), self.sizes - 1).astype(np.int64)

    def sample(self, rng: np.random.Generator) -> Indices:
        """Indices of one policy, every gene drawn uniformly and independently."""
        return rng.integers(0, self.sizes)

    def neighbours(self, policy: Policy) -> list[Policy]:
        """All policies one step away in one gene, in gene order, smaller step first."""
        base = self.encode(policy)
        found = []
        for position, size in enumerate(self.sizes):
            for step in (-1, 1):
                if 0 <= base[position] + step < size:
                    moved = base.copy()
                    moved[position] += step
                    found.append(self.decode(moved))
        return found

    @property
    def smallest(self) -> Policy:
        """The most compressed policy."""
        return self.decode(np.zeros(len(self), dtype=np.int64))

    @property
    def largest(self) -> Policy:
        """The least compressed policy."""
        return self.decode(self.sizes - 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `{"genes": {name: [values]}}`, in order."""
        return {"genes": {gene.name: list(gene.values) for gene in self._genes}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SearchSpace:
        """The space written by `to_dict`.

        Raises:
            SpaceError: `data` has another form, or a gene is wrong.
        """
        genes = data.get("genes") if isinstance(data, Mapping) else None
        if not isinstance(genes, Mapping) or not all(
            isinstance(values, list | tuple) for values in genes.values()
        ):
            raise SpaceError('a space must be {"genes": {NAME: [VALUES]}}; give that form')
        return cls(
            [Gene(name, name.partition(":")[0], tuple(values)) for name, values in genes.items()]
        )
