"""A table of plain text, and the forms it is printed in: text, Markdown, HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from automl_compress.report.markdown_text import escape


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: what stands above it.
        kind: `number` aligns to the right, `label` and `text` to the left; only `text` wraps.
    """

    title: str
    kind: Literal["number", "label", "text"] = "number"


@dataclass(frozen=True)
class Table:
    """Rows of plain text; every form of output escapes what it must.

    Args:
        caption: what the table shows, in a few words.
        columns: the first one names the rows.
        rows: one cell a column.
    """

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_text(self) -> str:
        """Aligned plain text without a caption, for a terminal."""
        lines = [tuple(column.title for column in self.columns), *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        ruled = [lines[0], tuple("-" * width for width in widths), *lines[1:]]
        return "\n".join(self._text_line(line, widths) for line in ruled)

    def _text_line(self, line: tuple[str, ...], widths: list[int]) -> str:
        cells = [
            cell.rjust(width) if column.kind == "number" else cell.ljust(width)
            for cell, width, column in zip(line, widths, self.columns, strict=True)
        ]
        return "  ".join(cells).rstrip()

    def to_markdown(self) -> str:
        """A pipe table below its caption."""
        rules = ["---:" if column.kind == "number" else "---" for column in self.columns]
        titles = [escape(column.title) for column in self.columns]
        rows = [[escape(cell) for cell in row] for row in self.rows]
        lines = ["| " + " | ".join(line) + " |" for line in (titles, rules, *rows)]
        return "\n".join([f"*{escape(self.caption)}*", "", *lines])

    def to_html(self) -> str:
        """A table element in a region that scrolls sideways on narrow screens."""
        caption = html.escape(self.caption)
        head = "".join(
            f'<th scope="col" class="{column.kind}">{html.escape(column.title)}</th>'
            for column in self.columns
        )
        body = "\n".join(self._html_row(row) for row in self.rows)
        return (
            f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">\n'
            f"<table>\n<caption><span>{caption}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}\n</tbody>\n</table>\n</div>"
        )

    def _html_row(self, row: tuple[str, ...]) -> str:
        first, *others = zip(row, self.columns, strict=True)
        cells = [f'<th scope="row" class="{first[1].kind}">{html.escape(first[0])}</th>']
        cells += [f'<td class="{column.kind}">{html.escape(cell)}</td>' for cell, column in others]
        return f"<tr>{''.join(cells)}</tr>"


_BY_MARK: Final[Mapping[str, Literal["label", "text"]]] = {"<": "label", "~": "text"}


def columns_of(*titles: str) -> tuple[Column, ...]:
    """Columns of numbers; titles of labels begin with `<`, those of text with `~`."""
    return tuple(
        Column(title[1:], _BY_MARK[title[0]]) if title[0] in _BY_MARK else Column(title)
        for title in titles
    )
