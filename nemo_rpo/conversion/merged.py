"""One pair with all that was said about it, whichever rows said it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from nemo_rpo.data import columns as side_columns
from nemo_rpo.data.files.spool import Spool
from nemo_rpo.data.formats import Parsed
from nemo_rpo.data.identity import PairIndex, Sighting
from nemo_rpo.data.rows import NOTHING_ELSE, Given, PreferenceRow, Text, Vote
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
        key: the pair's id, or the hash of its content. layout: of that first row.
        alone: whether ``first`` was judged alone, and there is no second.
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
    key: str = ""
    layout: str = ""
    alone: bool = False

    def columns_for(self, sign: int) -> dict[str, float]:
        """The columns relative to the completion that a vote of that sign prefers."""
        return _turned(self.columns) if sign < 0 else self.columns


class MergedPairs:
    """What all rows say of their pairs, in some hundred bytes a pair and a vote; the texts wait in a spool.

    Args:
        rows: every row of the files, a ranking as its pairs.
        spool: empty; holds the pairs' texts.

    Raises:
        DataError: a row that contradicts an earlier one of its pair in text or gold label.
    """

    def __init__(self, rows: Iterable[Parsed], spool: Spool) -> None:
        self.rows = 0
        self._columns: dict[tuple[int, str], tuple[float, int]] = {}  # sum and number of values
        self._spool = spool
        pairs, ledger = PairIndex(), VoteLedger()
        for _, layout, row in rows:
            sighting = pairs.find(row)
            if sighting.new:
                spool.add((row.where, row.pair_id, row.prompt, row.chosen, row.rejected, row.given, layout, row.alone))
            ledger.add(row, sighting)
            if row.columns:
                self._add_columns(row, sighting)
            self.rows += 1
        self._ids, self._table = pairs.ids, ledger.close(pairs)
        self._order = np.argsort(self._table.pair, kind="stable")
        self._ends = np.cumsum(np.bincount(self._table.pair, minlength=len(pairs)))

    def __len__(self) -> int:
        return self._table.pairs

    def __iter__(self) -> Iterator[MergedPair]:
        """The pairs in the order of their first rows."""
        table, start = self._table, 0
        ids, sign = table.annotators.ids, table.sign[self._order].tolist()
        name = [None if none else ids[k] for k, none in zip(*self._who(), strict=True)]
        gold, topic = table.gold.tolist(), table.topic.tolist()
        of = table.details.of if table.details.columns else lambda vote: NOTHING_ELSE
        for text, (end, spooled) in enumerate(zip(self._ends.tolist(), self._spool, strict=True)):
            where, pair_id, prompt, first, second, given, layout, alone = spooled
            votes = [Vote(name[v], sign[v], of(self._order[v])) for v in range(start, end)]
            start = end
            columns = self._mean_columns(text) if self._columns else {}
            about = (gold[text] or None, table.topics[topic[text]] if topic[text] >= 0 else None, columns, given)
            yield MergedPair(where, pair_id, prompt, first, second, votes, *about, self._ids[text], layout, alone)

    def _who(self) -> tuple[list[int], list[bool]]:
        """Of the votes by pair: the annotator, and whether that is nobody by name."""
        return self._table.annotator[self._order].tolist(), self._table.unnamed[self._order].tolist()

    def _mean_columns(self, text: int) -> dict[str, float]:
        known = {name: self._columns[text, name] for name in side_columns.NAMES if (text, name) in self._columns}
        return {name: total / number for name, (total, number) in known.items()}

    def _add_columns(self, row: PreferenceRow, sighting: Sighting) -> None:
        columns = _turned(row.columns) if sighting.turned else row.columns
        for name, value in columns.items():
            total, number = self._columns.get((sighting.text, name), (0.0, 0))
            self._columns[sighting.text, name] = total + value, number + 1


def _turned(columns: dict[str, float]) -> dict[str, float]:
    arrays = {name: np.array([value]) for name, value in columns.items()}
    turned = side_columns.turned(arrays, np.array([True]))
    return {name: float(values[0]) for name, values in turned.items() if not np.isnan(values[0])}
