"""Reading settings from YAML files, by PyYAML's safe loader: text never becomes code."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Final

import yaml

from automl_compress.errors import InputError
from automl_compress.settings import (
    Origin,
    Section,
    each,
    one_line,
    put_value,
    read_assignment,
    shown,
)

_PLAIN_TAGS: Final = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")
_MERGE_TAG: Final = "tag:yaml.org,2002:merge"
_NUMBER_TAGS: Final = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_MOST_VALUES: Final = 100_000


class _Loader(yaml.SafeLoader):
    """Reads `1:30` as the text it is in YAML 1.2, and not as 90, a number to base 60."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """The tag of a node."""
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return self.DEFAULT_SCALAR_TAG if tag in _NUMBER_TAGS and ":" in value else tag


def read_settings(
    path: Path, overrides: str | Iterable[str] = (), error: type[InputError] = InputError
) -> Section:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file.
        overrides: `key.subkey=value` texts that replace values; a value is itself YAML.
        error: the `InputError` subclass that problems are raised as.

    Raises:
        InputError: the file is missing, is no valid YAML, is no mapping, repeats a key, or holds
            more than `_MOST_VALUES` values.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise error(f"cannot read '{path}': {one_line(reason)}; give a readable file") from reason
    origins: dict[tuple[str, ...], Origin] = {(): Origin(str(path))}
    values = _parse(text, str(path), origins, error)
    if not isinstance(values, dict):
        raise error(f"{path} must hold a mapping (key: value), but holds {shown(values)}")
    for override in each(overrides):
        _override(values, override, origins, error)
    return Section(values, origins, (), error)


def _parse(
    text: str, source: str, origins: dict[tuple[str, ...], Origin], error: type[InputError]
) -> Any:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _values(node, {}) > _MOST_VALUES:
                raise error(
                    f"at most {_MOST_VALUES:,} values can be read, but '{source}' holds more, "
                    "those behind an alias each time it is used; write fewer"
                )
            return _construct(loader, node, source, (), origins, error)
        finally:
            loader.dispose()
    except InputError:
        raise
    except yaml.YAMLError as reason:
        mark = getattr(reason, "problem_mark", None)
        origin = Origin(source, None if mark is None else mark.line + 1)
        problem = getattr(reason, "problem", None) or one_line(reason)
        raise error(f"invalid YAML: {problem} ({origin}); correct it") from reason
    except (ValueError, RecursionError) as reason:
        raise error(f"invalid YAML: {one_line(reason)} ({source}); correct it") from reason


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values and keys a node has, those behind an alias each time it is used."""
    if id(node) not in known:
        below: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.SequenceNode):
            below = node.value
        elif isinstance(node, yaml.MappingNode):
            below = chain.from_iterable(node.value)
        known[id(node)] = 1 + sum(_values(part, known) for part in below)
    return known[id(node)]


def _construct(
    loader: yaml.SafeLoader,
    node: yaml.Node,
    source: str,
    path: tuple[str, ...],
    origins: dict[tuple[str, ...], Origin],
    error: type[InputError],
) -> Any:
    """Plain values of a node; the origin of every key and list item is noted on the way."""
    if isinstance(node, yaml.CollectionNode) and node.tag not in _PLAIN_TAGS:
        origin = Origin(source, node.start_mark.line + 1)
        raise error(f"values must be plain YAML, but hold '{node.tag}' ({origin}); remove the tag")
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            origins[(*path, str(index))] = Origin(source, item.start_mark.line + 1)
        return [
            _construct(loader, item, source, (*path, str(index)), origins, error)
            for index, item in enumerate(node.value)
        ]
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    _check_repeats(loader, node, source, error)
    loader.flatten_mapping(node)  # merged keys come first, and yield to the mapping's own
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node, deep=True))
        origins[(*path, key)] = Origin(source, key_node.start_mark.line + 1)
        result[key] = _construct(loader, value_node, source, (*path, key), origins, error)
    return result


def _check_repeats(
    loader: yaml.SafeLoader, node: yaml.MappingNode, source: str, error: type[InputError]
) -> None:
    seen: set[str] = set()
    for key_node, _ in node.value:
        if key_node.tag == _MERGE_TAG:
            continue
        key = str(loader.construct_object(key_node, deep=True))
        if key in seen:
            origin = Origin(source, key_node.start_mark.line + 1)
            raise error(f"key '{key}' must be given once, but is repeated ({origin}); remove one")
        seen.add(key)


def _override(
    values: dict[str, Any],
    text: str,
    origins: dict[tuple[str, ...], Origin],
    error: type[InputError],
) -> None:
    keys, raw = read_assignment(text, error)
    source = f"--set {'.'.join(keys)}"
    below: dict[tuple[str, ...], Origin] = {}
    put_value(values, keys, _parse(raw, source, below, error), error)
    origins[keys] = Origin(source)
    origins.update({keys + path: Origin(source) for path in below if path})
