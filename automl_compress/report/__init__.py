"""Reports of studies: statistics, figures, tables, Markdown and self-contained HTML."""

from automl_compress.report.report import front_table, write_report
from automl_compress.report.scores import ContestantScores, contestant_scores

__all__ = ["ContestantScores", "contestant_scores", "front_table", "write_report"]
