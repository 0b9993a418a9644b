"""Typed reading of YAML: every value knows the file, key and line it came from.

`Section` wraps one mapping of a YAML file. Readers take the keys they know, with a type and
a default, and then `close()` it, so that an unknown or misspelt key is an error that names the
nearest known one. `settings_file` reads them from YAML.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, Final, TypeVar

from automl_compress.errors import InputError

T = TypeVar("T")


REQUIRED: Final[Any] = object()
"""Default of a key that must be given."""
LARGEST_SEED: Final = 2**32 - 1
"""What all generators of random numbers take."""


@dataclass(frozen=True)
class Origin:
    """Where a value came from: a file and line, or a command-line override."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}, line {self.line}"


class Section:
    """One mapping of a settings file, read key by key.

    Args:
        values: the mapping's plain values; nested mappings stay plain until `section` is called.
        origins: origin of every key in the whole tree, by its tuple path from the root.
        path: this mapping's tuple path from the root.
        error: the `InputError` subclass to raise.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        origins: Mapping[tuple[str, ...], Origin],
        path: tuple[str, ...] = (),
        error: type[InputError] = InputError,
    ) -> None:
        self._values = dict(values)
        self._origins = origins
        self._path = path
        self._error = error
        self._known: set[str] = set()

    def __contains__(self, key: str) -> bool:
        """Whether a key is given; one that is asked for counts as known."""
        self._known.add(key)
        return key in self._values

    def keys(self) -> Iterable[str]:
        """The keys present, in file order."""
        return self._values.keys()

    def plain(self) -> dict[str, Any]:
        """The values as plain Python data, every key counted as known."""
        self._known.update(self._values)
        return dict(self._values)

    def values(self) -> dict[str, Any]:
        """The values as given; says nothing about which keys are known."""
        return dict(self._values)

    def origin(self, *keys: str) -> Origin:
        """Origin of a key below this section, or of the nearest mapping around it."""
        path = self._path + keys
        while path and path not in self._origins:
            path = path[:-1]
        return self._origins.get(path, Origin("settings"))

    def fail(self, message: str, *keys: str) -> InputError:
        """An error about a key below this section, with its origin appended."""
        return self._error(f"{message} ({self.origin(*keys)})")

    def name(self, *keys: str) -> str:
        """The dotted name of a key, as a user would write it after `--set`."""
        return ".".join(self._path + keys)

    def get(self, key: str, kind: type[T] | tuple[type, ...], default: Any = REQUIRED) -> Any:
        """Read one value and check its type.

        Args:
            key: the key below this section.
            kind: the type it must have; ints are accepted where floats are asked for.
            default: returned when the key is absent; `REQUIRED` makes absence an error.

        Raises:
            InputError: the key is missing or its value has another type.
        """
        self._known.add(key)
        if key not in self._values:
            if default is REQUIRED:
                near = nearest(key, self._values)
                hint = f", perhaps in place of '{near}'" if near else ""
                raise self.fail(f"'{self.name(key)}' must be given, but is missing; add it{hint}")
            return default
        value = self._values[key]
        if isinstance(value, tuple):  # as Python writes lists that stay as they are
            value = list(value)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            return float(value) if int not in kinds else value
        if isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds):
            return value
        raise self.fail(
            f"'{self.name(key)}' must be {_kind_names(kinds)}, but is {shown(value)}; correct it",
            key,
        )

    def number(
        self,
        key: str,
        kind: type[int] | type[float],
        default: Any = REQUIRED,
        *,
        low: float | None = None,
        high: float | None = None,
    ) -> Any:
        """Read a number and check that `low <= value <= high`.

        Args:
            key: the key below this section.
            kind: `int`, or `float`, which takes integers too.
            default: returned as it is when the key is absent; `REQUIRED` makes absence an error.
            low: the least value allowed; None for any.
            high: the largest value allowed; None for any.

        Raises:
            InputError: the key is missing, or its value is no such number or outside.
        """
        value = self.get(key, kind, default)
        if key in self._values and (
            (low is not None and not value >= low) or (high is not None and not value <= high)
        ):
            rule = " and ".join(
                text
                for text, bound in ((f"at least {low}", low), (f"at most {high}", high))
                if bound is not None
            )
            raise self.fail(f"'{self.name(key)}' must be {rule}, but is {value}; correct it", key)
        return value

    def choice(self, key: str, choices: Iterable[str], default: Any = REQUIRED) -> str:
        """Read a word that must be among `choices`.

        Args:
            key: the key below this section.
            choices: the words allowed.
            default: returned when the key is absent; `REQUIRED` makes absence an error.

        Raises:
            InputError: the key is missing, or its value is another; the nearest word is named.
        """
        value: str = self.get(key, str, default)
        allowed = list(choices)
        if key in self._values and value not in allowed:
            raise self.fail(
                f"'{self.name(key)}' must be one of {', '.join(allowed)}, but is '{value}'"
                f"{suggestion(value, allowed)}",
                key,
            )
        return value

    def items(self, key: str, kind: type[T], default: Any = REQUIRED) -> tuple[T, ...]:
        """Read a list whose items all have one type.

        Args:
            key: the key below this section.
            kind: of the items; `float` takes integers too.
            default: returned when the key is absent; `REQUIRED` makes absence an error.

        Raises:
            InputError: the key is missing, or its value is no list of such items.
        """
        value = self.get(key, list, default)
        if key not in self._values:
            return tuple(value)
        for item in value:
            number = kind is float and isinstance(item, int)
            if isinstance(item, bool) or not (number or isinstance(item, kind)):
                raise self.fail(
                    f"'{self.name(key)}' must be a list of {_kind_names((kind,), plural=True)}, "
                    f"but holds {shown(item)}; correct it",
                    key,
                )
        return tuple(value)

    def section(self, key: str) -> Section:
        """The mapping below a key; an empty one when the key is absent."""
        value = self.get(key, dict, {})
        return Section(value, self._origins, (*self._path, key), self._error)

    def sections(self, key: str) -> tuple[Section, ...]:
        """The mappings of the list below a key; none when the key is absent."""
        values = self.items(key, dict, ())
        return tuple(
            Section(value, self._origins, (*self._path, key, str(index)), self._error)
            for index, value in enumerate(values)
        )

    def close(self) -> None:
        """Refuse keys nobody read.

        Raises:
            InputError: a key is unknown; the nearest known key is named.
        """
        for key in self._values:
            if key not in self._known:
                raise self.fail(
                    f"unknown key '{self.name(key)}'{suggestion(key, self._known)}; "
                    f"known here: {', '.join(sorted(self._known))}",
                    key,
                )


def as_stated(value: Any, name: Callable[[Any], Any] = lambda other: other) -> Any:
    """A setting given in Python, as a file states it.

    Args:
        value: to state. Paths become texts, numbers Python's own, and what holds settings mappings
            and lists.
        name: makes of everything else what a file says of it.
    """
    if isinstance(value, Mapping):
        return {str(key): as_stated(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [as_stated(item, name) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Real) and not isinstance(value, int | float):  # such as NumPy's
        return int(value) if isinstance(value, Integral) else float(value)
    return name(value)


def each(texts: str | Iterable[str]) -> list[str]:
    """The texts of what takes several, where one alone may be given too.

    Raises:
        InputError: they are something else.
    """
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Iterable):
        raise InputError(f"one text or several must be given, but are {shown(texts)}; correct it")
    return list(texts)


def file_path(given: object, what: str, error: type[InputError] = InputError) -> Path:
    """The path of a file that is given in Python.

    Args:
        given: a text or a path.
        what: it is, at the head of the message.
        error: what is raised.

    Raises:
        InputError: of that class: it is something else, or names no file.
    """
    if isinstance(given, str | Path) and Path(given).name:
        return Path(given)
    raise error(f"{what} must be given by its path, but is {shown(given)}; correct it")


def read_assignment(text: str, error: type[InputError] = InputError) -> tuple[tuple[str, ...], str]:
    """The path of keys and the value's text of `KEY.SUBKEY=VALUE`, as `--set` takes it.

    Raises:
        InputError: the text has another form.
    """
    name, equals, raw = text.partition("=")
    keys = tuple(name.strip().split("."))
    if not equals or not all(keys):
        raise error(f"--set must be KEY.SUBKEY=VALUE, but is '{text}'; correct it")
    return keys, raw


def put_value(
    tree: dict[str, Any],
    keys: tuple[str, ...],
    value: Any,
    error: type[InputError] = InputError,
) -> None:
    """Put a value at a path of keys; mappings that are missing on the way are made.

    Raises:
        InputError: something else than a mapping lies on the way.
    """
    for depth, key in enumerate(keys[:-1], start=1):
        tree = tree.setdefault(key, {})
        if not isinstance(tree, dict):
            raise error(
                f"--set {'.'.join(keys)}: '{'.'.join(keys[:depth])}' must be a mapping, but is "
                f"{shown(tree)}; set that key itself"
            )
    tree[keys[-1]] = value


def suggestion(word: str, known: Iterable[str]) -> str:
    """Text `, did you mean 'x'?` when a known word is near, otherwise empty."""
    near = nearest(word, known)
    return f", did you mean '{near}'?" if near else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The word most like one that is not known, in either case; None when none is near."""
    lowered = {other.lower(): other for other in known}
    if word in lowered.values():
        return None
    near = difflib.get_close_matches(word.lower(), lowered, n=1)
    return lowered[near[0]] if near else None


_KIND_NAMES = {
    str: "a text", int: "an integer", float: "a number", bool: "true or false",
    list: "a list", dict: "a mapping", type(None): "null",
}  # fmt: skip
_PLURALS = {str: "texts", int: "integers", float: "numbers", list: "lists", dict: "mappings"}


def _kind_names(kinds: tuple[type, ...], plural: bool = False) -> str:
    names = _PLURALS if plural else _KIND_NAMES
    return " or ".join(names.get(kind, kind.__name__) for kind in kinds)


def shown(value: Any) -> str:
    """A value as messages show it, on one line of at most 60 characters."""
    text = "nothing" if value is None else " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def significant(value: float, digits: int = 4) -> str:
    """A measured number with so many significant digits: `0.01603`, `12.35`, `1,235`.

    All digits before the point are shown, however many.
    """
    if not math.isfinite(value):
        return str(value)
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])  # of the rounded number
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def one_line(reason: BaseException) -> str:
    """What an exception says, in one line."""
    return " ".join(str(reason).split()) or type(reason).__name__
