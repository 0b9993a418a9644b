"""A report as Markdown, beside its figures."""

from __future__ import annotations

import re

from automl_compress.report.document import (
    Block,
    Bullets,
    Code,
    Details,
    Document,
    Heading,
    Paragraph,
)
from automl_compress.report.drawing import Drawing
from automl_compress.report.markdown_text import escape
from automl_compress.report.table import Table


def to_markdown(document: Document) -> str:
    """The text of `report.md`; figures are linked as `figures/NAME.svg`."""
    blocks = [Heading(document.title, 1), *document.blocks]
    return "\n\n".join(_block(block) for block in blocks) + "\n"


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {escape(text)}"
        case Paragraph(text):
            return escape(text)
        case Bullets(items):
            return "\n".join(f"- {escape(item)}" for item in items)
        case Code(text):
            fence = _fence(text)
            return f"{fence}\n{text}\n{fence}"
        case Table():
            return block.to_markdown()
        case Drawing():
            return f"![{escape(block.alt)}](figures/{block.name}.svg)\n\n*{escape(block.caption)}*"
        case Details(summary, blocks):
            inner = "\n\n".join(_block(part) for part in blocks)
            return f"<details><summary>{escape(summary)}</summary>\n\n{inner}\n\n</details>"


def _fence(text: str) -> str:
    """A fence longer than any run of backticks in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
