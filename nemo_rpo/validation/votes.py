"""Votes that an annotator gave twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from nemo_rpo.data.vote_table import VoteTable

_WORDS = {1: "the first completion", -1: "the second completion", 0: "a tie"}
_WORDS_ALONE = {**_WORDS, 1: "good", -1: "bad"}


class Repeat(NamedTuple):
    """A vote on a pair that its annotator had voted on: entries into the table, and whether it says the same."""

    vote: int
    earlier: int
    same: bool


def words(table: VoteTable, vote: int) -> str:
    """What a vote says, in the terms of its own row."""
    return (_WORDS_ALONE if table.alone[table.pair[vote]] else _WORDS)[int(table.said[vote])]


def repeats(table: VoteTable) -> Iterator[Repeat]:
    """Votes of an annotator on a pair he had voted on, in the order of the file.

    Labels without an annotator within one row are of several people; only another row can repeat them.
    """
    order = np.lexsort((np.arange(len(table)), table.unnamed, table.annotator, table.pair))
    pair, annotator, unnamed = table.pair[order], table.annotator[order], table.unnamed[order]
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = (pair[1:] != pair[:-1]) | (annotator[1:] != annotator[:-1]) | (unnamed[1:] != unnamed[:-1])
    earlier = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))] if len(order) else order
    first = np.empty_like(order)
    first[order] = earlier
    again = first != np.arange(len(order))
    elsewhere = (table.row != table.row[first]) | (table.file != table.file[first])
    again &= ~table.unnamed | elsewhere
    for vote in np.flatnonzero(again):
        yield Repeat(int(vote), int(first[vote]), bool(table.sign[vote] == table.sign[first[vote]]))
