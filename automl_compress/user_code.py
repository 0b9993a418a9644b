"""The user's own code: finding it by name, and turning what it raises into one line.

Networks, data, strategies and criteria may be the user's. Which `InputError` they are blamed by is
for those to say who asked for them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from automl_compress.errors import InputError
from automl_compress.settings import suggestion

_LONGEST: Final = 300


def described(reason: BaseException) -> str:
    """`ValueError: what it says`, on one line of at most 300 characters."""
    text = " ".join(str(reason).split())
    name = type(reason).__name__
    line = f"{name}: {text}" if text else name
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."


@contextmanager
def user_code(
    what: str, error: type[InputError] = InputError, remedy: str = "correct it"
) -> Iterator[None]:
    """Run the user's code; whatever it raises becomes one line.

    Args:
        what: names the code at the head of the message.
        error: what is raised; where the code itself raises it, it stays as it is.
        remedy: at the end of the message.

    Raises:
        InputError: of that class: the code raised or tried to leave the program.
    """
    try:
        yield
    except error:
        raise
    except (Exception, SystemExit) as reason:
        raise error(f"{what} must not fail, but raised {described(reason)}; {remedy}") from reason


def is_factory(name: str) -> bool:
    """Whether a name is written as `package.module:attribute`."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(
        part.isidentifier() for part in (*module.split("."), *attribute.split("."))
    )


def check_known_or_own(
    what: str, name: str, known: Collection[str], error: type[InputError] = InputError
) -> None:
    """Check that a name is known or written as a callable; nothing is imported.

    Args:
        what: is named so, at the head of the message.
        name: to check.
        known: the names that are ours.
        error: what is raised.

    Raises:
        InputError: of that class: it is neither.
    """
    if name not in known and not is_factory(name):
        raise error(
            f"{what} must be one of {', '.join(known)}, or of your own by "
            f"'package.module:callable', but is '{name}'{suggestion(name, known)}; correct it"
        )


def name_of(own: Callable[..., Any], error: type[InputError] = InputError) -> str:
    """`package.module:attribute`, by which `resolve` finds a class or function again.

    Args:
        own: to name.
        error: what is raised.

    Raises:
        InputError: of that class: another process would not find it.
    """
    name = f"{own.__module__}:{own.__qualname__}"
    shared = own.__module__ != "__main__" and is_factory(name)
    if not shared or resolve(name, error) is not own:
        raise error(
            f"'{name}' must be found under that name by other processes and by 'resume', but is "
            "not; define it at the top of a module that can be imported"
        )
    return name


def resolve(name: str, error: type[InputError] = InputError) -> Callable[..., Any]:
    """The callable that `package.module:attribute` names.

    The current folder is importable. Importing and looking up attributes is all that happens;
    the text is never evaluated.

    Args:
        name: as written by the user.
        error: what is raised.

    Raises:
        InputError: of that class: the name is malformed, the module or attribute does not exist,
            the import raises, or the attribute cannot be called.
    """
    if not is_factory(name):
        raise error(
            f"a factory must be written 'package.module:function', but is '{name}'; correct it"
        )
    module_name, _, attributes = name.partition(":")
    found: Any = _imported(module_name, name, error)
    for attribute in attributes.split("."):
        if not hasattr(found, attribute):
            raise error(
                f"'{name}' must exist, but module '{module_name}' has no '{attribute}'; "
                f"correct the part after the colon"
            )
        found = getattr(found, attribute)
    if not callable(found):
        raise error(
            f"'{name}' must be a function or class, but is of type {type(found).__name__}; "
            f"name something that can be called"
        )
    return found  # type: ignore[no-any-return]


def _imported(module_name: str, name: str, error: type[InputError]) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        with user_code(f"importing '{module_name}'", error):
            return importlib.import_module(module_name)
    except error as reason:
        missing = getattr(reason.__cause__, "name", None)
        if not isinstance(reason.__cause__, ModuleNotFoundError) or not missing:
            raise
        if module_name != missing and not module_name.startswith(f"{missing}."):
            raise
        raise error(
            f"'{name}' must name an importable module, but there is no module '{missing}'; "
            f"correct the part before the colon or start in the folder that holds it"
        ) from reason
