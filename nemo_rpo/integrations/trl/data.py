"""Preference data with annotators for TRL: data sets, the table of annotators, and votes in every batch.

Shapes: n pairs, V votes of the pair that has most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from nemo_rpo.data.annotator_table import AnnotatorTable
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Paths, Record, as_paths
from nemo_rpo.data.formats import read_pairs
from nemo_rpo.data.layouts.details import CHOSEN_REJECTED, GOLD, OF_VOTE, TOPIC, vote_details
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.pairs import PairLedger, PairTable
from nemo_rpo.data.rows import VoteDetails, characters
from nemo_rpo.em import Votes
from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.integrations.labelled_pairs import KNOWN_FIELDS, LabelledPairs, PairFacts, fingerprint, row_knowledge

SIGN = "annotator_sign"  # optional column beside the annotator's: +1 agrees with chosen, -1 says rejected, 0 a tie
PAIR_INDEX = "rpo_pair_index"  # column of the training data; RPOTrainer adds it
CHOSEN_FIRST = "chosen_first"  # optional: ±1, whether chosen or rejected came first in the file
LABEL_KEYS = ("annotator", "sign", "valid", "pair_index")
_ROWS_AT_ONCE = 1000  # of the fingerprint


def preference_dataset(paths: Paths, keys: RowFormat | None = None, group_votes: bool = True) -> Dataset:
    """The pairs of one or several preference files, in any layout this package reads, as TRL takes them; of a ranking
    all its pairs, each a label of its own.

    Args:
        paths: JSONL, JSONL.gz, JSON, CSV, TSV or Parquet.
        keys: layout, and the fields of annotator and pair id.
        group_votes: all labels of a pair make one row, so that they share one posterior and one forward pass; off, a
            row a label.

    Returns:
        ``prompt``, ``chosen``, ``rejected``, ``annotator`` (a list of ids), ``annotator_sign`` (a list of ±1),
        ``pair_id``; where a row of the files has them, ``shown_first``, ``strength``, ``confidence``, ``seconds``,
        ``time`` and ``family`` (a list each, one a label), ``gold``, ``topic``, and ``chosen_first``. Pairs on which
        nobody took a side are left out.

    Raises:
        DataError: a row that does not fit its layout, or one that names no annotator.
    """
    keys = keys or RowFormat()
    ledger, texts = PairLedger(group_votes), []
    for _, _, row in read_pairs(as_paths(paths), keys):
        if any(vote.annotator is None for vote in row.votes):
            raise DataError(
                f"{row.where}: the row names no annotator in its field '{keys.annotator_key}'; set annotator_key to "
                "the field that does"
            )
        row.require_pair("RPOTrainer")
        if ledger.add(row) is not None:
            texts.append((row.prompt, row.chosen, row.rejected))
    return Dataset.from_list(list(_rows(ledger, texts)))


def _rows(ledger: PairLedger, texts: list[tuple[Any, Any, Any]]) -> Iterator[dict[str, Any]]:
    table = ledger.close()
    for i in range(len(table)):
        votes = slice(table.vote_start[i], table.vote_start[i + 1])
        if votes.start == votes.stop:
            continue
        prompt, first, second = texts[table.text[i]]
        yield {
            "prompt": prompt,
            "chosen": second if table.turned[i] else first,
            "rejected": first if table.turned[i] else second,
            "annotator": [table.annotators.ids[k] for k in table.annotator[votes]],
            SIGN: [int(sign) for sign in table.sign[votes]],
            "pair_id": table.pair_id[i],
            **_known(table, i, votes),
        }


def _known(table: PairTable, i: int, votes: slice) -> dict[str, Any]:
    """What is known of a pair and its votes beside who said what: as :func:`labelled_pairs` reads it."""
    words = {side: word for word, side in CHOSEN_REJECTED.items()}
    details = [table.details.of(vote) for vote in range(votes.start, votes.stop)]
    found: dict[str, Any] = {}
    for name in table.details.columns:
        values = [getattr(of, name) for of in details]
        found[name] = (
            [words.get(x) for x in values] if name == "shown_first" else [None if x != x else x for x in values]
        )
    if "shown_first" in found:
        found[CHOSEN_FIRST] = int(table.chosen_first[i])
    if table.gold.any():
        found[GOLD] = words.get(int(table.gold[i]))
    if table.topics:
        found[TOPIC] = table.topics[table.topic[i]] if table.topic[i] >= 0 else None
    return found


def labelled_pairs(dataset: Dataset, annotator_key: str | None) -> LabelledPairs:
    """Who labelled each pair of the training data.

    Args:
        dataset: with a column of ids, or of lists of ids where several people labelled a pair.
        annotator_key: that column; None makes all labels one annotator's.

    Raises:
        ConfigError: the data set is a stream, whose annotators nobody knows before its end.
        DataError: there is no such column, or a row leaves it empty or does not fit the column of signs.
    """
    if isinstance(dataset, IterableDataset):
        raise ConfigError(
            "RPOTrainer needs to know its annotators before it starts: pass a Dataset, not an IterableDataset"
        )
    if annotator_key is None:
        return LabelledPairs.of_one(len(dataset), "train_dataset:1")
    if annotator_key not in dataset.column_names:
        raise DataError(
            f"the training data has no column '{annotator_key}'; it has {', '.join(dataset.column_names)}. Set "
            "rpo.annotator_key to the column with the annotator, or to null if there is none"
        )
    names = [name for name in (annotator_key, SIGN, *_KNOWN) if name in dataset.column_names]
    texts = [dataset[name] for name in ("chosen", "rejected") if name in dataset.column_names]
    pairs = LabelledPairs()
    for i, values in enumerate(zip(*(dataset[name] for name in names), strict=True)):
        record = Record("train_dataset", i + 1, dict(zip(names, values, strict=True)))
        votes = _votes(record, annotator_key)
        if any(identity is None for identity, _ in votes):
            raise DataError(f"{record.where}: the row names no annotator in its column '{annotator_key}'")
        lengths = tuple(characters(of[i] or ()) for of in texts) if len(texts) == 2 else (0, 0)
        details, facts = _knowledge(record, len(votes))
        first = record.fields.get(CHOSEN_FIRST) or 0
        pairs.add(record.where, votes, details, facts._replace(lengths=lengths, chosen_first=first))
    return pairs


_KNOWN = (*KNOWN_FIELDS, CHOSEN_FIRST)


def _knowledge(record: Record, votes: int) -> tuple[list[VoteDetails], PairFacts]:
    """Details of each vote, whose columns hold a list, or one value for all; and what the row says of the pair."""
    fields = record.fields
    if not any(isinstance(fields.get(name), list) for name in OF_VOTE):
        details, facts = row_knowledge(Fields(record))
        return [details] * votes, facts
    of_votes = []
    for v in range(votes):
        own = {name: _of_vote(record, name, v, votes) for name in OF_VOTE if name in fields}
        of_votes.append(vote_details(Fields(record, own), CHOSEN_REJECTED))
    rest = {name: value for name, value in fields.items() if name not in OF_VOTE}
    return of_votes, row_knowledge(Fields(record, rest))[1]


def _of_vote(record: Record, name: str, vote: int, votes: int) -> Any:
    value = record.fields[name]
    if isinstance(value, list) and len(value) != votes:
        raise DataError(f"{record.where}: column '{name}' must hold one value for each of the {votes} annotators")
    return value[vote] if isinstance(value, list) else value


def data_fingerprint(dataset: Dataset, annotator_key: str | None) -> str:
    """A digest of texts and labels in their order, see :func:`fingerprint`."""
    used = ("prompt", "chosen", "rejected", annotator_key, SIGN, *_KNOWN)
    read = [name for name in used if name in dataset.column_names]
    plain = dataset.select_columns(read).with_format(None)
    return fingerprint(plain[start : start + _ROWS_AT_ONCE] for start in range(0, len(plain), _ROWS_AT_ONCE))


def with_pair_index(dataset: Dataset) -> Dataset:
    """The training data with each pair's index, by which the margin buffer knows it, in a column of its own."""
    if PAIR_INDEX in dataset.column_names:  # from another trainer, maybe over other pairs
        dataset = dataset.remove_columns(PAIR_INDEX)
    return dataset.add_column(PAIR_INDEX, np.arange(len(dataset)))


