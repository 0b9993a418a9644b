"""When hypervolumes are equal: summed in another order they differ in their last bits."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_TIED: Final = 1e-9
"""Hypervolumes that differ by less are equal."""


def levelled(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Numbers of any shape, each made the least of those it is equal to but for rounding.

    A number belongs to the next smaller one where they differ by less than `_TIED`, so that no
    border between two roundings can part them.

    Args:
        numbers: finite hypervolumes or means of them, in [0, 1].
    """
    if not numbers.size:
        return numbers.copy()
    distinct, places = np.unique(numbers, return_inverse=True)
    begins = np.diff(distinct, prepend=-np.inf) >= _TIED
    least: NDArray[np.float64] = distinct[begins][np.cumsum(begins) - 1]
    return least[places].reshape(numbers.shape)
