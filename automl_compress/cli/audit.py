"""`automl-compress audit`: whether a study's estimates rank policies as training does."""

from __future__ import annotations

import argparse
import json
from typing import Any, Final

from automl_compress.cli.commands import engine_changes
from automl_compress.cli.options import (
    add_command,
    add_device_option,
    add_folder,
    add_json_option,
    add_overrides_option,
    write_file,
)
from automl_compress.cli.progress import RungProgress
from automl_compress.errors import InputError
from automl_compress.settings import suggestion

DEFAULT_POLICIES: Final = 40


def add_audit(subparsers: Any) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "audit",
        "compare a study's cheap estimates with the quality after brief training",
    )
    add_folder(parser)
    parser.add_argument(
        "--policies",
        type=int,
        default=DEFAULT_POLICIES,
        metavar="N",
        help=f"how many are trained; default: {DEFAULT_POLICIES}",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="of each training; default: 200")
    add_device_option(parser)
    add_overrides_option(parser, "a setting of the training, such as rate=0.01 or batch=64")
    parser.add_argument(
        "--repair",
        action="append",
        default=[],
        metavar="NAME",
        dest="repairs",
        help="also estimate with this repair, such as none; may be given several times",
    )
    parser.add_argument(
        "--short",
        action="append",
        type=int,
        default=[],
        metavar="N",
        help="also estimate by a training of so few steps; may be given several times",
    )
    parser.add_argument(
        "--twice",
        action="store_true",
        help="train every policy twice and rank by the mean, which also tells what noise hides",
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="measure and train so many at a time, on Ray"
    )
    parser.add_argument(
        "--address", metavar="ADDRESS", help="of a running Ray cluster: HOST:PORT or auto; or local"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of all that is drawn; default: 0"
    )
    add_json_option(parser)
    parser.set_defaults(run=run_audit)


def run_audit(arguments: argparse.Namespace) -> int:
    """Audit a study, print what was found and write its report again."""
    from automl_compress.compress import REPAIRS
    from automl_compress.engine.audit import AuditSettings, audit_study
    from automl_compress.engine.trained import TrainSettings
    from automl_compress.ledger import StudyResult
    from automl_compress.recover import section_of
    from automl_compress.report import write_report
    from automl_compress.report.audit import audit_verdict, read_audit
    from automl_compress.report.audit_views import audit_table

    for repair in arguments.repairs:
        if repair not in REPAIRS:
            raise InputError(
                f"--repair must be one of {', '.join(REPAIRS)}, but is '{repair}'"
                f"{suggestion(repair, REPAIRS)}; correct it"
            )
    options = {"steps": arguments.steps, "device": arguments.device}
    stated = [f"{key}={value}" for key, value in options.items() if value is not None]
    boxed = StudyResult(arguments.folder).manifest.workload.get("task") == "detection"
    train = TrainSettings.from_section(section_of([*stated, *arguments.overrides]), boxed)
    settings = AuditSettings(
        arguments.policies,
        train,
        tuple(dict.fromkeys(arguments.repairs)),
        tuple(dict.fromkeys(arguments.short)),
        arguments.twice,
        arguments.seed,
    )
    changes = engine_changes(arguments.workers, arguments.address)
    print(f"auditing {arguments.folder} with {settings.policies} policies ...", flush=True)
    document = audit_study(arguments.folder, settings, RungProgress(), **changes)
    if arguments.json is not None:
        write_file(arguments.json, json.dumps(document, allow_nan=False) + "\n")
    page = write_report(arguments.folder)
    result = StudyResult(arguments.folder)
    audit = read_audit(arguments.folder, result.manifest.fingerprints)
    assert audit is not None
    table = audit_table(audit)
    print(f"\n{table.caption}\n{table.to_text()}\n\n{audit_verdict(audit)}\nreport: {page}")
    return 0
