"""The user's networks and data, found by name: what is wrong with them is a `WorkloadError`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from automl_compress import user_code as anyones
from automl_compress.errors import WorkloadError
from automl_compress.user_code import described, is_factory

__all__ = ["described", "is_factory", "resolve", "user_code"]


def user_code(what: str) -> AbstractContextManager[None]:
    """Run the user's code; whatever it raises becomes one line.

    Args:
        what: names the code at the head of the message.

    Raises:
        WorkloadError: the code raised or tried to leave the program.
    """
    return anyones.user_code(what, WorkloadError)


def resolve(name: str) -> Callable[..., Any]:
    """The callable that `package.module:attribute` names, see `automl_compress.user_code`.

    Raises:
        WorkloadError: the name is malformed, the module or attribute does not exist, the import
            raises, or the attribute cannot be called.
    """
    return anyones.resolve(name, WorkloadError)
