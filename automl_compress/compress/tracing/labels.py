"""Classes of channels: which positions of a network's tensors must be cut together.

A channel position is a label, a number. Positions that turn out to be coupled are united
(Tarjan 1975, union-find). A class may be frozen: its channels cannot be cut, for a reason.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIXED: Final = -1
"""Label of a position that no cut can remove, such as a channel of the network's input."""
ZERO: Final = -2
"""Label of a position that the network's code fills with zeros."""
_FIXED_TENSOR: Final = "its channels are combined with a tensor that cannot be cut"
_PADDED: Final = (
    "its channels are combined with a fixed number of zeros that the network's code pads"
)

Labels = NDArray[np.int64]


class ChannelClasses:
    """Labels, their classes, and which classes are frozen."""

    def __init__(self) -> None:
        self._parents: Labels = np.empty(0, dtype=np.int64)
        self._frozen: list[tuple[Labels, str]] = []
        self._doubtful: list[tuple[Labels, str]] = []

    def new(self, count: int) -> Labels:
        """(count,) labels, each a class of its own."""
        first = len(self._parents)
        self._parents = np.append(self._parents, np.arange(first, first + count))
        return self._parents[first:].copy()

    def roots(self, labels: Labels) -> Labels:
        """The smallest label of every label's class; negative labels stay."""
        if not len(self._parents):
            return labels
        return np.where(labels < 0, labels, self._parents[np.maximum(labels, 0)])

    def unite(self, one: Labels, other: Labels) -> None:
        """Couple positions pairwise; what meets a position that stays is frozen.

        Code may pad as many zeros as two widths differ by, so what meets zeros is but doubtful.
        """
        self.freeze(_meeting(one, other, FIXED), _FIXED_TENSOR)
        self._note(self._doubtful, _meeting(one, other, ZERO), _PADDED)
        both = (one >= 0) & (other >= 0)
        one, other = one[both], other[both]
        while True:
            one, other = self.roots(one), self.roots(other)
            apart = one != other
            if not apart.any():
                return
            one, other = one[apart], other[apart]
            np.minimum.at(self._parents, np.maximum(one, other), np.minimum(one, other))
            self._flatten()

    def freeze(self, labels: Labels, reason: str) -> None:
        """Forbid to cut the classes of some labels; the first reason is the one told."""
        self._note(self._frozen, labels, reason)

    def reasons(self) -> dict[int, str]:
        """By smallest label, why a frozen class cannot be cut."""
        return self._by_root(self._frozen)

    def doubts(self) -> dict[int, str]:
        """By smallest label, why a class may turn out not to be cut."""
        return self._by_root(self._doubtful)

    @staticmethod
    def _note(notes: list[tuple[Labels, str]], labels: Labels, reason: str) -> None:
        if (labels >= 0).any():
            notes.append((np.unique(labels[labels >= 0]), reason))

    def _by_root(self, notes: list[tuple[Labels, str]]) -> dict[int, str]:
        found: dict[int, str] = {}
        for labels, reason in notes:
            for root in np.unique(self.roots(labels)).tolist():
                found.setdefault(root, reason)
        return found

    def _flatten(self) -> None:
        while True:
            above = self._parents[self._parents]
            if np.array_equal(above, self._parents):
                return
            self._parents = above


def _meeting(one: Labels, other: Labels, label: int) -> Labels:
    """What stands opposite to a label on either side."""
    return np.concatenate([one[other == label], other[one == label]])


def compact(labels: Tensor) -> Tensor:
    """Labels with size 1 along every axis along which they do not vary."""
    for axis, size in enumerate(labels.shape):
        if size > 1 and (
            labels.stride(axis) == 0 or bool((labels == labels.narrow(axis, 0, 1)).all())
        ):
            labels = labels.narrow(axis, 0, 1)
    return labels


def varying(labels: Tensor) -> set[int]:
    """Axes along which compact labels vary."""
    return {axis for axis, size in enumerate(labels.shape) if size > 1}


def lead(labels: Tensor, dimensions: int) -> Tensor:
    """Labels with axes of size 1 before the first, as broadcasting puts them."""
    return labels.reshape((1,) * (dimensions - labels.dim()) + labels.shape)


def along(labels: Labels, axis: int, dimensions: int) -> Tensor:
    """Compact labels of a tensor that vary along one axis."""
    shape = [1] * dimensions
    shape[axis] = len(labels)
    return compact(torch.from_numpy(labels).reshape(shape))
