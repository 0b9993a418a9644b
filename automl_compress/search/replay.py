"""Replay of whole episodes, scored afresh under any preference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """Transitions drawn from replay.

    Args:
        states: (n, state_size) before the decision.
        actions: (n, ...) executed actions in [0, 1].
        next_states: (n, state_size) after it; zeros where the episode ends.
        last: (n,) whether the decision was the episode's last.
        outcomes: (n, n_outcomes) what the whole episode led to.
    """

    states: Array
    actions: Array
    next_states: Array
    last: NDArray[np.bool_]
    outcomes: Array


class EpisodeReplay:
    """Episodes of one length with their outcomes. No transition is stored that was not taken.

    Args:
        steps: decisions of an episode.
        state_size: length of a state.
        capacity: episodes kept; the oldest are dropped.
    """

    def __init__(self, steps: int, state_size: int, capacity: int = 5_000) -> None:
        self._steps = steps
        self._capacity = capacity
        self._count = 0  # of rows in use
        self._states = np.zeros((0, steps, state_size))
        self._actions: Array = np.zeros((0, steps))
        self._outcomes: Array = np.zeros((0, 0))

    def __len__(self) -> int:
        return self._count

    def add(self, states: Array, actions: Array, outcome: Array) -> None:
        """Add an episode.

        Args:
            states: (steps, state_size).
            actions: (steps, ...) executed actions.
            outcome: (n_outcomes,).
        """
        if not len(self):
            self._actions = np.zeros((0, *actions.shape))
            self._outcomes = np.zeros((0, len(outcome)))
        if self._count == len(self._actions):
            self._make_room()
        row = self._count
        self._states[row], self._actions[row], self._outcomes[row] = states, actions, outcome
        self._count += 1

    def _make_room(self) -> None:
        """Drop what is beyond the capacity less one, and double the rows."""
        kept = slice(max(0, self._count - self._capacity + 1), self._count)
        self._count = kept.stop - kept.start
        room = min(self._capacity, max(8, 2 * self._count)) - self._count
        self._states, self._actions, self._outcomes = (
            np.concatenate([rows[kept], np.zeros((room, *rows.shape[1:]))])
            for rows in (self._states, self._actions, self._outcomes)
        )

    def sample(self, rng: np.random.Generator, count: int, attention: Array) -> Batch:
        """Transitions drawn with replacement, steps uniformly.

        Args:
            rng: source of chance.
            count: n, how many.
            attention: (episodes,) how often each is drawn, relative to the others.
        """
        episodes = rng.choice(len(self), size=count, p=attention / attention.sum())
        steps = rng.integers(self._steps, size=count)
        last = steps == self._steps - 1
        following = np.minimum(steps + 1, self._steps - 1)
        return Batch(
            states=self._states[episodes, steps],
            actions=self._actions[episodes, steps],
            next_states=np.where(last[:, None], 0.0, self._states[episodes, following]),
            last=last,
            outcomes=self._outcomes[episodes],
        )

    @property
    def states(self) -> Array:
        """(episodes, steps, state_size), oldest first."""
        return self._states[: self._count]

    @property
    def actions(self) -> Array:
        """(episodes, steps, ...) executed actions, oldest first."""
        return self._actions[: self._count]

    @property
    def outcomes(self) -> Array:
        """(episodes, n_outcomes), oldest first."""
        return self._outcomes[: self._count]

    def state_dict(self) -> dict[str, Array]:
        """Everything stored."""
        kept = {"states": self.states, "actions": self.actions, "outcomes": self.outcomes}
        return {name: rows.copy() for name, rows in kept.items()}

    def load_state_dict(self, state: dict[str, Array]) -> None:
        """Hold just this."""
        self._states, self._actions = state["states"], state["actions"]
        self._outcomes, self._count = state["outcomes"], len(state["actions"])
