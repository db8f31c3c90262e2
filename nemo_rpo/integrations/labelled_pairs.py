"""Who labelled each pair of a host's training data: the table of annotators, and the votes that a fit needs.

Shapes: N pairs, V votes of the pair that has most, K annotators.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from nemo_rpo.data.annotator_table import VIRTUAL, Annotator, AnnotatorTable
from nemo_rpo.em import Votes


class LabelledPairs:
    """The labels of all pairs, in the order of the data: 5 bytes a label and 8 a pair."""

    def __init__(self) -> None:
        self._code: dict[str, int] = {}  # of each id, in the order in which they appear
        self._first_seen: list[str] = []
        self._start = array("q", [0])  # of each pair's labels
        self._annotator, self._sign = array("i"), array("b")

    @classmethod
    def of_one(cls, pairs: int, where: str) -> LabelledPairs:
        """Those of data without ids: one label a pair, all of one annotator, who prefers what was chosen.

        >>> LabelledPairs.of_one(3, "train.jsonl:1").table().labels
        array([3])
        """
        made = cls()
        made._code, made._first_seen = {VIRTUAL: 0}, [where]
        made._start = array("q", range(pairs + 1))
        made._annotator, made._sign = array("i", bytes(4 * pairs)), array("b", [1]) * pairs
        return made

    def __len__(self) -> int:
        return len(self._start) - 1

    def add(self, where: str, votes: Iterable[tuple[str, float]]) -> None:
        """The next pair, found at ``where``, with (id, sign) of each vote; a sign of 0 is a tie."""
        for name, sign in votes:
            code = self._code.setdefault(name, len(self._code))
            if code == len(self._first_seen):
                self._first_seen.append(where)
            self._annotator.append(code)
            self._sign.append(int(sign))
        self._start.append(len(self._sign))

    def table(self) -> AnnotatorTable:
        """Everybody who labelled a pair, sorted by id."""
        signed = np.asarray(self._annotator)[np.asarray(self._sign) != 0]
        labels = np.bincount(signed, minlength=len(self._code)).tolist()
        return AnnotatorTable.sorted(
            Annotator(name, labels[code], self._first_seen[code]) for name, code in self._code.items()
        )

    def votes_of(self, table: AnnotatorTable, block: slice) -> Votes:
        """The votes of a run of b pairs, by index in ``table``, which knows them all: int32 and int8 [b, V]."""
        index = np.array([table.index(name) for name in self._code], dtype=np.int32)
        start = np.asarray(self._start)
        counts, width = np.diff(start[block.start : block.stop + 1]), int(np.diff(start).max(initial=1))
        labels = slice(start[block.start], start[block.stop])
        filled = np.arange(width) < counts[:, None]
        annotator, sign = np.zeros(filled.shape, dtype=np.int32), np.zeros(filled.shape, dtype=np.int8)
        annotator[filled] = index[np.asarray(self._annotator)[labels]]
        sign[filled] = np.asarray(self._sign)[labels]
        return Votes(torch.from_numpy(annotator), torch.from_numpy(sign))


def fingerprint(parts: Iterable[Any]) -> str:
    """A digest of data in its order: BLAKE2b of the JSON of each of its ``parts``; what JSON does not know as text.

    One pass over the data, a part at a time.

    >>> fingerprint([{"chosen": "a"}, {"chosen": "b"}]) == fingerprint([{"chosen": "b"}, {"chosen": "a"}])
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()
