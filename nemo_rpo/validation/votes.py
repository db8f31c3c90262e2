"""Every label of a file in a few bytes, and what they show together. Shapes: v votes, T pairs, K annotators."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nemo_rpo.data.identity import Sighting
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.data.vote_details import DetailLedger, DetailTable

UNNAMED = 0  # the index of labels without an annotator
_WORDS = {1: "the first completion", -1: "the second completion", 0: "a tie"}


class Repeat(NamedTuple):
    """A vote on a pair that its annotator had voted on: entries into the table, and whether it says the same."""

    vote: int
    earlier: int
    same: bool


@dataclass(frozen=True)
class VoteTable:
    """The votes in the order of the file.

    Attributes:
        text: int64 [v], the pair. annotator: int64 [v], index into ``annotators``, 0 without one.
        sign: int8 [v], +1 for the completion that the pair's first row calls chosen, -1 for the other, 0 for a tie.
        said: int8 [v], the same relative to the row's own chosen.
        file, row: int64 [v], where the vote stands; ``file`` is an index into ``files``.
        details: what else is known of them [v], relative to the pair's first row.
        annotators, files: names; annotator 0 is the unnamed one.
        texts: T.
    """

    text: np.ndarray
    annotator: np.ndarray
    sign: np.ndarray
    said: np.ndarray
    file: np.ndarray
    row: np.ndarray
    details: DetailTable
    annotators: list[str]
    files: list[str]
    texts: int

    def __len__(self) -> int:
        return len(self.text)

    def where(self, vote: int) -> tuple[str, int]:
        """``file:row`` of a vote."""
        return self.files[self.file[vote]], int(self.row[vote])

    def words(self, vote: int) -> str:
        """What a vote says, in the terms of its own row."""
        return _WORDS[int(self.said[vote])]

    def counts(self, where: np.ndarray | None = None) -> np.ndarray:
        """Votes of every pair for its first completion, for its second, and ties, int64 [T, 3]; of all or of some."""
        chosen = slice(None) if where is None else where
        column = np.array([2, 0, 1])[self.sign[chosen]]  # sign 0, +1, -1
        return np.bincount(self.text[chosen] * 3 + column, minlength=3 * self.texts).reshape(-1, 3)

    def labels(self, signed: bool) -> np.ndarray:
        """Votes of each annotator, int64 [K+1]; with ``signed`` without ties."""
        chosen = self.annotator[self.sign != 0] if signed else self.annotator
        return np.bincount(chosen, minlength=len(self.annotators))

    def repeats(self) -> Iterator[Repeat]:
        """Votes of an annotator on a pair he had voted on, in the order of the file.

        Labels without an annotator within one row are of several people; only another row can repeat them.
        """
        order = np.lexsort((np.arange(len(self)), self.annotator, self.text))
        text, annotator = self.text[order], self.annotator[order]
        begins = np.ones(len(order), dtype=bool)
        begins[1:] = (text[1:] != text[:-1]) | (annotator[1:] != annotator[:-1])
        earlier = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))] if len(order) else order
        first = np.empty_like(order)
        first[order] = earlier
        again = first != np.arange(len(order))
        elsewhere = (self.row != self.row[first]) | (self.file != self.file[first])
        again &= (self.annotator != UNNAMED) | elsewhere
        for vote in np.flatnonzero(again):
            yield Repeat(int(vote), int(first[vote]), bool(self.sign[vote] == self.sign[first[vote]]))


class VoteLedger:
    """Collects the votes of rows as they are read."""

    def __init__(self) -> None:
        self._integers = {name: array("q") for name in ("text", "annotator", "file", "row")}
        self._signs = {name: array("b") for name in ("sign", "said")}
        self._details = DetailLedger()
        self._annotators: dict[str | None, int] = {None: UNNAMED}
        self._files: dict[str, int] = {}

    def add(self, row: PreferenceRow, sighting: Sighting) -> None:
        """Adds the votes of a row."""
        file = self._files.setdefault(row.file, len(self._files))
        for vote in row.votes:
            annotator = self._annotators.setdefault(vote.annotator, len(self._annotators))
            text, who, files, rows = self._integers.values()
            text.append(sighting.text)
            who.append(annotator)
            files.append(file)
            rows.append(row.row)
            self._signs["sign"].append(-vote.sign if sighting.turned else vote.sign)
            self._signs["said"].append(vote.sign)
            self._details.add(vote.details, sighting.turned)

    def __len__(self) -> int:
        return len(self._signs["sign"])

    def close(self, texts: int) -> VoteTable:
        """The table of all votes; ``texts`` is the number of distinct pairs."""
        return VoteTable(
            **{name: np.array(values, dtype=np.int64) for name, values in self._integers.items()},
            **{name: np.array(values, dtype=np.int8) for name, values in self._signs.items()},
            details=self._details.close(),
            annotators=["" if name is None else name for name in self._annotators],
            files=list(self._files),
            texts=texts,
        )
