"""One process at a time writes to a study's folder; any number may read it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Final

from automl_compress.errors import StudyError

LOCK: Final = ".lock"
_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
"""Folders whose lock is held by who calls; a pipeline searches in the folder that it holds."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a study's folder; the system frees the lock of a dead one.

    Args:
        folder: the study's, which exists.

    Raises:
        StudyError: another process, or another thread, holds it, or it cannot be written or locked.
    """
    place = folder.resolve()
    if place in _HELD.get():
        yield
        return
    with _lock_file(folder) as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as reason:
            raise StudyError(
                f"a study must run once at a time, but another process runs '{folder}'; "
                "wait for it or stop it"
            ) from reason
        except OSError as reason:  # as on Lustre and NFS that are mounted without them
            raise StudyError(
                f"a study's folder must be on a file system that locks files, but that of "
                f"'{folder}' does not ({reason.strerror}); choose a folder on another, or mount it "
                "with locks"
            ) from reason
        token = _HELD.set(_HELD.get() | {place})
        try:
            yield
        finally:
            _HELD.reset(token)


def _lock_file(folder: Path) -> IO[str]:
    try:
        return (folder / LOCK).open("a")
    except OSError as reason:
        raise StudyError(
            f"a study's folder must be writable to go on with it, but '{folder}' is not "
            f"({reason.strerror}); correct its permissions or copy it"
        ) from reason
