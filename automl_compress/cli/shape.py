"""Shapes as words of a command."""

from __future__ import annotations

import math
from typing import Final

from automl_compress.errors import InputError

MOST_VALUES: Final = 2**28


def read_shape(text: str | None) -> tuple[int, ...] | None:
    """The numbers of `3,32,32`, or of any other shape of an example; None where nothing is said.

    Raises:
        InputError: it is no shape.
    """
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--input-shape must be like 3,32,32, but is '{text}'; correct it")
    shape = tuple(int(part) for part in parts)
    if math.prod(shape) > MOST_VALUES:
        raise InputError(
            f"--input-shape must come to at most {MOST_VALUES} values, but is '{text}'; give the "
            "size of one input"
        )
    return shape
