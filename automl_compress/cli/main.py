"""Entry point: commands, their arguments, and what errors mean to a shell.

Exit codes: 0 done; 1 the run failed; 2 the input is wrong, one line on stderr says what, where
and the remedy; 130 interrupted, by Ctrl-C or SIGTERM, with the state saved.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from automl_compress.cli import commands
from automl_compress.cli.audit import add_audit
from automl_compress.cli.bench import add_bench
from automl_compress.cli.compare import add_compare
from automl_compress.cli.options import (
    add_command,
    add_folder,
    add_json_option,
    add_list_option,
    add_markdown_option,
    add_model,
    add_overrides_option,
    add_race_options,
    add_shape_option,
)
from automl_compress.cli.replay import ReplayRequest, run_replay
from automl_compress.cli.training_commands import add_recover, add_sparsify, add_train
from automl_compress.errors import CompressError, InputError, InterruptedStudy


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave with 2."""
        line = " ".join(message.split())
        print(f"{self.prog}: {line}; see '{self.prog} --help'", file=sys.stderr)
        raise SystemExit(2)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="automl-compress",
        description="Search for the best smaller networks: strategies side by side, one ledger, "
        "a Pareto report.",
        epilog="'automl-compress COMMAND --help' says what a command takes. The place to begin: "
        "automl-compress search sweeps/quickstart.yaml --open",
    )
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument("--version", action="version", version=commands.version())
    subparsers = parser.add_subparsers(
        dest="command", required=True, parser_class=_Parser, title="commands", metavar="COMMAND"
    )
    _add_search(subparsers)
    _add_resume(subparsers)
    _add_extend(subparsers)
    _add_report(subparsers)
    add_compare(subparsers)
    add_recover(subparsers)
    _add_export(subparsers)
    _add_pipeline(subparsers)
    add_train(subparsers)
    add_sparsify(subparsers)
    _add_space(subparsers)
    add_audit(subparsers)
    _add_replay(subparsers)
    add_bench(subparsers)
    doctor = add_command(subparsers, "doctor", "check this installation and machine")
    doctor.set_defaults(run=lambda _: commands.doctor())
    for subparser in subparsers.choices.values():
        subparser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks"
        )
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers", type=int, metavar="N", help="networks to evaluate at a time, on Ray"
    )
    parser.add_argument(
        "--address", metavar="ADDRESS", help="of a running Ray cluster: HOST:PORT or auto; or local"
    )
    parser.add_argument(
        "--open", action="store_true", help="open the report in a browser when it is done"
    )


def _add_sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", type=Path, metavar="SWEEP.yaml", help="states the study")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="the study's folder; default: results/<study>"
    )
    add_overrides_option(parser, "override a key of the sweep file, such as budget.evaluations=50")
    _add_engine_options(parser)


def _add_pipeline(subparsers: Any) -> None:
    parser = add_command(
        subparsers,
        "pipeline",
        "run all stages of a sweep file, from sparsity training to exported files",
    )
    _add_sweep(parser)
    parser.set_defaults(
        run=lambda a: commands.pipeline(
            a.sweep, a.out, a.overrides, a.workers, a.address, open_report=a.open
        )
    )


def _add_search(subparsers: Any) -> None:
    parser = add_command(subparsers, "search", "run the study of a sweep file")
    _add_sweep(parser)
    parser.set_defaults(
        run=lambda a: commands.search(
            a.sweep, a.out, a.overrides, a.workers, a.address, open_report=a.open
        )
    )


def _add_resume(subparsers: Any) -> None:
    parser = add_command(subparsers, "resume", "go on with an interrupted study")
    add_folder(parser)
    parser.add_argument(
        "--retry-failed",
        action="store_true",
        help="evaluations that failed are tried again, of a finished study too",
    )
    _add_engine_options(parser)
    parser.set_defaults(
        run=lambda a: commands.resume(
            *(a.folder, a.workers, a.address), retry_failed=a.retry_failed, open_report=a.open
        )
    )


def _add_extend(subparsers: Any) -> None:
    parser = add_command(
        subparsers, "extend", "go on with a finished study, by more evaluations or another strategy"
    )
    add_folder(parser)
    parser.add_argument(
        "--evaluations", type=int, default=0, metavar="N", help="how many more for every contestant"
    )
    parser.add_argument(
        "--strategy",
        action="append",
        default=[],
        metavar="NAME",
        dest="strategies",
        help="registered or package.module:callable; competes from now on, with the same budget "
        "and seeds; may be given several times",
    )
    _add_engine_options(parser)
    parser.set_defaults(
        run=lambda a: commands.extend(
            *(a.folder, a.evaluations, a.strategies, a.workers, a.address), open_report=a.open
        )
    )


