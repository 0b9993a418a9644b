"""A strategy of the user's own, held to its contract: what it does wrongly is told in one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from automl_compress.errors import SpaceError, StudyError
from automl_compress.evaluate import Evaluation
from automl_compress.search.strategy import OnRung, Problem, State, Strategy
from automl_compress.space import Policy
from automl_compress.user_code import user_code


class OwnStrategy(Strategy):
    """Passes everything on to a strategy of the user's, and looks at what it answers.

    Args:
        problem: what is searched.
        seed: decides every random choice.
        name: of the callable, as the user wrote it.
        build: the callable; given problem and seed, it makes the strategy.

    Raises:
        StudyError: here and in all methods, the user's code raised or answered what no strategy
            may.
    """

    def __init__(self, problem: Problem, seed: int, name: str, build: Callable[..., Any]) -> None:
        super().__init__(problem, seed)
        self._name = name
        with user_code(f"strategy '{name}'", StudyError):
            own = build(problem, seed)
        if not isinstance(own, Strategy):
            raise StudyError(
                f"'{name}' must give an automl_compress.search.Strategy, but gave one of type "
                f"{type(own).__name__}; derive its class from Strategy"
            )
        self._own = own

    @property
    def batch(self) -> int:  # type: ignore[override]
        """How many policies it likes to be asked for at once."""
        with self._in("batch"):
            found = self._own.batch
        if not isinstance(found, int | np.integer) or found < 1:
            raise self._wrong(f"have a batch of at least 1, but has {found!r}")
        return int(found)

    def ask(self, count: int) -> list[Policy]:
        """What it asks for: at most `count` policies of the space."""
        with self._in("ask"):
            asked = list(self._own.ask(count))
        if len(asked) > count:
            raise self._wrong(
                f"ask for at most as many policies as it is asked for, {count}, but asks for "
                f"{len(asked)}"
            )
        for policy in asked:
            self._check_policy(policy)
        return asked

    def ask_rungs(self, budget: int) -> list[OnRung]:
        """What it wants to know from rungs that are offered."""
        with self._in("ask_rungs"):
            asked = list(self._own.ask_rungs(budget))
        for wanted in asked:
            if not isinstance(wanted, OnRung) or wanted.rung not in self.problem.rungs:
                raise self._wrong(
                    f"ask for a rung of {', '.join(self.problem.rungs)} by OnRung, but asks for "
                    f"{wanted!r}"
                )
            self._check_policy(wanted.policy)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Tell it; the list is its own."""
        with self._in("tell"):
            self._own.tell(list(evaluations))

    def plan(self) -> list[str]:
        """What it says it sets out to do."""
        with self._in("plan"):
            return [str(sentence) for sentence in self._own.plan()]

    def skip_start(self) -> None:
        """Have it leave out its start."""
        with self._in("skip_start"):
            self._own.skip_start()

    def state_dict(self) -> State:
        """Its state, plain as it is stored."""
        with self._in("state_dict"):
            state = self._own.state_dict()
        self._check_plain(state, "state_dict()")
        return state

    def load_state_dict(self, state: State) -> None:
        """Have it go on from a state."""
        with self._in("load_state_dict"):
            self._own.load_state_dict(state)

    def _in(self, method: str) -> AbstractContextManager[None]:
        return user_code(f"'{method}' of strategy '{self._name}'", StudyError)

    def _wrong(self, what: str) -> StudyError:
        return StudyError(f"strategy '{self._name}' must {what}; correct it")

    def _check_policy(self, policy: Any) -> None:
        if not isinstance(policy, Policy):
            raise self._wrong(f"ask for policies, but asks for one of type {type(policy).__name__}")
        try:
            self.problem.space.encode(policy)
        except SpaceError as reason:
            raise StudyError(
                f"strategy '{self._name}' must ask for policies of the space: {reason}"
            ) from reason

    def _check_plain(self, value: Any, where: str) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                self._check_plain(item, f"{where}[{key!r}]")
            plain = all(isinstance(key, str) for key in value)
        elif isinstance(value, list | tuple):
            for place, item in enumerate(value):
                self._check_plain(item, f"{where}[{place}]")
            plain = True
        elif isinstance(value, np.ndarray):
            plain = not value.dtype.hasobject
        else:
            plain = value is None or isinstance(value, str | int | float | np.generic)
        if not plain:
            raise self._wrong(
                "keep its state in dicts with text keys, lists, numbers, texts, None and arrays, "
                f"but {where} is of type {type(value).__name__}"
            )
