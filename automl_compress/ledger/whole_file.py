"""Writing a study's files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(path.name + ".part")
    with naming(path):
        with partial.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors name a file: the system says which where it cannot be opened, not where it is full."""
    try:
        yield
    except OSError as reason:
        if reason.filename is None:
            reason.filename = str(path)
        raise
