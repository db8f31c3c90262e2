"""One pair with all that was said about it, whichever rows said it."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from nemo_rpo.data import columns as side_columns
from nemo_rpo.data.identity import PairIndex, Sighting
from nemo_rpo.data.rows import Given, PreferenceRow, Text, Vote
from nemo_rpo.data.vote_ledger import VoteLedger


@dataclass(frozen=True)
class MergedPair:
    """A pair; signs, gold and columns are relative to ``first``.

    Attributes:
        where: ``file:row`` of the first row that shows it.
        pair_id: the file's, ``None`` without one.
        first, second: the completions, ``first`` being what that row calls chosen.
        votes: in the order of the file, ties (sign 0) among them.
        gold: +1, -1 or ``None``. topic: the first that a row names.
        columns: numeric side information, the mean over the rows that have it.
        given: what the chat template is given beside the messages, as in a row.
    """

    where: str
    pair_id: str | None
    prompt: Text
    first: Text
    second: Text
    votes: list[Vote]
    gold: int | None
    topic: str | None
    columns: dict[str, float]
    given: Given = field(default_factory=dict)

    def columns_for(self, sign: int) -> dict[str, float]:
        """The columns relative to the completion that a vote of that sign prefers."""
        return _turned(self.columns) if sign < 0 else self.columns


class MergedPairs:
    """What all rows say of their pairs, in some hundred bytes a pair and a vote; the texts come from a second reading.

    Args:
        rows: every row of the files.

    Raises:
        DataError: a row that contradicts an earlier one of its pair in text or gold label.
    """

    def __init__(self, rows: Iterable[PreferenceRow]) -> None:
        self.rows = 0
        self._columns: dict[tuple[int, str], tuple[float, int]] = {}  # sum and number of values
        pairs, ledger = PairIndex(), VoteLedger()
        self._first = array("q")
        for row in rows:
            sighting = pairs.find(row)
            self._first.append(sighting.text if sighting.new else -1)
            ledger.add(row, sighting)
            self._add_columns(row, sighting)
            self.rows += 1
        self._table = ledger.close(pairs)
        self._names = self._table.annotators.ids
        ends = np.cumsum(np.bincount(self._table.pair, minlength=len(pairs)))
        self._votes = np.split(np.argsort(self._table.pair, kind="stable"), ends[:-1])

    def __len__(self) -> int:
        return self._table.pairs

    def first_shown(self, row: int) -> int | None:
        """The pair that the row, counted from 0, is the first to show."""
        return None if self._first[row] < 0 else self._first[row]

    def pair(self, text: int, row: PreferenceRow) -> MergedPair:
        """The pair with that index in the order of first rows, of which ``row`` is the first."""
        table = self._table
        votes = [
            Vote(None if table.unnamed[v] else self._names[table.annotator[v]], int(table.sign[v]), table.details.of(v))
            for v in self._votes[text]
        ]
        known = {name: self._columns[text, name] for name in side_columns.NAMES if (text, name) in self._columns}
        columns = {name: total / number for name, (total, number) in known.items()}
        return MergedPair(
            row.where,
            row.pair_id,
            row.prompt,
            row.chosen,
            row.rejected,
            votes,
            int(table.gold[text]) or None,
            table.topics[table.topic[text]] if table.topic[text] >= 0 else None,
            columns,
            row.given,
        )

    def _add_columns(self, row: PreferenceRow, sighting: Sighting) -> None:
        columns = _turned(row.columns) if sighting.turned else row.columns
        for name, value in columns.items():
            total, number = self._columns.get((sighting.text, name), (0.0, 0))
            self._columns[sighting.text, name] = total + value, number + 1


def _turned(columns: dict[str, float]) -> dict[str, float]:
    arrays = {name: np.array([value]) for name, value in columns.items()}
    turned = side_columns.turned(arrays, np.array([True]))
    return {name: float(values[0]) for name, values in turned.items() if not np.isnan(values[0])}