class VoteCollator:
    """TRL's collator of a data set, with who said what: ``annotator`` int64 [n, V], ``sign`` float32 [n, V], ``valid``
    bool [n], and ``pair_index`` int64 [n], of which pair of the training data (-1: of none).

    A pair carries no evidence, and is not valid, where nobody took a side, where a response is empty, or where both
    have the same tokens (truncation makes such pairs). Annotators without an η, and rows that name none, get index K.

    Attributes:
        annotators: who stands behind each index; a resumed run puts its checkpoint's table here.
    """

    def __init__(self, collator: Callable, annotators: AnnotatorTable, annotator_key: str | None) -> None:
        self.collator, self.annotators, self.annotator_key = collator, annotators, annotator_key

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        votes = [self._votes_of(row, example) for row, example in enumerate(examples, start=1)]
        width = max(len(of_pair) for of_pair in votes)
        filled = [of_pair + [(0, 0.0)] * (width - len(of_pair)) for of_pair in votes]
        batch = dict(self.collator(examples))
        batch["annotator"] = torch.tensor([[index for index, _ in of_pair] for of_pair in filled])
        batch["sign"] = torch.tensor([[sign for _, sign in of_pair] for of_pair in filled])
        batch["valid"] = _responses_differ(batch) & (batch["sign"] != 0).any(-1)
        batch["pair_index"] = torch.tensor([example.get(PAIR_INDEX, -1) for example in examples])
        return batch

    def _votes_of(self, row: int, example: dict[str, Any]) -> list[tuple[int, float]]:
        if self.annotator_key is None:
            return [(0, 1.0)]
        stranger, key = len(self.annotators), self.annotator_key
        return [
            (self.annotators.index(identity) if identity in self.annotators else stranger, value)
            for identity, value in _votes(Record("batch", row, example), key)
        ]


