"""A report as one HTML page: no request, no script but the one that sorts its tables, light on ink when printed."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from html import escape

from nemo_rpo.errors import printable
from nemo_rpo.report.rendering.document import Block, Document, Figure, Note, Quote, Section, Table, Text

_SHORT = 16  # characters of a first column that never breaks
_PHRASE = 2  # words

_STYLE = """
:root { --ink: #1a1a1a; --quiet: #5c5c5c; --line: #d8d8d8; --soft: #f5f6f8; --blue: #0072b2; --orange: #b35900; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; color: var(--ink);
  background: #fff; margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 68rem; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .8rem; padding-top: .8rem; border-top: 2px solid var(--ink); }
p { max-width: 46rem; margin: .7rem 0; }
nav { font-size: .92rem; margin: 1.2rem 0; } nav a { margin-right: 1.1rem; white-space: nowrap; }
a { color: var(--blue); }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: 0; font-size: .95rem; }
dl.facts dt { color: var(--quiet); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .8rem 0; }
caption { caption-side: top; text-align: left; color: var(--quiet); padding-bottom: .35rem; max-width: 46rem; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--line); }
th, td { overflow-wrap: normal; } td { white-space: nowrap; }
th { border-bottom: 1.5px solid var(--ink); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; min-width: 7.5rem; max-width: 24rem; white-space: normal;
  overflow-wrap: break-word; }
