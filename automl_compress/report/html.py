"""A report as one HTML file that opens offline: inline style, inline figures, no scripts."""

from __future__ import annotations

from html import escape
from string import Template
from typing import Final

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
from automl_compress.report.table import Table

_STYLE: Final = """\
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #59636e; --paper: #ffffff;
  --line: #d1d9e0; --band: #f3f5f7; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #9aa5b1; --paper: #14181d; --line: #39424c; --band: #1d232a;
    --link: #7db8f5; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; }
main { max-width: 78rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .5rem; }
p, ul { max-width: 48rem; margin: .6rem 0; overflow-wrap: anywhere; }
nav ul { list-style: none; max-width: none; padding: 0; display: flex; flex-wrap: wrap;
  gap: .25rem 1.25rem; }
a { color: var(--link); }
.scroll { overflow-x: auto; margin: 1rem 0; }
.scroll:focus-visible { outline: 2px solid var(--link); }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 0 0 .4rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2rem); }
th, td { padding: .3rem .45rem; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody tr:nth-child(even) { background: var(--band); }
tbody th { font-weight: 600; }
.text { text-align: left; min-width: 7rem; max-width: 40rem; overflow-wrap: anywhere; }
.label { text-align: left; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
thead .number { white-space: normal; }
figure { margin: 1.5rem 0; }
figure .card { overflow-x: auto; background: #ffffff; border: 1px solid var(--line);
  border-radius: 6px; padding: .5rem; }
figure svg { display: block; width: 100%; min-width: 36rem; max-width: 60rem; height: auto;
  margin: 0 auto; }
figcaption { color: var(--soft); font-size: .875rem; max-width: 48rem; margin-top: .4rem; }
details { margin: .75rem 0; }
summary { cursor: pointer; }
pre { background: var(--band); border: 1px solid var(--line); border-radius: 6px;
  padding: .75rem; overflow-x: auto; font-size: .8125rem; line-height: 1.45; }
@media (max-width: 60rem) { td.text:nth-child(n + 5) { min-width: 17rem; } }
@media print {
  figure, tr { break-inside: avoid; }
  .scroll, figure .card { overflow: visible; }
  table { font-size: .6rem; }
  th, td { padding: .15rem .25rem; }
  .text, td.text:nth-child(n + 5) { min-width: 0; }
  .label, .number { white-space: normal; }
  th.label { overflow-wrap: anywhere; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  figure svg { min-width: 0; }
}
"""

_PAGE: Final = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
$style</style>
</head>
<body>
<main>
<h1>$title</h1>
$contents
$body
</main>
</body>
</html>
""")


def to_html(document: Document) -> str:
    """The text of `report.html`."""
    return _PAGE.substitute(
        title=escape(document.title),
        style=_STYLE,
        contents=_contents(document),
        body="\n".join(_block(block) for block in document.blocks),
    )


def _contents(document: Document) -> str:
    links = "".join(
        f'<li><a href="#{_anchor(block)}">{escape(block.text)}</a></li>'
        for block in document.blocks
        if isinstance(block, Heading) and block.level == 2
    )
    return f'<nav aria-label="Sections"><ul>{links}</ul></nav>'


def _anchor(heading: Heading) -> str:
    return "section-" + "-".join(heading.text.lower().split())


def _block(block: Block) -> str:
    match block:
        case Heading(text, level):
            anchor = f' id="{escape(_anchor(block))}"' if level == 2 else ""
            return f"<h{level}{anchor}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Bullets(items):
            return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"
        case Code(text):
            return f'<pre tabindex="0"><code>{escape(text)}</code></pre>'
        case Table():
            return block.to_html()
        case Drawing():
            return _figure(block)
        case Details(summary, blocks):
            inner = "\n".join(_block(part) for part in blocks)
            return f"<details>\n<summary>{escape(summary)}</summary>\n{inner}\n</details>"


def _figure(drawing: Drawing) -> str:
    label = escape(drawing.alt)
    svg = drawing.svg[drawing.svg.index("<svg") :].strip()
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return (
        f'<figure>\n<div class="card" tabindex="0">\n{svg}\n'
        f"</div>\n<figcaption>{escape(drawing.caption)}</figcaption>\n</figure>"
    )
