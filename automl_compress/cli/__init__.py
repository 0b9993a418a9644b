"""The command line: parse, build, call, print."""

from automl_compress.cli.main import main

__all__ = ["main"]
