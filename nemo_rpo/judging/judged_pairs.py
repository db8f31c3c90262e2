"""Pairs to be judged, with whatever people have said of them already; and the votes file that comes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.conversion.layouts import votes as votes_layout
from nemo_rpo.conversion.merged import MergedPair
from nemo_rpo.crowd.anchors_file import read_gold
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import as_paths
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.formats import LAYOUTS, pairs_without_votes, read_parsed
from nemo_rpo.data.identity import comparisons
from nemo_rpo.data.rows import Given, PreferenceRow, Text, Vote
from nemo_rpo.data.vote_ledger import VoteReader
from nemo_rpo.data.vote_table import VoteTable

_FILE = "votes.jsonl"
_SAID = frozenset(("votes", "gold"))  # of a row, what a judge must not see


@dataclass(frozen=True)
class JudgedPair:
    """Two responses to a prompt, in an order that no label has decided.

    Attributes:
        pair_id: the file's, or a hash of the content.
        prompt, a, b: texts or messages.
        votes: of people, relative to ``a``.
        gold: +1 a is better, -1 b is, None not known.
        topic, columns, given: as of a row (:class:`nemo_rpo.data.rows.PreferenceRow`).
        fields: the rest of the pair's first row, without labels.
    """

    pair_id: str
    prompt: Text
    a: Text
    b: Text
    votes: tuple[Vote, ...] = ()
    gold: int | None = None
    topic: str | None = None
    columns: dict[str, float] = field(default_factory=dict)
    given: Given = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


def pairs_to_judge(
    paths: Sequence[Path], keys: RowFormat | None = None, gold: Path | None = None, labels: bool = True
) -> tuple[list[JudgedPair], int]:
    """All pairs of files of any layout, and how many gold labels of ``gold`` are for none of them. All texts are held.

    Rows may also have a prompt, ``response_a`` and ``response_b`` and nothing else. Of layouts that name a winner the
    two stand in the order of a hash of their texts. ``labels=False`` leaves the labels of the files out.

    Raises:
        DataError: a row that cannot be read, or contradicts an earlier one.
    """
    reader, rows = VoteReader(keys), []
    checked = as_paths(paths, setting="PAIRS", folders=True)
    for parsed in read_parsed(checked, reader.keys, prepare=pairs_without_votes):
        for row in comparisons(parsed.row):
            row.require_pair("nemo-rpo judge")
            sighting = reader.pairs.find(row)
            reader.ledger.add(row, sighting, parsed.row.size)
            if sighting.new:
                fields = {name: value for name, value in parsed.record.fields.items() if name not in _SAID}
                rows.append((row, fields, LAYOUTS[parsed.layout].labelled))
    unknown = read_gold(gold, reader) if gold else 0
    table = reader.close()
    votes = _votes(table) if labels else [[] for _ in rows]
    found = []
    for i, (row, fields, labelled) in enumerate(rows):
        turned = labelled and bool(table.content_turned[i])
        known = int(table.gold[i]) * (-1 if turned else 1)
        a, b = (row.rejected, row.chosen) if turned else (row.chosen, row.rejected)
        said = tuple(vote.turned() if turned else vote for vote in votes[i])
        columns = {} if labelled else row.columns
        found.append(
            JudgedPair(table.pair_id[i], row.prompt, a, b, said, known or None, row.topic, columns, row.given, fields)
        )
    return found, unknown


def write_votes(out: Path, pairs: Sequence[JudgedPair], votes: Mapping[str, Sequence[Vote]]) -> int:
    """People's votes and those of judges by pair, in the layout ``votes``, which training reads; returns the rows. A
    pair of which nobody said anything is left out.

    Raises:
        DataError: nobody said anything. ConfigError: ``out`` cannot be written.
    """
    written, lost = 0, Counter()
    with record_writer(out, overwrite=True) as write:
        for pair in pairs:
            said = [*pair.votes, *votes.get(pair.pair_id, ())]
            if said:
                merged = MergedPair(
                    "", pair.pair_id, pair.prompt, pair.a, pair.b, said, pair.gold, pair.topic, pair.columns, pair.given
                )
                for fields in votes_layout(merged, lost):
                    write(fields)
                written += 1
    return written


def as_table(pairs: Sequence[JudgedPair], votes: Mapping[str, Sequence[Vote]]) -> VoteTable:
    """The same as a table, whose rows are those of the file; the first response of a pair is its ``a``."""
    reader = VoteReader()
    cast = [(pair, (*pair.votes, *votes.get(pair.pair_id, ()))) for pair in pairs]
    for row, (pair, said) in enumerate(((pair, said) for pair, said in cast if said), start=1):
        texts = (pair.prompt, pair.a, pair.b)
        reader.add(PreferenceRow(_FILE, row, pair.pair_id, *texts, said, gold=pair.gold, topic=pair.topic))
    table = reader.close()
    # Where all votes are for a, the order looks like that of a file which names winners first; it is none.
    return replace(table, content_turned=np.zeros_like(table.content_turned))


def _votes(table: VoteTable) -> list[list[Vote]]:
    """Of each pair, in the order of the files."""
    found: list[list[Vote]] = [[] for _ in range(table.pairs)]
    ids = table.annotators.ids
    for v, (pair, k, sign, unnamed) in enumerate(
        zip(table.pair.tolist(), table.annotator.tolist(), table.sign.tolist(), table.unnamed.tolist(), strict=True)
    ):
        found[pair].append(Vote(None if unnamed else ids[k], sign, table.details.of(v)))
    return found
