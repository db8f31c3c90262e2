"""One pair with all that was said about it, whichever rows said it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_rpo.data import columns as side_columns
from nemo_rpo.data.identity import PairIndex, Sighting
from nemo_rpo.data.rows import PreferenceRow, Text, Vote
from nemo_rpo.errors import DataError
from nemo_rpo.validation.votes import UNNAMED, VoteLedger


@dataclass(frozen=True)
class MergedPair:
    """A pair; signs, gold and columns are relative to ``first``.

    Attributes:
        where: ``file:row`` of the first row that shows it.
        pair_id: the file's, ``None`` without one.
        first, second: the completions, ``first`` being what that row calls chosen.
        votes: in the order of the file, ties (sign 0) among them.
        gold: +1, -1 or ``None``.
        columns: numeric side information, the mean over the rows that have it.
    """

    where: str
    pair_id: str | None
    prompt: Text
    first: Text
    second: Text
    votes: list[Vote]
    gold: int | None
    columns: dict[str, float]

    def columns_for(self, sign: int) -> dict[str, float]:
        """The columns relative to the completion that a vote of that sign prefers."""
        if sign >= 0:
            return self.columns
        arrays = {name: np.array([value]) for name, value in self.columns.items()}
        turned = side_columns.turned(arrays, np.array([True]))
        return {name: float(value[0]) for name, value in turned.items() if not np.isnan(value[0])}


class PairMerger:
    """Collects what rows say of their pairs, in a few dozen bytes a vote; texts are given to :meth:`pair` again."""

    def __init__(self) -> None:
        self.pairs = PairIndex()
        self._ledger = VoteLedger()
        self._gold: dict[int, int] = {}
        self._columns: dict[tuple[int, str], tuple[float, int]] = {}  # sum and number of values

    def add(self, row: PreferenceRow) -> None:
        """Raises :class:`DataError` if the row contradicts an earlier one of its pair in text or gold label."""
        sighting = self.pairs.find(row)
        self._ledger.add(row, sighting)
        if row.gold:
            self._add_gold(row, sighting)
        if row.columns:
            sign = -1 if sighting.turned else 1
            own = MergedPair("", None, "", "", "", [], None, row.columns)
            for name, value in own.columns_for(sign).items():
                total, number = self._columns.get((sighting.text, name), (0.0, 0))
                self._columns[sighting.text, name] = total + value, number + 1

    def _add_gold(self, row: PreferenceRow, sighting: Sighting) -> None:
        gold = -row.gold if sighting.turned else row.gold
        if self._gold.setdefault(sighting.text, gold) != gold:
            raise DataError(f"{row.where}: the pair has the opposite gold label in an earlier row")

    def close(self) -> None:
        """No further rows; :meth:`pair` may be called from here on."""
        self._table = self._ledger.close(len(self.pairs))
        order = np.argsort(self._table.text, kind="stable")
        ends = np.cumsum(np.bincount(self._table.text, minlength=len(self.pairs)))
        self._votes_of = np.split(order, ends[:-1])

    def pair(self, text: int, row: PreferenceRow) -> MergedPair:
        """The pair with that index, whose first row is ``row``."""
        table = self._table
        votes = [
            Vote(None if table.annotator[v] == UNNAMED else table.annotators[table.annotator[v]], int(table.sign[v]))
            for v in self._votes_of[text]
        ]
        columns = {}
        for name in side_columns.NAMES:
            if (text, name) in self._columns:
                total, number = self._columns[text, name]
                columns[name] = total / number
        return MergedPair(
            row.where, row.pair_id, row.prompt, row.chosen, row.rejected, votes, self._gold.get(text), columns
        )