def _add_report(subparsers: Any) -> None:
    parser = add_command(subparsers, "report", "write the report of a study again")
    add_folder(parser)
    parser.add_argument("--open", action="store_true", help="open the report in a browser")
    parser.set_defaults(run=lambda a: commands.report(a.folder, open_report=a.open))


def _add_export(subparsers: Any) -> None:
    parser = add_command(subparsers, "export", "write a network of a study into a file")
    add_folder(parser)
    parser.add_argument(
        "--pick",
        required=True,
        metavar="RULE",
        dest="rule",
        help="knee, point:ID, or limits such as 'size<=200kB,macs<=0.5x' or 'accuracy>=0.92', of "
        "detectors 'map50>=0.7'; all but point:ID also keep the study's constraints as tested",
    )
    parser.add_argument(
        "--format",
        default="packed",
        metavar="FORMAT",
        dest="format_name",
        help="packed: weights at their bits; onnx: integers for ONNX Runtime; torch: a plain "
        "state dict (default: packed)",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="where to write it"
    )
    parser.add_argument(
        "--recovered", action="store_true", help="write the network as 'recover' trained it"
    )
    parser.add_argument(
        "--raw", action="store_true", help="write a detector to ONNX without its post-processing"
    )
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.set_defaults(
        run=lambda a: commands.export(
            *(a.folder, a.rule, a.format_name, a.output),
            recovered=a.recovered,
            raw=a.raw,
            force=a.force,
        )
    )


def _add_space(subparsers: Any) -> None:
    parser = add_command(subparsers, "space", "derive a search space from a network, for editing")
    add_model(parser)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="where to write it"
    )
    add_shape_option(parser)
    parser.add_argument("--force", action="store_true", help="replace an existing file")
    parser.set_defaults(
        run=lambda a: commands.space(a.model, a.output, a.input_shape, force=a.force)
    )


def _add_replay(subparsers: Any) -> None:
    parser = add_command(
        subparsers, "replay", "race strategies on a recorded table or a study's ledger"
    )
    parser.add_argument(
        "table",
        type=Path,
        metavar="TABLE|DIR",
        help=".csv or .parquet of a search space or a part of one, or the folder of a study",
    )
    add_list_option(
        parser, "--strategies", "NAME", "shipped or package.module:callable; default: all shipped"
    )
    add_race_options(parser)
    add_json_option(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="race only the strategies that the file of --json lacks",
    )
    add_markdown_option(parser)
    parser.set_defaults(
        run=lambda a: run_replay(
            ReplayRequest(
                *(a.table, a.strategies, a.seeds, a.budget, a.objectives, a.constraints),
                *(a.columns, a.genes, a.json, a.resume, a.markdown),
            )
        )
    )


def _open_streams() -> None:
    """Writing must not fail where streams are closed, or know fewer letters than reports have."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: words after the program's name; those of this process when not given.

    Returns:
        The exit code.
    """
    _open_streams()
    with _stopped_by_sigterm():
        return _run(arguments)


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """What schedulers and containers send before they kill has the effect of Ctrl-C inside."""

    def stop(_: int, frame: FrameType | None) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # ignored, as where a shell starts it in the background
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        parsed = _parser().parse_args(arguments)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 2
    try:
        code: int = parsed.run(parsed)
    except (Exception, KeyboardInterrupt) as reason:
        return _failed(reason, parsed)
    return code


def _failed(reason: BaseException, parsed: argparse.Namespace) -> int:
    """Say why a command failed, in one line; returns the exit code."""
    if isinstance(reason, BrokenPipeError):  # nobody reads on
        return 1
    if isinstance(reason, KeyboardInterrupt):
        return _told("stopped before anything was written", 130)
    if parsed.debug:
        traceback.print_exception(reason)
    if isinstance(reason, CompressError):
        codes = ((InterruptedStudy, 130), (InputError, 2), (CompressError, 1))
        return _told(str(reason), next(code for kind, code in codes if isinstance(reason, kind)))
    if isinstance(reason, OSError):
        place = reason.filename or getattr(parsed, "folder", None)
        where = f": '{place}'" if place else ""
        return _told(
            f"files must be readable and writable, but {reason.strerror or reason}{where}; "
            "free space or correct its permissions, then run again",
            1,
        )
    return _told(
        f"unexpected {type(reason).__name__}: {reason}; run again with --debug and report it", 1
    )


def _told(message: str, code: int) -> int:
    """Print a message on one line of stderr; returns the code."""
    print(f"automl-compress: {' '.join(message.split())}", file=sys.stderr)
    return code
