"""Options that several commands share, and the files those name.

What a command writes at its end is checked when its words are read: a measurement of an hour must
not be lost because a file cannot be written. Folders that are missing are made.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from automl_compress.errors import InputError


def add_command(commands: Any, name: str, what: str) -> Any:
    """Add a command; its own help begins with what the list of commands says of it.

    Args:
        commands: what `add_subparsers` gave.
        name: the command's.
        what: it does, a phrase without a full stop.

    Returns:
        Its parser.
    """
    return commands.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")


def add_folder(parser: Any) -> None:
    """Add `DIR`, the folder of a study."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a study's folder")


def add_model(parser: Any) -> None:
    """Add `MODEL`, the name of a network."""
    parser.add_argument("model", metavar="MODEL", help="a shipped name or package.module:factory")


def add_device_option(parser: Any) -> None:
    """Add `--device NAME`."""
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N")


def add_overrides_option(parser: Any, what: str) -> None:
    """Add `--set KEY=VALUE`.

    Args:
        parser: of a command.
        what: the help's line.
    """
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides", help=what
    )


def add_list_option(parser: Any, flag: str, metavar: str, what: str) -> None:
    """Add an option of several words that may be given several times.

    Args:
        parser: of a command.
        flag: the option, such as `--models`.
        metavar: one of its words.
        what: the help's line.
    """
    parser.add_argument(flag, nargs="+", action="extend", metavar=metavar, default=[], help=what)


def add_json_option(parser: Any) -> None:
    """Add `--json FILE`, which every command that measures takes."""
    parser.add_argument(
        "--json", type=file_to_write, metavar="FILE", help="also write the results as JSON"
    )


def add_race_options(parser: Any) -> None:
    """Add what a race on a recorded table is told: its length, its aims, the table's columns."""
    parser.add_argument(
        "--seeds", type=int, default=10, metavar="N", help="races of each contestant; default: 10"
    )
    parser.add_argument(
        "--budget", type=int, default=100, metavar="N", help="evaluations of a race; default: 100"
    )
    add_list_option(parser, "--objectives", "NAME", "what is minimised; default: all recorded")
    add_list_option(parser, "--constraints", "TEXT", "what must hold, such as 'macs <= 0.5x'")
    add_list_option(
        parser, "--columns", "METRIC=COLUMN", "columns of metrics, such as accuracy=test_accuracy"
    )
    add_list_option(
        parser,
        "--genes",
        "COLUMN",
        "columns of genes, where they are not named KIND:TARGET; they hold numbers or words",
    )


def add_shape_option(parser: Any) -> None:
    """Add `--input-shape C,H,W`, see `shape.read_shape`."""
    parser.add_argument(
        "--input-shape",
        metavar="C,H,W",
        help="of an example, also 6,128 or 20, for networks that are not shipped",
    )


def add_markdown_option(parser: Any) -> None:
    """Add `--markdown FILE`."""
    parser.add_argument(
        "--markdown", type=file_to_write, metavar="FILE", help="also write the table as Markdown"
    )


def add_page_option(parser: Any, default: str | None = None) -> None:
    """Add `-o DIR`, the folder of a page.

    Args:
        parser: of a command.
        default: a folder; None writes no page unless asked.
    """
    what = "folder of a page that is written too"
    if default is not None:
        what = f"folder of the page; default: {default}"
    parser.add_argument(
        "-o", "--output", type=folder_to_write, default=default, metavar="DIR", help=what
    )


def file_to_write(text: str) -> Path:
    """A file's path, once it is seen that it can be written, its folder too where it is missing.

    Raises:
        argparse.ArgumentTypeError: it cannot.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file, but '{path}' is a folder; add a name")
    if hindrance := _hindrance(path.parent):
        raise argparse.ArgumentTypeError(
            f"must lie in a folder that can be written, but '{hindrance}' is none; give another"
        )
    if path.exists() and not os.access(path, os.W_OK):
        raise argparse.ArgumentTypeError(f"must be writable, but '{path}' is not; give another")
    return path


def folder_to_write(text: str) -> Path:
    """A folder's path, once it is seen that it exists or can be made.

    Raises:
        argparse.ArgumentTypeError: it cannot.
    """
    path = Path(text)
    if hindrance := _hindrance(path):
        raise argparse.ArgumentTypeError(
            f"must be a folder that can be written, but '{hindrance}' is none; give another"
        )
    return path


def _hindrance(folder: Path) -> Path | None:
    """What keeps a folder from being written or made; None where nothing does."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return None if nearest.is_dir() and os.access(nearest, os.W_OK) else nearest


def check_output(output: Path, *, force: bool) -> None:
    """Check that `-o FILE` can be written, its folder too where it is missing.

    Args:
        output: the file.
        force: whether an existing file is replaced.

    Raises:
        InputError: it cannot, or it exists.
    """
    if output.is_dir():
        raise InputError(f"-o must be a file, but '{output}' is a folder; add a name")
    if output.exists() and not force:
        raise InputError(f"-o must not exist yet, but '{output}' does; give --force to replace it")
    if hindrance := _hindrance(output.parent):
        raise InputError(
            f"-o must lie in a folder that can be written, but '{hindrance}' is none; give another"
        )


def write_file(path: Path, text: str) -> None:
    """Write what a command was asked to write; its folder is made where it is missing.

    Raises:
        InputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as reason:
        raise InputError(
            f"'{path}' must be a file that can be written, but is not: {reason.strerror}; "
            "give another"
        ) from reason
