"""Policies: one value for every gene, the candidate of a search."""

from __future__ import annotations

import hashlib
import json
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Final

import numpy as np

from automl_compress.errors import SpaceError
from automl_compress.space.genes import KINDS, Kind, Value, check_value

_DENSE: Final = json.JSONEncoder(separators=(",", ":"))


class Policy(Mapping[str, Value]):
    """One candidate: gene names and the value chosen for each. Immutable, hashable, JSON.

    A policy stands alone: it can be applied to a network without the space it came from. Genes
    are kept in sorted order, so equal choices make equal policies with equal keys.

    Args:
        genes: value by gene name (`kind:target`).

    Raises:
        SpaceError: there is no mapping, a name has no known kind, or a value does not fit its kind.
    """

    __slots__ = ("_genes", "_key")

    def __init__(self, genes: Mapping[str, Value]) -> None:
        if not isinstance(genes, Mapping):
            raise SpaceError(
                f"a policy must be made of a mapping of genes, but was given a "
                f"{type(genes).__name__}; give {{NAME: VALUE}}"
            )
        genes = {name: _plain(value) for name, value in genes.items()}
        for name, value in genes.items():
            kind, _, target = str(name).partition(":")
            if kind not in KINDS or not target:
                raise SpaceError(
                    f"a policy's gene must be named 'KIND:TARGET' with a kind of "
                    f"{', '.join(KINDS)}, but is '{name}'; rename it"
                )
            check_value(kind, value, f"gene '{name}' of the policy")
        self._genes = {name: canonical(name, genes[name]) for name in sorted(genes)}
        self._key = ""

    @classmethod
    def trusted(cls, genes: dict[str, Value]) -> Policy:
        """A policy of genes that need no check: names sorted, values allowed and `canonical`."""
        policy = cls.__new__(cls)
        policy._genes, policy._key = genes, ""
        return policy

    @property
    def key(self) -> str:
        """32 hexadecimal digits that name this policy in ledgers and caches."""
        if not self._key:  # many policies are only costed
            self._key = _key(self._genes)
        return self._key

    def of_kind(self, kind: Kind) -> dict[str, Value]:
        """Value by target for the genes of one kind."""
        prefix = f"{kind}:"
        return {
            name[len(prefix) :]: value
            for name, value in self._genes.items()
            if name.startswith(prefix)
        }

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `{"genes": {name: value}}`."""
        return {"genes": dict(self._genes)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Policy:
        """The policy written by `to_dict`.

        Raises:
            SpaceError: `data` has another form.
        """
        genes = data.get("genes") if isinstance(data, Mapping) else None
        if not isinstance(genes, Mapping):
            raise SpaceError('a policy must be {"genes": {NAME: VALUE}}; give that form')
        return cls(genes)

    def to_json(self) -> str:
        """Canonical JSON text; equal policies give equal text."""
        return json.dumps(self.to_dict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """The policy written by `to_json`.

        Raises:
            SpaceError: the text is no JSON, or has another form.
        """
        try:
            data = json.loads(text)
        except ValueError as reason:
            raise SpaceError(f"a policy must be JSON, but is not: {reason}; correct it") from reason
        return cls.from_dict(data)

    def __getitem__(self, name: str) -> Value:
        return self._genes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._genes)

    def __len__(self) -> int:
        return len(self._genes)

    # As a dictionary has them: those of `Mapping` look up every gene by itself.

    def get(self, name: str, default: Any = None) -> Any:
        """Value of a gene, or what is given in its place."""
        return self._genes.get(name, default)

    def keys(self) -> KeysView[str]:
        """Names of the genes."""
        return self._genes.keys()

    def items(self) -> ItemsView[str, Value]:
        """Names and values."""
        return self._genes.items()

    def values(self) -> ValuesView[Value]:
        """Values, in the order of names."""
        return self._genes.values()

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self._genes == other._genes

    def __reduce__(self) -> tuple[Any, ...]:
        return (Policy, (self._genes,))

    def __repr__(self) -> str:
        return f"Policy({self._genes!r})"


def _plain(value: Value) -> Value:
    """NumPy's numbers as Python's, which JSON knows."""
    return value.item() if isinstance(value, np.number) else value


def _key(genes: dict[str, Value]) -> str:
    return hashlib.sha256(_DENSE.encode(genes).encode()).hexdigest()[:32]


def canonical(name: str, value: Value) -> Value:
    """Equal values as one text: 0, -0.0 and 0.0 are the same share."""
    return float(value) + 0.0 if name.startswith("kernel_sparsity:") else value
