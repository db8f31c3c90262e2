"""Who labelled each pair of a host's training data: the table of annotators, and the votes that a fit needs.

Shapes: N pairs, V votes of the pair that has most, K annotators.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from nemo_rpo.data.annotator_table import VIRTUAL, Annotator, AnnotatorTable
from nemo_rpo.data.layouts.details import CHOSEN_REJECTED, GOLD, OF_VOTE, TOPIC, side, vote_details
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import NOTHING_ELSE, VoteDetails
from nemo_rpo.data.vote_details import DetailLedger
from nemo_rpo.em import Votes
from nemo_rpo.em.label_model import FlatVotes
from nemo_rpo.em.label_model.of_run.training_crowd import Crowd

# Fields of a row, beside its annotator's, that say something of the label or of the pair.
KNOWN_FIELDS = (*sorted(OF_VOTE), GOLD, TOPIC)


class PairFacts(NamedTuple):
    """What a row says of its pair beside the labels.

    Attributes:
        gold: +1 chosen is better, -1 rejected is, 0 not known. topic: None where that is not said.
        lengths: of chosen and rejected, in any unit; 0 where not known.
        chosen_first: ±1, whether chosen or rejected comes first in an order that does not depend on the labels; 0
            where the row does not say.
    """

    gold: int = 0
    topic: str | None = None
    lengths: tuple[int, int] = (0, 0)
    chosen_first: int = 0


NO_FACTS = PairFacts()


def row_knowledge(fields: Fields) -> tuple[VoteDetails, PairFacts]:
    """What a row with one label says under the names of :data:`KNOWN_FIELDS`, relative to its chosen and rejected.

    Raises:
        RowError: a field of another type or kind.
    """
    gold = side(fields, GOLD, CHOSEN_REJECTED) or 0
    topic = fields.identity(TOPIC, required=False)
    facts = NO_FACTS if not gold and topic is None else PairFacts(gold, topic)
    return vote_details(fields, CHOSEN_REJECTED), facts


class LabelledPairs:
    """The labels of all pairs, in the order of the data: 5 bytes a label and 22 a pair, and what is known of them."""

    def __init__(self) -> None:
        self._code: dict[str, int] = {}  # of each id, in the order in which they appear
        self._first_seen: list[str] = []
        self._start = array("q", [0])  # of each pair's labels
        self._annotator, self._sign = array("i"), array("b")
        self._details, self._topics = DetailLedger(), {}
        self._gold, self._chosen_first, self._topic, self._lengths = array("b"), array("b"), array("i"), array("i")

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
        for _ in range(pairs):
            made._add_facts(NO_FACTS)
            made._details.add(NOTHING_ELSE, False)
        return made

    def __len__(self) -> int:
        return len(self._start) - 1

    def add(
        self,
        where: str,
        votes: Iterable[tuple[str, float]],
        details: Sequence[VoteDetails] = (),
        facts: PairFacts = NO_FACTS,
    ) -> None:
        """The next pair, found at ``where``, with (id, sign) of each vote; a sign of 0 is a tie.

        ``details`` of each vote, or none of any, and ``facts`` are relative to the pair's chosen and rejected.
        """
        self._add_facts(facts)
        for place, (name, sign) in enumerate(votes):
            self._details.add(details[place] if details else NOTHING_ELSE, False)
            code = self._code.setdefault(name, len(self._code))
            if code == len(self._first_seen):
                self._first_seen.append(where)
            self._annotator.append(code)
            self._sign.append(int(sign))
        self._start.append(len(self._sign))

    def _add_facts(self, facts: PairFacts) -> None:
        self._gold.append(facts.gold)
        self._chosen_first.append(facts.chosen_first)
        self._lengths.extend(facts.lengths)
        self._topic.append(-1 if facts.topic is None else self._topics.setdefault(facts.topic, len(self._topics)))

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

    def crowd(self, table: AnnotatorTable) -> Crowd:
        """All labels with what is known of them, by index in ``table``, which knows them all."""
        index = np.array([table.index(name) for name in self._code], dtype=np.int64)
        start, annotator = np.asarray(self._start), np.asarray(self._annotator)
        pair = np.repeat(np.arange(len(self)), np.diff(start))
        details = self._details.close()
        known = {name: values for name, values in details.columns.items() if name != "family"}
        if details.families:
            family = details.family_of(annotator, len(self._code))
            place = {name: k for k, name in enumerate(details.families)} | {None: -1}
            known["family"] = np.full(len(table), -1, dtype=np.int64)
            known["family"][index] = [place[name] for name in family]
        of_pairs = {"gold": np.asarray(self._gold), "lengths": np.asarray(self._lengths).reshape(-1, 2)}
        known |= {name: values for name, values in of_pairs.items() if values.any()}
        if self._topics:
            known["topic"] = np.asarray(self._topic)
        # Without an order of its own a pair gets one by its place in the data, on which no label has a say.
        by_place, said = 1 - 2 * (np.arange(len(self)) % 2), np.asarray(self._chosen_first)
        known["chosen_first"] = np.where(said != 0, said, by_place)
        columns = (torch.from_numpy(np.array(column)) for column in (pair, index[annotator], np.asarray(self._sign)))
        return Crowd.of(
            FlatVotes(*columns, num_pairs=len(self)),
            {name: torch.from_numpy(np.array(values)) for name, values in known.items()},
            list(self._topics),
        )


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
