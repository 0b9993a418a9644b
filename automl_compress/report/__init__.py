"""Reports of studies: statistics, figures, tables, Markdown and self-contained HTML."""

from automl_compress.report.pick import Pick, pick_network
from automl_compress.report.replay import compare_curves, curves_caption, curves_table
from automl_compress.report.report import front_table, write_report
from automl_compress.report.scores import ContestantScores, contestant_scores

__all__ = [
    "ContestantScores",
    "Pick",
    "compare_curves",
    "contestant_scores",
    "curves_caption",
    "curves_table",
    "front_table",
    "pick_network",
    "write_report",
]
