"""Gold labels from a file of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.formulas import without_quote
from nemo_rpo.data.files.read import Record, as_paths, read_records
from nemo_rpo.data.formats import LAYOUTS, pairs_without_votes, read_parsed
from nemo_rpo.data.layouts.column_names import renamed
from nemo_rpo.data.layouts.details import GOLD
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.layout import Layout
from nemo_rpo.data.vote_ledger import VoteReader
from nemo_rpo.errors import DataError

_SIDES = {"a": 1, "first": 1, "chosen": 1, "b": -1, "second": -1, "rejected": -1, "tie": 0}
# What a row says that names a winner, and what one says that holds votes.
_OF_LABELLED, _OF_VOTES = {1: "chosen", -1: "rejected", 0: "tie"}, {1: "a", -1: "b", 0: "tie"}


def read_gold(path: Path, reader: VoteReader) -> int:
    """Adds the gold labels of ``path`` to the pairs that ``reader`` has read; returns how many fit none of them.

    A row is either a pair's id and ``gold`` (``a``, ``first`` or ``chosen`` for the response that the votes' files show
    first, ``b``, ``second`` or ``rejected`` for the other; ``tie`` says nothing), or a row of any layout (or just of a
    prompt, ``response_a`` and ``response_b``) with a ``gold`` field that speaks of its own two responses, or a chosen
    response that is the better one. Such rows are told by their ids; where either file has none, by their texts. A row
    whose ``gold`` is empty or missing says nothing, as in a table that is filled in by and by.

    Raises:
        DataError: a row that is neither, or that contradicts an earlier one; names file and row.
    """
    unknown = known = found = said = 0
    for file, row, pairs in _rows(path, reader):
        said += 1
        unknown += not pairs
        known += len(pairs)
        for pair, gold in pairs:
            if gold:
                reader.ledger.add_gold(pair, gold, file, row)
                found += 1
    if not said:
        raise DataError(f"no row of {path} says what is right: give rows a field 'gold' ({', '.join(_SIDES)})")
    if known and not found:
        raise DataError(f"{path} says tie of every pair of the votes, which is no gold label: say a or b")
    if not found:
        raise DataError(f"{path} has no gold label for any pair of the votes; its pair ids or texts must be the same")
    return unknown


def _rows(path: Path, reader: VoteReader) -> Iterator[tuple[str, int, list[tuple[int, int]]]]:
    """File, row, and the pairs of every row that has a gold label, with it."""
    [path] = as_paths(path, setting="--gold", folders=True)
    keys = _keys(path, reader.keys)
    head = next(_records(path, keys))
    if not isinstance(head, DataError) and _layout(pairs_without_votes(head)):
        yield from _full_rows(path, reader, keys)
        return
    for record in _records(path, keys):
        if isinstance(record, DataError):
            raise record
        fields = Fields(record)
        pair_id = fields.identity(keys.pair_id_key, required=False)
        if pair_id is None:
            texts = "its texts (prompt, response_a and response_b)"
            raise fields.error(f"the row names no pair: give it a field '{keys.pair_id_key}', or {texts}")
        if _silent(record):
            continue
        pair = reader.pairs.named(without_quote(pair_id))
        yield record.file, record.row, [] if pair is None else [(pair, _side(fields))]


def _records(path: Path, keys: RowFormat) -> Iterator[Record | DataError]:
    return renamed(read_records(path), keys.columns, path) if keys.columns else read_records(path)


def _layout(record: Record) -> Layout | None:
    return next((layout for layout in LAYOUTS.values() if layout.recognises(record.fields)), None)


def _keys(path: Path, of_votes: RowFormat) -> RowFormat:
    """How the rows are read: as those of the votes, as far as they have the same fields; nobody has to have labelled
    them.
    """
    head = next(read_records(path))
    if isinstance(head, DataError):
        raise head
    there = {name: column for name, column in of_votes.columns.items() if column in head.fields}
    there |= {name: column for name, column in of_votes.columns.items() if column.partition(".")[0] in head.fields}
    there.pop(RowFormat.annotator_key, None)
    pair_id_key = of_votes.pair_id_key if of_votes.pair_id_key in head.fields else RowFormat.pair_id_key
    keys = RowFormat(pair_id_key=pair_id_key, columns=there, players=of_votes.players)
    named = LAYOUTS.get(of_votes.layout)
    fits = named and named.recognises(pairs_without_votes(next(_records(path, keys))).fields)
    return replace(keys, layout=of_votes.layout) if fits else keys


def _full_rows(path: Path, reader: VoteReader, keys: RowFormat) -> Iterator[tuple[str, int, list[tuple[int, int]]]]:
    for parsed in read_parsed([path], keys, prepare=_prepared):
        row, gold, silent = parsed.row, parsed.row.gold, _silent(parsed.record)
        if gold is None and silent and LAYOUTS[parsed.layout].labelled and not row.further and row.votes:
            gold = row.votes[0].sign
        if gold is None and silent:
            continue
        spoken_of = reader.pairs.spoken_of(row)
        yield row.file, row.row, [(of.text, (-1 if of.turned else 1) * (gold or 0)) for of in spoken_of]


def _silent(record: Record) -> bool:
    said = record.fields.get(GOLD)
    return said is None or said != said or (isinstance(said, str) and not said.strip())


def _prepared(record: Record) -> Record:
    """The record with its gold label in the words of its layout."""
    record = pairs_without_votes(record)
    said, layout = record.fields.get(GOLD), _layout(record)
    if layout is None or not isinstance(said, str) or (side := _SIDES.get(said.strip().lower())) is None:
        return record
    return replace(record, fields=record.fields | {GOLD: (_OF_LABELLED if layout.labelled else _OF_VOTES)[side]})


def _side(fields: Fields) -> int:
    said = str(fields.require(GOLD)).strip().lower()
    if said not in _SIDES:
        raise fields.wrong_type(GOLD, ", ".join(_SIDES), fields.require(GOLD))
    return _SIDES[said]
