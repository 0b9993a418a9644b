"""Who hears how far work on networks has come; the command line shows it on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from automl_compress.engine.engine import Listener as SearchListener
from automl_compress.engine.engine import ignore
from automl_compress.errors import InputError
from automl_compress.recover import Listener
from automl_compress.recover.training import hear_nothing
from automl_compress.settings import shown


def _say_nothing(_: str) -> None:
    """Leave a sentence unsaid."""


def _training_unheard() -> Listener:
    return hear_nothing


def _search_unheard(budget: int, racing: int) -> AbstractContextManager[SearchListener]:
    del budget, racing
    return nullcontext(ignore)


@dataclass(frozen=True)
class Audience:
    """Who hears of it; nobody, unless given.

    Args:
        say: is told in lines of text what begins and what came of it.
        training: makes the listener of one training.
        search: makes the listener of one search while it runs, given the evaluations of each
            contestant and how many race.
    """

    say: Callable[[str], None] = _say_nothing
    training: Callable[[], Listener] = _training_unheard
    search: Callable[[int, int], AbstractContextManager[SearchListener]] = _search_unheard

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not callable(value):
                raise InputError(
                    f"'{name}' of an Audience must be a function, but is {shown(value)}; give one"
                )


NOBODY = Audience()


def check_audience(given: object) -> None:
    """Check that it is an audience, before anything is done.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(given, Audience):
        raise InputError(
            f"an audience must be an Audience, but is {shown(given)}; give Audience(say=...)"
        )
