"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from nemo_rpo.errors import printable


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart; the first is flush left, the others flush right."""
    # Ids, and names of columns too, are what a file says they are.
    header, *rows = ([printable(cell, cell=True) for cell in row] for row in (header, *rows))
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
