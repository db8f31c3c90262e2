"""Counts in sentences."""

from __future__ import annotations


def counted(count: int, what: str) -> str:
    """How many of what, for people.

    >>> counted(1, "pair"), counted(12_000, "pair"), counted(2, "property"), counted(2, "way")
    ('1 pair', '12,000 pairs', '2 properties', '2 ways')
    """
    if count == 1:
        return f"1 {what}"
    of_many = f"{what[:-1]}ies" if what.endswith("y") and what[-2] not in "aeou" else f"{what}s"
    return f"{count:,} {of_many}"
