"""From rows to pairs: which rows speak of the same two responses, and which of the two is called chosen.

A ranking of K responses is K(K-1)/2 pairs, one after the other: the best response with each of the others first.

Shapes: T texts (distinct prompt with its responses), n pairs, v votes, r rows.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from nemo_rpo.data import columns as side_columns
from nemo_rpo.data.annotator_table import VIRTUAL, Annotator, AnnotatorTable
from nemo_rpo.data.identity import PairIndex, comparisons, content_id
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.data.vote_details import DetailLedger, DetailTable
from nemo_rpo.errors import DataError


@dataclass(frozen=True)
class PairTable:
    """Every pair but for its tokens.

    Attributes:
        text: int64 [n], the text whose responses the pair compares.
        sides: int8 [n, 2], which of the text's responses is chosen and which rejected, from 0.
        size: int8 [n], responses of the ranking that the pair is of; 2 for a pair by itself.
        pair_id: [n] ids, the file's or the hash of the content.
        vote_start: int64 [n+1]; the votes of pair i are ``vote_start[i]:vote_start[i+1]``.
        annotator: int64 [v], index into ``annotators``.
        sign: int8 [v], +1 for chosen and −1 for rejected; ties are left out.
        tie: bool [n], True where nobody prefers either response and somebody called a tie.
        details: of the votes [v], relative to the pair's chosen.
        gold: int8 [n], +1 chosen, −1 rejected, 0 unknown.
        chosen_first: int8 [n], +1 where chosen comes first in an order that does not depend on what was said of the
            pair, else −1: the order of the files, or of a hash of the texts where a file always records the winner
            first.
        topic: int64 [n], index into ``topics``, -1 without one.
        columns: float32 [n] each, NaN where a pair has no value.
        source: int64 [n, 2], index into ``files`` and row number of the first row that speaks of the pair.
        files: names as in the rows, in the order they were first read.
        annotators: sorted by id.
        rows, votes, ties, without_annotator: counts over the files; a ranking is one vote.
    """

    text: np.ndarray
    sides: np.ndarray
    size: np.ndarray
    pair_id: list[str]
    vote_start: np.ndarray
    annotator: np.ndarray
    sign: np.ndarray
    tie: np.ndarray
    details: DetailTable
    gold: np.ndarray
    chosen_first: np.ndarray
    topic: np.ndarray
    topics: list[str]
    columns: dict[str, np.ndarray]
    source: np.ndarray
    files: list[str]
    annotators: AnnotatorTable
    rows: int
    votes: int
    ties: int
    without_annotator: int

    def __len__(self) -> int:
        return len(self.text)

    @property
    def turned(self) -> np.ndarray:
        """Whether ``chosen`` is the text's later response, bool [n]."""
        return self.sides[:, 0] > self.sides[:, 1]

    @property
    def share(self) -> np.ndarray:
        """The weight of each pair within its ranking, float64 [n]: 1 for a pair by itself."""
        return share_of_ranking(self.size)

    def where(self, i: int) -> str:
        """``file:row`` of the first row that speaks of pair ``i``."""
        file, row = self.source[i]
        return f"{self.files[file]}:{row}"


def share_of_ranking(size: np.ndarray) -> np.ndarray:
    """2/(K(K-1)), float64, of rankings of ``size`` K: a ranking counts once, whatever its pairs."""
    size = size.astype(np.float64)
    return 2 / (size * (size - 1))


