"""All labels of some files as flat columns, read without a tokenizer: who said what of which pair, and what is known of
it beside. Shapes: v votes, n pairs, K annotators.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from nemo_rpo.data.annotator_table import AnnotatorTable
from nemo_rpo.data.vote_details import DTYPES, UNKNOWN, DetailTable


@dataclass(frozen=True)
class VoteTable:
    """The votes in the order of the files. Signs are relative to the pair's canonical order: its first response is what
    the first row that shows it calls chosen; see :meth:`neutral`.

    Attributes:
        pair: int64 [v]. annotator: int64 [v], index into ``annotators``.
        sign: int8 [v], +1 for the pair's first response, -1 for its second, 0 for a tie.
        said: int8 [v], the same relative to the chosen of the vote's own row.
        weight: float32 [v], 1; of a ranking of K responses, one label on K(K-1)/2 pairs, the inverse of that number.
        unnamed: bool [v], votes without an annotator, who share the id ``all``.
        file, row: int64 [v], where the vote stands; ``file`` is an index into ``files``.
        details: what else is known of them [v], relative to the pair's canonical order; see :meth:`detail`.
        gold: int8 [n], +1 the first response is better, -1 the second, 0 not known.
        topic: int64 [n], index into ``topics``, -1 without one.
        lengths: int32 [n, 2], characters of the first and the second response; 0 where not known.
        alone: bool [n], which are completions judged alone: their second response is absent.
        pair_id: [n], the files' ids or hashes of the content.
        pair_file, pair_row: int64 [n], where the pair is shown first.
        content_turned: bool [n], whether the responses stand in the other order when sorted by a hash of their texts.
        family: int64 [K], index into ``families``, -1 without one; the first that a vote names.
        annotators: sorted by id; those who only called ties have no label.
        topics, families, files: names.
    """

    pair: np.ndarray
    annotator: np.ndarray
    sign: np.ndarray
    said: np.ndarray
    weight: np.ndarray
    unnamed: np.ndarray
    file: np.ndarray
    row: np.ndarray
    details: DetailTable
    gold: np.ndarray
    topic: np.ndarray
    lengths: np.ndarray
    alone: np.ndarray
    pair_id: list[str]
    pair_file: np.ndarray
    pair_row: np.ndarray
    content_turned: np.ndarray
    family: np.ndarray
    annotators: AnnotatorTable
    topics: list[str]
    families: list[str]
    files: list[str]

    def __len__(self) -> int:
        return len(self.pair)

    @property
    def pairs(self) -> int:
        """Distinct pairs, n."""
        return len(self.pair_id)

    def place(self, vote: int) -> tuple[str, int]:
        """File and row of a vote."""
        return self.files[self.file[vote]], int(self.row[vote])

    def where(self, vote: int) -> str:
        """``file:row`` of a vote."""
        file, row = self.place(vote)
        return f"{file}:{row}"

    def first_place(self, pair: int) -> tuple[str, int]:
        """File and row that show a pair first."""
        return self.files[self.pair_file[pair]], int(self.pair_row[pair])

    def counts(self, where: np.ndarray | None = None) -> np.ndarray:
        """Votes of every pair for its first response, for its second, and ties, int64 [n, 3]; of all or of some."""
        chosen = slice(None) if where is None else where
        column = np.array([2, 0, 1])[self.sign[chosen]]  # sign 0, +1, -1
        return np.bincount(self.pair[chosen] * 3 + column, minlength=3 * self.pairs).reshape(-1, 3)

    def labels(self, signed: bool) -> np.ndarray:
        """Votes of each annotator, int64 [K]; with ``signed`` without ties."""
        chosen = self.annotator[self.sign != 0] if signed else self.annotator
        return np.bincount(chosen, minlength=len(self.annotators))

    def named(self) -> np.ndarray:
        """Which annotators have a name, bool [K]."""
        named = np.ones(len(self.annotators), dtype=bool)
        named[self.annotator[self.unnamed]] = False
        return named

    def first_vote(self) -> np.ndarray:
        """The first vote of each annotator, int64 [K]."""
        first = np.full(len(self.annotators), len(self), dtype=np.int64)
        np.minimum.at(first, self.annotator, np.arange(len(self)))
        return first

    def winner_first(self) -> np.ndarray:
        """Files whose rows always say that the response recorded first won, bool [files]: their order is the label."""
        return ~np.isin(np.arange(len(self.files)), self.file[self.said < 0])

    def neutral(self) -> VoteTable:
        """The table with pairs in an order that does not depend on what was said of them.

        Layouts that name a winner record it first. Whoever asks whether the order shown was random, or whether votes
        lean to the first response, must not take that order for one: such pairs are put into the order of a hash of
        their texts, which is as good as tossing a coin. Pairs of files that have an order of their own keep it.
        """
        return self.turned_round(self.winner_first()[self.pair_file] & self.content_turned & ~self.alone)

    def turned_round(self, which: np.ndarray) -> VoteTable:
        """The table with the responses of the pairs ``which`` (bool [n]) exchanged."""
        if not which.any():
            return self
        of_vote = which[self.pair]
        return replace(
            self,
            sign=np.where(of_vote, -self.sign, self.sign),
            details=self.details.take(np.arange(len(self)), of_vote),
            gold=np.where(which, -self.gold, self.gold),
            lengths=np.where(which[:, None], self.lengths[:, ::-1], self.lengths),
            content_turned=self.content_turned ^ which,
        )

    def of_pairs(self, kept: np.ndarray) -> VoteTable:
        """The votes of the pairs ``kept`` (bool [n]); pairs are renumbered, annotators keep their places."""
        votes = np.flatnonzero(kept[self.pair])
        of_votes = ("annotator", "sign", "said", "weight", "unnamed", "file", "row")
        of_pairs = ("gold", "topic", "lengths", "alone", "pair_file", "pair_row", "content_turned")
        return replace(
            self,
            pair=(np.cumsum(kept) - 1)[self.pair[votes]],
            details=self.details.take(votes),
            pair_id=[name for name, keep in zip(self.pair_id, kept.tolist(), strict=True) if keep],
            **{name: getattr(self, name)[votes] for name in of_votes},
            **{name: getattr(self, name)[kept] for name in of_pairs},
        )

    def knows(self, name: str) -> bool:
        """Whether any vote has the detail ``name``, a field of :class:`nemo_rpo.data.rows.VoteDetails`."""
        return name in self.details.columns

    def detail(self, name: str) -> np.ndarray:
        """The detail ``name`` of every vote [v]: NaN, 0 for ``shown_first``, -1 for ``family`` where not known."""
        known = self.details.columns.get(name)
        return np.full(len(self), UNKNOWN.get(name, np.nan), DTYPES[name]) if known is None else known


def says_both(pair: np.ndarray, annotator: np.ndarray, sign: np.ndarray, shown_first: np.ndarray) -> np.ndarray:
    """Which signed votes are of somebody who voted for either response of the pair, bool [v].

    A pair that was shown in both orders is one question asked in two ways, and not counted: what differs between the
    answers is what the order does.

    Args:
        pair, annotator, sign: of the votes [v]. shown_first: +1 or -1, 0 where it is not known.

    >>> votes = np.array([[0, 0, 1, 1], [5, 5, 5, 6], [1, -1, 1, -1], [0, 0, 0, 0]])
    >>> says_both(*votes).tolist()
    [True, True, False, False]
    """
    key = pair.astype(np.int64) * (int(annotator.max(initial=0)) + 1) + annotator
    _, place = np.unique(key, return_inverse=True)

    def some(which: np.ndarray) -> np.ndarray:
        return np.bincount(place, weights=which) > 0

    both = some(sign > 0) & some(sign < 0) & ~(some(shown_first > 0) & some(shown_first < 0))
    return both[place] & (sign != 0)
