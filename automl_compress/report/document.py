"""What a report is made of, whatever it is printed as."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from automl_compress.report.drawing import Drawing
from automl_compress.report.table import Table


@dataclass(frozen=True)
class Heading:
    """The title of a section; a document's own title has level 1."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """Plain sentences."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of short plain texts."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Text to copy, kept line by line."""

    text: str


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away below a summary."""

    summary: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Heading | Paragraph | Bullets | Code | Table | Drawing | Details


@dataclass(frozen=True)
class Document:
    """A whole report.

    Args:
        title: plain text.
        blocks: in reading order.
    """

    title: str
    blocks: tuple[Block, ...]