class Labels(NamedTuple):
    """What :class:`VoteCollator` added to a batch: votes [n, V], which pairs are valid [n], their index [n]."""

    votes: Votes
    valid: Tensor
    pair: Tensor


def take_labels(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Labels]:
    """The batch as a model takes it, and what :class:`VoteCollator` added."""
    rest = {key: value for key, value in inputs.items() if key not in LABEL_KEYS}
    return rest, Labels(Votes(inputs["annotator"], inputs["sign"]), inputs["valid"], inputs["pair_index"])


def _votes(record: Record, annotator_key: str) -> list[tuple[str | None, float]]:
    """(id, sign) of every label of a row, from single values or lists; without a sign everybody agrees with chosen."""
    annotator, sign = record.fields.get(annotator_key), record.fields.get(SIGN)
    identities = annotator if isinstance(annotator, list) else [annotator]
    signs = sign if isinstance(sign, list) else [1 if sign is None else sign] * len(identities)
    if len(signs) != len(identities) or any(value not in (-1, 0, 1) for value in signs):
        raise DataError(
            f"{record.where}: column '{SIGN}' must hold -1, 0 or 1 for each of the {len(identities)} annotators; "
            f"got {sign!r}"
        )
    names = (Fields(record, {annotator_key: one}).identity(annotator_key, required=False) for one in identities)
    return [(name, float(value)) for name, value in zip(names, signs, strict=True)]


def _responses_differ(batch: Mapping[str, Tensor]) -> Tensor:
    """Whether both responses of a pair have tokens, and not the same ones, bool [n]; chosen come first in a batch."""
    chosen, rejected = batch["input_ids"].chunk(2)
    chosen_mask, rejected_mask = batch["completion_mask"].bool().chunk(2)
    differ = (chosen != rejected) | (chosen_mask != rejected_mask)
    return differ.any(-1) & chosen_mask.any(-1) & rejected_mask.any(-1)
