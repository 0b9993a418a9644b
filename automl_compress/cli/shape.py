"""Shapes as words of a command."""

from __future__ import annotations

from automl_compress.errors import InputError


def read_shape(text: str | None) -> tuple[int, ...] | None:
    """The numbers of `3,32,32`; None where nothing is said.

    Raises:
        InputError: it is no shape.
    """
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise InputError(f"--input-shape must be like 3,32,32, but is '{text}'; correct it")
    return tuple(int(part) for part in parts)
