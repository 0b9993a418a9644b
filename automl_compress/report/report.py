"""A study's report: read the folder, compute, draw, write."""

from __future__ import annotations

import os
from pathlib import Path

from automl_compress.errors import StudyError
from automl_compress.ledger import StudyResult, write_text
from automl_compress.report.audit_views import draw_audit
from automl_compress.report.content import build_document
from automl_compress.report.figures import draw_all
from automl_compress.report.html import to_html
from automl_compress.report.markdown import to_markdown
from automl_compress.report.recovered_figure import draw_recovered
from automl_compress.report.summary import Summary
from automl_compress.report.tables import NO_FRONT, terminal_table


def write_report(folder: str | Path | StudyResult) -> Path:
    """Write a study's report into its folder.

    Writes `evaluations.parquet`, `front.json`, `figures/*.svg`, `report.md` and `report.html`.
    The study may be running, interrupted or finished. The same study gives the same bytes.

    Args:
        folder: holds `run.json` and `ledger.sqlite`; of what a study returned it is the folder,
            which is read as it is now.

    Returns:
        The path of `report.html`.

    Raises:
        StudyError: a file is missing or broken, or the folder cannot be written.
    """
    result = StudyResult(folder)
    if not os.access(result.folder, os.W_OK):
        raise StudyError(
            f"a report is written into its study's folder, but '{result.folder}' cannot be "
            "written; correct its permissions or copy it elsewhere"
        )
    summary = Summary(result)
    recovered, audit = summary.recovered, summary.audit  # broken ones, before anything is drawn
    result.save(result.folder)
    drawings = draw_all(summary)
    if recovered:
        drawings["recovered"] = draw_recovered(summary)
    if audit is not None:
        drawings["audit"] = draw_audit(audit)
    (result.folder / "figures").mkdir(exist_ok=True)
    for drawing in drawings.values():
        write_text(result.folder / "figures" / f"{drawing.name}.svg", drawing.svg)
    document = build_document(summary, drawings)
    write_text(result.folder / "report.md", to_markdown(document))
    page = result.folder / "report.html"
    write_text(page, to_html(document))
    return page


def front_table(result: StudyResult) -> str:
    """The finalists on the test images as plain text, for a terminal.

    While there are no finalists, the merged front by its search estimates; without any network on
    it, a sentence that says so.
    """
    table = terminal_table(Summary(result))
    if not table.rows:
        return NO_FRONT
    return f"{table.caption}\n{table.to_text()}"
