"""Genes: the single decisions a search space is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from automl_compress.errors import SpaceError
from automl_compress.settings import shown

Kind: TypeAlias = Literal["channels", "weight_bits", "activation_bits", "kernel_sparsity"]
Value: TypeAlias = int | float

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
LAYER_KINDS: Final[tuple[Kind, ...]] = ("weight_bits", "activation_bits", "kernel_sparsity")
"""Kinds that decide about a single layer."""
WEIGHT_BITS: Final = range(2, 9)
ACTIVATION_BITS: Final = range(4, 9)
_BOUNDS: Final = {
    "channels": (1, math.inf),
    "weight_bits": (WEIGHT_BITS.start, WEIGHT_BITS.stop - 1),
    "activation_bits": (ACTIVATION_BITS.start, ACTIVATION_BITS.stop - 1),
}
"""Least and largest value of every kind of whole numbers."""


@dataclass(frozen=True)
class Gene:
    """One decision: which of an ordered tuple of values a part of the network gets.

    Values run from the most compressed to the least, so that index 0 is always the smallest
    network and the last index the one nearest to the original: channel counts and bit-widths
    ascend, `kernel_sparsity` (share of kernels removed, in [0, 1)) descends.

    Args:
        name: `kind:target`, for example `channels:layer1.0.conv1`.
        kind: `channels` (channels kept by a coupled group), `weight_bits` (bits),
            `activation_bits` (bits) or `kernel_sparsity` (share in [0, 1)).
        values: the allowed values, strictly ordered as said above, at least one.

    Raises:
        SpaceError: the name does not fit the kind, or a value is out of its range or order.
    """

    name: str
    kind: Kind
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in KINDS:
            raise SpaceError(
                f"a gene's kind must be one of {', '.join(KINDS)}, but that of "
                f"{shown(self.name)} is {shown(self.kind)}; correct it"
            )
        named = isinstance(self.name, str) and self.name.startswith(f"{self.kind}:")
        if not named or not self.target:
            raise SpaceError(
                f"a gene's name must be '{self.kind}:TARGET', but is {shown(self.name)}; rename it"
            )
        if not isinstance(self.values, Sequence) or not self.values:
            raise SpaceError(
                f"gene '{self.name}' must have a tuple of values, but has {shown(self.values)}; "
                "give one"
            )
        for value in self.values:
            check_value(self.kind, value, f"gene '{self.name}'")
        descending = self.kind == "kernel_sparsity"
        if list(self.values) != sorted(set(self.values), reverse=descending):
            order = "descend" if descending else "ascend"
            raise SpaceError(
                f"the values of gene '{self.name}' must {order} without repeats, but are "
                f"{list(self.values)}; sort them"
            )

    @property
    def target(self) -> str:
        """The group or layer the gene decides about."""
        return self.name.partition(":")[2]

    def __len__(self) -> int:
        return len(self.values)

    def index(self, value: Value) -> int:
        """Index of a value.

        Raises:
            SpaceError: the value is not among the gene's values.
        """
        if isinstance(value, bool) or value not in self.values:
            raise SpaceError(
                f"gene '{self.name}' must take one of {list(self.values)}, but got {value!r}; "
                "choose one of them"
            )
        return self.values.index(value)


def check_value(kind: Kind, value: object, where: str) -> None:
    """Check that one value is of the right type and range for a kind of gene.

    Args:
        kind: of the gene.
        value: any object.
        where: whose value it is, for the message.

    Raises:
        SpaceError: it is not.
    """
    if kind == "kernel_sparsity":
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not (good and math.isfinite(value) and 0 <= value < 1):  # type: ignore[operator,arg-type]
            raise SpaceError(
                f"kernel_sparsity must be in [0, 1), but {where} has {value!r}; correct it"
            )
        return
    low, high = _BOUNDS[kind]
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        rule = f"an integer of at least {low}" if high == math.inf else f"among {low}..{high}"
        raise SpaceError(
            f"{kind} must be {rule}, but {where} has {value!r}; remove it or correct it"
        )
