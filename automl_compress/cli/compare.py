"""`automl-compress compare`: several studies of one problem beside each other."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from automl_compress.cli.options import add_command, add_json_option, write_file


def add_compare(subparsers: Any) -> None:
    """Add the command."""
    parser = add_command(
        subparsers, "compare", "compare studies: fronts, hypervolumes, which strategy found what"
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="the folders of two studies or more"
    )
    add_json_option(parser)
    parser.set_defaults(run=run_compare)


def run_compare(arguments: argparse.Namespace) -> int:
    """Print the comparison and write the file asked for."""
    from automl_compress.report.comparison import Comparison, comparison_tables

    comparison = Comparison(arguments.folders)
    tables = comparison_tables(comparison)
    print("\n\n".join(f"{table.caption}\n{table.to_text()}" for table in tables))
    if arguments.json is not None:
        write_file(arguments.json, json.dumps(comparison.document(), allow_nan=False) + "\n")
    return 0
