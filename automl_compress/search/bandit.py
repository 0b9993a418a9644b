"""Whose turn it is: a bandit whose arms change with time."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from automl_compress.search.strategy import State

DISCOUNT: Final = 0.97
EXPLORATION: Final = 0.2


class DiscountedUCB:
    """Discounted upper confidence bounds (Garivier and Moulines 2011, section 2.2).

    Gains of a search shrink by orders of magnitude as it goes on, so means are taken as shares of
    the largest gain, which fades with the square root of the discount: slower than the means, or
    whoever gained last would stay first for ever.

    Args:
        arms: how many there are.
        discount: factor by which older gains count less, per gain told; in (0, 1].
        exploration: weight of the confidence bound.
    """

    def __init__(
        self, arms: int, discount: float = DISCOUNT, exploration: float = EXPLORATION
    ) -> None:
        self._discount = discount
        self._exploration = exploration
        self._pulls = np.zeros(arms)
        self._gains = np.zeros(arms)
        self._largest = 0.0

    def order(self, waiting: NDArray[np.int64]) -> list[int]:
        """Arms, the most promising first; arms never tried come before all others.

        Args:
            waiting: (arms,) pulls whose gains are not known yet; they narrow the bound already.
        """
        pulls = self._pulls + waiting
        means = self._gains / np.maximum(self._pulls, 1e-12)
        shares = means / max(self._largest, 1e-12)
        bound = np.sqrt(np.log(max(np.e, float(pulls.sum()))) / np.maximum(pulls, 1e-12))
        scores = np.where(pulls > 0, shares + self._exploration * bound, np.inf)
        return [int(arm) for arm in np.argsort(-scores, kind="stable")]

    def tell(self, arm: int, gain: float) -> None:
        """Learn what one pull of an arm gained, at least 0."""
        self._pulls *= self._discount
        self._gains *= self._discount
        self._pulls[arm] += 1.0
        self._gains[arm] += gain
        self._largest = max(gain, self._largest * self._discount**0.5)

    def state_dict(self) -> State:
        """Discounted counts and sums, and the largest gain."""
        return {
            "pulls": self._pulls.copy(),
            "gains": self._gains.copy(),
            "largest": self._largest,
        }

    def load_state_dict(self, state: State) -> None:
        """Go on exactly."""
        self._pulls, self._gains = state["pulls"].copy(), state["gains"].copy()
        self._largest = state["largest"]