class PairLedger:
    """Reads rows one by one and keeps of each what :class:`PairTable` needs: some hundred bytes, never its text.

    :class:`nemo_rpo.data.identity.PairIndex` says which rows speak of the same pair. Rankings are never brought
    together: each has a forward pass of its own, and its pairs the one label that it is.

    Args:
        group_votes: all labels of a pair make one pair with several votes, chosen being the response with most of them
            (of equal ones, the one recorded first). Off: each signed label is a pair, chosen being what it prefers.
        keep_ties: with ``group_votes`` off, each tie is a pair too.
    """

    def __init__(self, group_votes: bool, keep_ties: bool = False) -> None:
        self.group_votes, self.keep_ties = group_votes, keep_ties
        self._sightings = PairIndex()
        self._texts = self._rows = 0
        self._files: dict[str, int] = {}
        # Of each pair, grouped as far as its rows allow, its id and its text; of each pair seen, which of these it is.
        self._pair_id: list[str] = []
        self._pair_text, self._pair_of_sighting = array("q"), array("q")
        # One entry a row, of a ranking one a pair.
        self._row_pair, self._row_turned, self._row_gold = array("q"), array("b"), array("b")
        self._row_first, self._row_second, self._row_size = array("b"), array("b"), array("b")
        self._row_file, self._row_number = array("q"), array("q")
        self._vote_row, self._vote_annotator, self._vote_sign = array("q"), array("q"), array("b")
        self._details = DetailLedger()
        self._with_order: set[int] = set()  # files that do not always record the winner first
        self._row_topic, self._topics = array("q"), {}
        self._annotators: dict[str, int] = {}
        self._annotator_seen: list[str] = []
        self._columns: dict[str, tuple[array, array]] = {}
        self._without_annotator = 0

    def add(self, row: PreferenceRow) -> int | None:
        """Enter a row. Returns the index of its text if that is new (it counts up from 0), else ``None``.

        Raises:
            DataError: the row has the pair id of an earlier one and other texts, or another gold label.
        """
        new = self._add_ranking(row) if row.further else self._add_pair(row)
        self._rows += 1
        self._without_annotator += sum(vote.annotator is None for vote in row.votes)
        if not new:
            return None
        self._texts += 1
        return self._texts - 1

    def _add_pair(self, row: PreferenceRow) -> bool:
        sighting = self._sightings.find(row)
        if sighting.new:
            self._pair_of_sighting.append(self._new_pair(self._sightings.ids[-1]))
        self._enter(row, self._pair_of_sighting[sighting.text], sighting.turned)
        return sighting.new

    def _add_ranking(self, row: PreferenceRow) -> bool:
        sides = combinations(range(len(row.responses)), 2)
        for pair, of in zip(comparisons(row), sides, strict=True):
            number = self._new_pair(content_id(pair) if pair.pair_id is None else pair.pair_id)
            self._enter(pair, number, turned=False, sides=of, size=len(row.responses))
        return True

    def _new_pair(self, pair_id: str) -> int:
        self._pair_id.append(pair_id)
        self._pair_text.append(self._texts)
        return len(self._pair_id) - 1

    def _enter(
        self, row: PreferenceRow, pair: int, turned: bool, sides: tuple[int, int] = (0, 1), size: int = 2
    ) -> None:
        entry = len(self._row_pair)
        orientation = -1 if turned else 1
        self._row_pair.append(pair)
        self._row_first.append(sides[0])
        self._row_second.append(sides[1])
        self._row_size.append(size)
        self._row_turned.append(turned)
        self._row_gold.append((row.gold or 0) * orientation)
        self._row_topic.append(-1 if row.topic is None else self._topics.setdefault(row.topic, len(self._topics)))
        self._row_file.append(self._files.setdefault(row.file, len(self._files)))
        self._row_number.append(row.row)
        for vote in row.votes:
            annotator = VIRTUAL if vote.annotator is None else vote.annotator
            index = self._annotators.setdefault(annotator, len(self._annotators))
            if index == len(self._annotator_seen):
                self._annotator_seen.append(row.where)
            self._vote_row.append(entry)
            self._vote_annotator.append(index)
            self._vote_sign.append(vote.sign * orientation)
            self._details.add(vote.details, turned)
            if vote.sign < 0:
                self._with_order.add(self._row_file[entry])
        for name, value in row.columns.items():
            rows, values = self._columns.setdefault(name, (array("q"), array("f")))
            rows.append(entry)
            values.append(value)

    @property
    def rows(self) -> int:
        """Rows entered so far."""
        return self._rows

    def close(self) -> PairTable:
        """Group and orient what was entered."""
        vote_row, sign = _as(self._vote_row, np.int64), _as(self._vote_sign, np.int8)
        counts_for = share_of_ranking(_as(self._row_size, np.int8))[vote_row]
        order, annotators = self._sorted_annotators(counts_for * (sign != 0))
        annotator = order[_as(self._vote_annotator, np.int64)]
        votes, ties = round(counts_for.sum()), round(counts_for[sign == 0].sum())
        kept = np.arange(len(sign))
        if not (self.group_votes or self.keep_ties):
            kept = np.flatnonzero(sign)
            vote_row, sign, annotator = vote_row[kept], sign[kept], annotator[kept]
        entry, member = self._group(vote_row) if self.group_votes else self._split(vote_row)
        called_tie = np.bincount(member[sign == 0], minlength=len(entry)) > 0
        member, kept, annotator, sign = (values[sign != 0] for values in (member, kept, annotator, sign))

        by_pair = np.argsort(member, kind="stable")
        member, sign, annotator, kept = member[by_pair], sign[by_pair], annotator[by_pair], kept[by_pair]
        balance = np.bincount(member, weights=sign, minlength=len(entry))
        votes_of_pair = np.bincount(member, minlength=len(entry))
        turned = balance < 0
        pair = _as(self._row_pair, np.int64)[entry]
        gold = self._gold()[pair] * np.where(turned, -1, 1)
        first, second, size = (_as(of, np.int8)[entry] for of in (self._row_first, self._row_second, self._row_size))
        return PairTable(
            text=_as(self._pair_text, np.int64)[pair],
            sides=np.where(turned[:, None], np.stack([second, first], 1), np.stack([first, second], 1)),
            size=size,
            pair_id=[self._pair_id[i] for i in pair],
            vote_start=np.concatenate([[0], np.cumsum(votes_of_pair)]).astype(np.int64),
            annotator=annotator,
            sign=(sign * np.where(turned, -1, 1)[member]).astype(np.int8),
            tie=called_tie & (votes_of_pair == 0),
            details=self._details.close().take(kept, turned[member]),
            gold=gold.astype(np.int8),
            chosen_first=self._chosen_first(entry, pair, turned),
            topic=self._pair_topic()[pair],
            topics=list(self._topics),
            columns=side_columns.turned(self._pair_columns(entry, pair), turned),
            source=np.stack([_as(self._row_file, np.int64)[entry], _as(self._row_number, np.int64)[entry]], axis=1),
            files=list(self._files),
            annotators=annotators,
            rows=self.rows,
            votes=votes,
            ties=ties,
            without_annotator=self._without_annotator,
        )

    def _group(self, vote_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All of a pair together: the entry (row) each pair comes from [n], and the pair each vote belongs to [v]."""
        pairs = _as(self._row_pair, np.int64)
        _, entry = np.unique(pairs, return_index=True)
        return entry, pairs[vote_row]

    def _split(self, vote_row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One pair a vote, and one without votes for each row that has none, in the order of rows."""
        silent = np.setdiff1d(np.arange(len(self._row_pair)), vote_row)
        entry = np.concatenate([vote_row, silent])
        order = np.argsort(entry, kind="stable")
        pair_of_vote = np.empty(len(entry), dtype=np.int64)
        pair_of_vote[order] = np.arange(len(entry))
        return entry[order], pair_of_vote[: len(vote_row)]

    def _sorted_annotators(self, counts_for: np.ndarray) -> tuple[np.ndarray, AnnotatorTable]:
        """The place of each annotator in the sorted table, and the table; ``counts_for`` [v] weighs its votes."""
        annotator = _as(self._vote_annotator, np.int64)
        votes = np.bincount(annotator, weights=counts_for, minlength=len(self._annotators)).round().astype(np.int64)
        table = AnnotatorTable.sorted(
            Annotator(annotator, int(votes[k]), self._annotator_seen[k]) for annotator, k in self._annotators.items()
        )
        return np.array([table.index(annotator) for annotator in self._annotators], dtype=np.int64), table

    def _where(self, entry: int) -> str:
        return f"{list(self._files)[self._row_file[entry]]}:{self._row_number[entry]}"

    def _gold(self) -> np.ndarray:
        """Gold of each pair in its text's own order, int64."""
        gold = np.zeros(len(self._pair_id), dtype=np.int64)
        for entry, (pair, value) in enumerate(zip(self._row_pair, self._row_gold, strict=True)):
            if value and gold[pair] == -value:
                name = self._pair_id[pair]
                raise DataError(f"{self._where(entry)}: pair '{name}' has the opposite gold label in an earlier row")
            gold[pair] = value or gold[pair]
        return gold

    def _chosen_first(self, entry: np.ndarray, pair: np.ndarray, turned: np.ndarray) -> np.ndarray:
        """:attr:`PairTable.chosen_first` of the pairs that come from rows ``entry``; pairs of rankings take turns."""
        other_order = np.arange(len(self._pair_id)) % 2 == 1
        other_order[_as(self._pair_of_sighting, np.int64)] = self._sightings.content_turned()
        winner_first = ~np.isin(np.arange(len(self._files)), list(self._with_order))
        of_hash = winner_first[_as(self._row_file, np.int64)[entry]]
        return np.where(turned ^ (of_hash & other_order[pair]), -1, 1).astype(np.int8)

    def _pair_topic(self) -> np.ndarray:
        """Topic of each pair, the first that one of its rows names; int64, -1 without one."""
        topic, said = np.full(len(self._pair_id), -1, dtype=np.int64), _as(self._row_topic, np.int64)
        named = np.flatnonzero(said >= 0)[::-1]  # backwards: the first row of a pair is written last
        topic[_as(self._row_pair, np.int64)[named]] = said[named]
        return topic

    def _pair_columns(self, entry: np.ndarray, pair: np.ndarray) -> dict[str, np.ndarray]:
        """Columns in the text's own order, float32 [n]; grouped rows give the mean of the values they have."""
        by_row = {}
        for name, (rows, values) in self._columns.items():
            full = np.full(len(self._row_pair), np.nan, dtype=np.float32)
            full[_as(rows, np.int64)] = _as(values, np.float32)
            by_row[name] = full
        by_row = side_columns.turned(by_row, _as(self._row_turned, np.int8).astype(bool))
        if not self.group_votes:
            return {name: values[entry] for name, values in by_row.items()}
        row_pair = _as(self._row_pair, np.int64)
        return {name: _mean_by(row_pair, values, len(self._pair_id))[pair] for name, values in by_row.items()}


def _mean_by(group: np.ndarray, values: np.ndarray, groups: int) -> np.ndarray:
    known = ~np.isnan(values)
    total = np.bincount(group[known], weights=values[known], minlength=groups)
    count = np.bincount(group[known], minlength=groups)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _as(values: array, dtype: type) -> np.ndarray:
    return np.frombuffer(values, dtype=dtype) if len(values) else np.empty(0, dtype=dtype)
