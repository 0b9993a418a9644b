"""Studies that are extended, by evaluations or by strategies, or try again what failed.

Contestants walk through their rounds again from the first one, answered by the ledger, so that an
extended study has the evaluations it would have had if it had been stated so from its start: also
where the old budget cut a round short, and of strategies that look at what is left of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from automl_compress.engine.config import StudyConfig, config_of_mapping
from automl_compress.engine.restore import stated_config
from automl_compress.errors import StudyError
from automl_compress.ledger import LEDGER, Ledger, Manifest
from automl_compress.settings import as_stated, each, shown
from automl_compress.workload import Workload


def extended_config(
    folder: Path,
    manifest: Manifest,
    evaluations: int,
    strategies: str | Sequence[str],
    workload: Workload | None = None,
) -> StudyConfig:
    """The settings of a study that goes on beyond its end.

    Args:
        folder: the study's.
        manifest: of a finished study.
        evaluations: how many more each contestant is charged; 0 or more.
        strategies: one, or several, who compete besides those that did.
        workload: given again, where the study was given a loaded one.

    Raises:
        StudyError: the study is not finished, nothing would be added, or a strategy is unknown
            or takes part already.
    """
    if manifest.status != "finished":
        raise StudyError(
            f"only a finished study can be extended, but '{folder}' is {manifest.status}; run "
            f"'resume {folder}' first"
        )
    counted, strategies = as_stated(evaluations), each(strategies)
    if not isinstance(counted, int) or counted < 0 or not (counted or strategies):
        raise StudyError(
            "a study must be extended by evaluations, at least 1, or by a strategy, but there are "
            f"{shown(evaluations)} evaluations and {len(strategies)} strategies; give more of "
            "either"
        )
    config = stated_config(manifest, workload)
    if again := sorted(set(strategies) & set(config.strategies)):
        raise StudyError(
            f"a study must be extended by strategies that it lacks, but '{again[0]}' takes part "
            "already; give another, or more evaluations"
        )
    settings = {
        **manifest.config,
        **({} if workload is None else {"workload": workload}),
        "budget": {"evaluations": manifest.budget + counted},
        "strategies": [*config.strategies, *strategies],
    }
    return config_of_mapping(settings, config.base)


def reopen(folder: Path, manifest: Manifest, *, failures: bool = False) -> None:
    """Take a study back to its start; what was measured stays in its ledger.

    Killed between these lines, it is an interrupted study that `resume` brings to its old end.

    Args:
        folder: the study's.
        manifest: its own.
        failures: whether evaluations that failed go, so that they are tried again.
    """
    replace(manifest, status="interrupted", finalists=()).write(folder)
    with Ledger(folder / LEDGER) as ledger:
        ledger.forget_charges(failures=failures)
