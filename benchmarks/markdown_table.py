"""Tables for the documents that the benchmarks keep up to date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def table(corner: str, heads: Iterable[str], rows: Mapping[str, Sequence[str]]) -> str:
    heads = list(heads)
    lines = [f"| {corner} | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def replace_block(path: str, name: str, text: str) -> None:
    """Puts ``text`` between ``<!-- begin: name -->`` and ``<!-- end: name -->`` of the file."""
    file = Path(path)
    before, begin, rest = file.read_text().partition(f"<!-- begin: {name} -->")
    _, end, after = rest.partition(f"<!-- end: {name} -->")
    if not end:
        raise SystemExit(f"{path} has no block '{name}'")
    file.write_text(f"{before}{begin}\n{text}\n{end}{after}")
