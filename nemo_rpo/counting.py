"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """How many of what, for people.

    >>> counted(1, "pair"), counted(12_000, "pair")
    ('1 pair', '12,000 pairs')
    """
    return f"{count:,} {what}{'' if count == 1 else 's'}"