.short td:first-child { white-space: nowrap; } .words { text-align: left; white-space: normal; min-width: 12rem; }
thead th[aria-sort] { cursor: pointer; } th[aria-sort=ascending]::after { content: " ▲"; font-size: .7em; }
th[aria-sort=descending]::after { content: " ▼"; font-size: .7em; }
.scroll { overflow-x: auto; }
details { margin: .4rem 0 1rem; } summary { cursor: pointer; color: var(--blue); font-size: .9rem; }
figure { margin: 1.2rem 0; overflow-x: auto; } figure svg { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--quiet); font-size: .9rem; max-width: 46rem; margin-top: .3rem; }
.note { border-left: 4px solid var(--orange); background: #fdf6ee; padding: .7rem 1rem; margin: .9rem 0; }
.note.good { border-color: #2e7d32; background: #f1f8f1; }
.note p { margin: .3rem 0; } .note h3 { margin: 0; font-size: 1rem; }
.quote { border: 1px solid var(--line); border-radius: 6px; margin: 1.1rem 0; padding: .8rem 1rem; }
.quote h3 { margin: 0 0 .4rem; font-size: 1rem; }
.quote .prompt, .quote .side p { white-space: pre-wrap; overflow-wrap: anywhere; margin: .2rem 0; max-width: none; }
.quote .prompt { color: var(--quiet); font-size: .92rem; }
.quote .sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; margin: .6rem 0; }
.quote .side { background: var(--soft); padding: .5rem .8rem; border-radius: 4px; font-size: .92rem; min-width: 0; }
.quote .side h4 { margin: 0 0 .2rem; font-size: .85rem; color: var(--quiet); font-weight: 600; }
.quote ul { margin: .3rem 0 0; padding-left: 1.1rem; font-size: .9rem; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .85rem; border-top: 1px solid var(--line);
  padding-top: .6rem; }
@media (max-width: 40rem) { .quote .sides, dl.facts { grid-template-columns: 1fr; } body { padding: 1rem; }
  dl.facts dd { margin-bottom: .4rem; } nav a { display: inline-block; padding: .25rem 0; }
  table { font-size: .95rem; } figure svg { max-width: none; width: 44rem; } figure.small svg { width: 30rem; }
  figcaption, caption { position: sticky; left: 0; max-width: calc(100vw - 2rem); } }
@media print { body { font-size: 10.5pt; max-width: none; padding: 0; } nav, details { display: none; }
  h2, h3 { break-after: avoid; } figure, .quote, .note, tr { break-inside: avoid; }
  .note, .quote .side { background: none; } a { color: inherit; text-decoration: none; } }
"""

# A click on a heading sorts the rows of its table, those that are folded away too; numbers by size, others as text.
_SCRIPT = """
document.querySelectorAll('.sorts').forEach(box => {
  const bodies = [...box.querySelectorAll('tbody')], sizes = bodies.map(body => body.rows.length);
  const heads = [...box.querySelectorAll('th')], number = text => parseFloat(text.replace(/[,%]/g, ''));
  heads.forEach(head => {
    const sort = () => {
      const of = row => row.cells[head.cellIndex].textContent, up = head.ariaSort !== 'ascending' ? 1 : -1;
      const rows = bodies.flatMap(body => [...body.rows]), texts = rows.filter(row => of(row) !== '–');
      const numbers = texts.every(row => !isNaN(number(of(row))));
      const compare = (a, b) => numbers ? number(of(a)) - number(of(b)) : of(a).localeCompare(of(b));
      const last = row => of(row) === '–' ? 1 : 0;
      rows.sort((a, b) => last(a) - last(b) || up * (last(a) ? 0 : compare(a, b)));
      bodies.forEach((body, i) => body.append(...rows.splice(0, sizes[i])));
      heads.forEach(h => h.ariaSort = h.cellIndex !== head.cellIndex ? 'none' : up > 0 ? 'ascending' : 'descending');
    };
    head.ariaSort = 'none'; head.tabIndex = 0; head.onclick = sort;
    head.onkeydown = event => { if (event.key === 'Enter') sort(); };
  });
});
"""
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()


def as_html(document: Document) -> str:
    """The page; what it is about stands below its first section.

    Every text of the data is escaped, and a policy in the head forbids requests and other scripts.
    """
    title, newline = escape(document.title), "\n"
    facts = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in document.facts)
    contents = "\n".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in document.sections)
    first, *others = map(_section, document.sections)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_SCRIPT_HASH}'; img-src data:"
    # Control characters of ids and texts are no HTML, and no SVG, even escaped.
    return printable(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<nav>{contents}</nav>\n<main>\n{first}\n<dl class="facts">{facts}</dl>\n{newline.join(others)}\n</main>\n'
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f'<section id="{section.anchor}">\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>'


def _block(block: Block) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Note):
        advice = f"<p><strong>What to do:</strong> {escape(block.advice)}</p>" if block.advice else ""
        good = " good" if block.good else ""
        return f'<div class="note{good}"><h3>{escape(block.title)}</h3><p>{escape(block.text)}</p>{advice}</div>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        caption = f"<figcaption>{escape(block.caption)}</figcaption>" if block.caption else ""
        small = ' class="small"' if block.small else ""
        return f'<figure role="img"{small} aria-label="{escape(block.alt)}">{block.svg}{caption}</figure>'
    return _quote(block)


def _table(table: Table) -> str:
    words = [
        ' class="words"' if i and _has_words(row[i] for row in table.rows) else "" for i in range(len(table.header))
    ]
    head = "".join(f"<th{words[i]}>{escape(cell)}</th>" for i, cell in enumerate(table.header))
    rows = [
        "<tr>" + "".join(f"<td{words[i]}>{escape(cell)}</td>" for i, cell in enumerate(row)) + "</tr>"
        for row in table.rows
    ]
    short = " short" if all(len(row[0]) <= _SHORT for row in table.rows) else ""
    caption = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""

    def drawn(rows: list[str], caption: str) -> str:
        return (
            f'<div class="scroll"><table>{caption}<thead><tr>{head}</tr></thead><tbody>'
            f"{''.join(rows)}</tbody></table></div>"
        )

    if len(rows) <= table.shown:
        return f'<div class="sorts{short}">{drawn(rows, caption)}</div>'
    rest = drawn(rows[table.shown :], "")
    return (
        f'<div class="sorts{short}">{drawn(rows[: table.shown], caption)}'
        f"<details><summary>{len(rows) - table.shown:,} more</summary>{rest}</details></div>"
    )


def _has_words(cells: Iterable[str]) -> bool:
    """Whether a column holds phrases, which may break between words, where figures stay on their line."""
    return any(sum(word.isalpha() for word in cell.split()) >= _PHRASE for cell in cells)


def _quote(quote: Quote) -> str:
    sides = "".join(
        f'<div class="side"><h4>{escape(heading)}</h4><p>{escape(text)}</p></div>' for heading, text in quote.sides
    )
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in quote.facts)
    return (
        f'<article class="quote"><h3>{escape(quote.title)}</h3><p class="prompt">{escape(quote.prompt)}</p>'
        f'<div class="sides">{sides}</div><ul>{facts}</ul></article>'
    )
