"""A report as Markdown, with its figures as SVG files in a folder beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nemo_rpo.errors import printable
from nemo_rpo.report.rendering.document import Block, Document, Figure, Note, Quote, Table, Text


def as_markdown(document: Document, figures: str) -> str:
    """The text; ``figures`` is the folder of the figures, as a path relative to it. Texts of the data are escaped."""
    parts = [f"# {_inline(document.title)}"]
    for place, section in enumerate(document.sections):
        parts.append(f"## {_inline(section.title)}")
        parts += [_block(block, figures) for block in section.blocks]
        if place == 0:  # what to do comes first
            parts.append("\n".join(f"- {_inline(name)}: {_inline(value)}" for name, value in document.facts))
    return "\n\n".join(parts) + "\n"


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Text):
        return _inline(block.text)
    if isinstance(block, Note):
        advice = f"\n>\n> **What to do:** {_inline(block.advice)}" if block.advice else ""
        return f"> **{_inline(block.title)}**\n>\n> {_inline(block.text)}{advice}"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        drawing = f"![{_inline(block.alt)}]({figures}/{block.name}.svg)"
        return f"{drawing}\n\n*{_inline(block.caption)}*" if block.caption else drawing
    return _quote(block)


def _table(table: Table) -> str:
    rule = "|".join(["---", *["--:"] * (len(table.header) - 1)])
    lines = [_row(table.header), f"|{rule}|", *map(_row, table.rows[: table.shown])]
    parts = [_inline(table.caption)] if table.caption else []
    parts.append("\n".join(lines))
    if len(table.rows) > table.shown:
        parts.append(f"… {len(table.rows) - table.shown:,} more")
    return "\n\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_inline(cell) for cell in cells) + " |"


def _quote(quote: Quote) -> str:
    parts = [f"### {_inline(quote.title)}", _quoted(quote.prompt)]
    for heading, text in quote.sides:
        parts += [f"{_inline(heading)}:", _quoted(text)]
    parts.append("\n".join(f"- {_inline(fact)}" for fact in quote.facts))
    return "\n\n".join(parts)


def _quoted(text: str) -> str:
    return "\n".join(f"> {_inline(line)}  " if line.strip() else ">" for line in text.splitlines() or [""])


def _inline(text: str) -> str:
    """On one line, without anything that Markdown or the HTML in it would act on."""
    return re.sub(r"([\\`*_{}\[\]<>#|~])", r"\\\1", printable(" ".join(text.split())))
