"""Files of tensors: written whole or not at all, and refused in one line when they are not."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import safetensors.torch
from torch import Tensor

from automl_compress.errors import DeployError
from automl_compress.settings import one_line
from automl_compress.workload import replacing

_KEY: Final = "automl_compress"
"""The one entry of the files' metadata; of several, safetensors keeps no order."""
_DIGITS: Final = 9
"""Of a version, at most."""


def write_file(
    path: Path, tensors: Mapping[str, Tensor], kind: str, version: int, words: Mapping[str, Any]
) -> int:
    """Write a safetensors file.

    Args:
        path: replaced if it exists; missing folders are made.
        tensors: contiguous, each in memory of its own.
        kind: the file's format.
        version: of that format.
        words: what else its metadata say, JSON.

    Returns:
        Bytes on disk.

    Raises:
        DeployError: it cannot be written.
    """
    text = json.dumps({"format": kind, "version": version, **words}, separators=(",", ":"))
    return _write(path, [safetensors.torch.save(dict(tensors), {_KEY: text})])


def write_stream(path: Path, parts: Sequence[bytes], kind: str, version: int) -> int:
    """Write a safetensors file of one byte tensor, whose name says format and version.

    Nothing takes fewer bytes: metadata would be 50 to 100 more, and the library pads its headers.

    Args:
        path: replaced if it exists; missing folders are made.
        parts: the tensor's bytes, one part after the other.
        kind: the file's format.
        version: of that format.

    Returns:
        Bytes on disk.

    Raises:
        DeployError: it cannot be written.
    """
    size = sum(map(len, parts))
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({f"{kind}.{version}": tensor}, separators=(",", ":")).encode()
    return _write(path, [len(header).to_bytes(8, "little"), header, *parts])


def _write(path: Path, parts: Sequence[bytes]) -> int:
    try:
        with replacing(path) as stream:
            stream.writelines(parts)
    except OSError as reason:
        raise DeployError(
            f"'{path}' must be writable, but is not: {one_line(reason)}; choose another place"
        ) from reason
    return sum(map(len, parts))


def read_file(path: Path, kind: str, version: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors of a file that `write_file` or `write_stream` wrote.

    Args:
        path: the file.
        kind: the format it must have.
        version: of that format, which it must have too.

    Raises:
        DeployError: it is missing, damaged, of another version or of another kind.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            names = list(file.keys())
            text = (file.metadata() or {}).get(_KEY)
            words = _named(names) if text is None else _words(path, text)
            _check_format(path, words, kind, version)
            return words, {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as reason:
        raise DeployError(f"a file must exist, but '{path}' does not; correct the path") from reason
    except (OSError, safetensors.SafetensorError) as reason:
        raise damaged(path, one_line(reason)) from reason


def _named(names: list[str]) -> dict[str, Any]:
    """Format and version where the name of the one tensor says them."""
    kind, dot, version = names[0].partition(".") if len(names) == 1 else ("", "", "")
    known = dot and version.isdecimal() and len(version) <= _DIGITS
    return {"format": kind, "version": int(version)} if known else {}


def _words(path: Path, text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as reason:
        raise damaged(path, "its metadata are no JSON") from reason


def _check_format(path: Path, words: Mapping[str, Any], kind: str, version: int) -> None:
    found, its_version = words.get("format", "unknown"), words.get("version")
    if found != kind:
        raise DeployError(
            f"the format of '{path}' must be '{kind}', but is '{found}'; give a file that was "
            "exported in this format"
        )
    if not isinstance(its_version, int):
        raise damaged(path, "it has no version")
    if its_version > version:
        raise DeployError(
            f"the version of '{path}' must be at most {version}, but is {its_version}; "
            "use a newer automl-compress"
        )
    if its_version < version:
        raise DeployError(
            f"the version of '{path}' must be {version}, but is {its_version}; export it again "
            "with this automl-compress"
        )


def damaged(path: Path, what: str) -> DeployError:
    """The error that says a file cannot be read."""
    return DeployError(
        f"'{path}' must be a whole safetensors file, but cannot be read ({what}); "
        "copy or export it again"
    )
