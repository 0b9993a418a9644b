"""Work done once: decoded images and trained weights, kept in the user's cache folder.

Decoded images are found in two steps. The signature of a folder (path, size and times of every
file) leads to a content key without reading a file; the content key (hash of the file bytes
and of how they are decoded) leads to the pixels. So an unchanged folder is never read again,
and a touched, copied or renamed one is read but not decoded.

Files are written beside their place and moved there, so that readers and writers of the same
entry may run at once. An entry that does not match its hash is made again. A cache that cannot
be written costs time, never the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from automl_compress.workload.images import ImageSet, Labels, Pixels, content_hash, label_bytes

_logger = logging.getLogger(__name__)

Row = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
"""One decoded image, (c, h, w) uint8."""


def cache_folder() -> Path:
    """`$AUTOML_COMPRESS_CACHE`, else `$XDG_CACHE_HOME/automl_compress`, else below `~/.cache`."""
    own = os.environ.get("AUTOML_COMPRESS_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "automl_compress"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` complete or not at all, who may read it as of any new file.

    Several may write it at once; who ends last is read.

    Raises:
        OSError: the folder cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with partial.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def store(name: str, content: bytes) -> None:
    """Keep a small file in the cache; a cache that cannot be written is only reported."""
    try:
        with replacing(cache_folder() / name) as file:
            file.write(content)
    except OSError as reason:
        _logger.warning("cannot write the cache folder %s (%s)", cache_folder(), reason)


@dataclass(frozen=True)
class ImageFiles:
    """Image files that are decoded together.

    Attributes:
        root: the folder they lie below.
        names: paths below `root`, with forward slashes, in the order of the images.
        labels: of the images, in order.
        settings: everything beside the bytes that decides the pixels.
    """

    root: Path
    names: tuple[str, ...]
    labels: Labels
    settings: str

    @property
    def paths(self) -> list[Path]:
        """The files themselves."""
        return [self.root / name for name in self.names]

    def signature(self) -> str:
        """Hash (hex) of where the files are and when they changed; reads no file."""
        digest = self._digest(os.fsencode(self.root.absolute()))
        for name, path in zip(self.names, self.paths, strict=True):
            stat = path.stat()
            times = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
            digest.update(os.fsencode(name) + f"\0{times}\0".encode())
        return digest.hexdigest()

    def content_key(self) -> str:
        """Hash (hex) of names, bytes and labels of all files and of the settings."""
        digest = self._digest(b"")
        for name, path in zip(self.names, self.paths, strict=True):
            digest.update(os.fsencode(name) + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        digest.update(label_bytes(self.labels))
        return digest.hexdigest()

    def _digest(self, place: bytes) -> hashlib._Hash:
        return hashlib.sha256(f"{self.settings}\0{len(self.names)}\0".encode() + place + b"\0")


def cached_images(files: ImageFiles, decode: Callable[[Sequence[Path]], Iterable[Row]]) -> ImageSet:
    """Decoded images, from the cache if it holds them.

    Args:
        files: what to decode.
        decode: gives the (c, h, w) uint8 images of paths in order, all of one shape.

    Returns:
        The images, mapped read-only from the cache, or in memory if it cannot be written.

    Raises:
        WorkloadError: from `decode`.
        OSError: an image file cannot be read.
    """
    link = cache_folder() / f"{files.signature()}.key"
    known = _text(link)
    found = _open(known, files.labels) if known else None
    if found is not None:
        return found
    key = files.content_key()
    found = _open(key, files.labels) if key != known else None
    if found is None:
        found = _decode_into_cache(files, key, decode)
    if known != key and isinstance(found.images, np.memmap):
        store(link.name, key.encode())
    return found


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    return text if len(text) == 64 and text.isalnum() else ""


def _open(key: str, labels: Labels) -> ImageSet | None:
    """The entry of a content key, or None if it is absent or damaged."""
    pixels, note = cache_folder() / f"{key}.npy", cache_folder() / f"{key}.json"
    try:
        expected = json.loads(note.read_text(encoding="utf-8"))["content_hash"]
        images = np.load(pixels, mmap_mode="r", allow_pickle=False)
        if images.dtype == np.uint8 and images.ndim == 4 and len(images) == len(labels):
            # The whole entry is hashed: 0.1 s for the 50,000 images of CIFAR.
            actual = content_hash(images, labels)
            if actual == expected:
                return ImageSet(images, labels, actual)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        pass
    _logger.warning("cache entry %s cannot be used; it is made again", pixels)
    return None


def _decode_into_cache(
    files: ImageFiles, key: str, decode: Callable[[Sequence[Path]], Iterable[Row]]
) -> ImageSet:
    _logger.info("decoding %d images below %s", len(files.names), files.root)
    pixels = cache_folder() / f"{key}.npy"
    try:
        with replacing(pixels) as file:
            _write(file, len(files.names), decode(files.paths))
        images: Pixels = np.load(pixels, mmap_mode="r", allow_pickle=False)
    except OSError as reason:
        _logger.warning(
            "cannot write the cache folder %s (%s); images are decoded into memory and again "
            "in the next run; set AUTOML_COMPRESS_CACHE to a writable folder",
            cache_folder(),
            reason,
        )
        return ImageSet.of(np.stack(list(decode(files.paths))), files.labels)
    found = ImageSet.of(images, files.labels)
    store(f"{key}.json", json.dumps({"content_hash": found.content_hash}).encode())
    return found


def _write(file: BinaryIO, count: int, rows: Iterable[Row]) -> None:
    """Write an .npy file row by row, so that a set larger than the memory can be decoded."""
    for position, row in enumerate(rows):
        if position == 0:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *row.shape)}
            np.lib.format.write_array_header_1_0(file, header)
        file.write(np.ascontiguousarray(row).data)
