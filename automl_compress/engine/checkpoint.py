"""Saving a contestant's state: JSON for its shape, arrays beside it. Nothing is pickled."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from automl_compress.search import State

_ARRAY = "__array__"


def save_state(path: Path, state: State) -> None:
    """Write a state whole or not at all.

    Args:
        path: an `.npz` file.
        state: nested dicts with text keys, lists, numbers, texts, None and arrays.
    """
    arrays: list[np.ndarray[Any, Any]] = []
    text = json.dumps(_without_arrays(state, arrays))
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as stream:
        named = {f"array{place}": array for place, array in enumerate(arrays)}
        np.savez(stream, structure=np.array(text), **named)  # type: ignore[arg-type]
    partial.replace(path)


def load_state(path: Path) -> State:
    """Read a state that `save_state` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        state: State = _with_arrays(json.loads(str(stored["structure"])), stored)
    return state


def _without_arrays(value: Any, arrays: list[np.ndarray[Any, Any]]) -> Any:
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {_ARRAY: len(arrays) - 1}
    if isinstance(value, dict):
        return {key: _without_arrays(item, arrays) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_arrays(item, arrays) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _with_arrays(value: Any, stored: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return stored[f"array{value[_ARRAY]}"]
        return {key: _with_arrays(item, stored) for key, item in value.items()}
    return [_with_arrays(item, stored) for item in value] if isinstance(value, list) else value
