"""Gold labels from a file of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemo_rpo.data.files.formulas import without_quote
from nemo_rpo.data.files.read import as_paths, read_records
from nemo_rpo.data.formats import LAYOUTS, read_parsed
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.vote_ledger import VoteReader
from nemo_rpo.errors import DataError, RowError

_SIDES = {"a": 1, "first": 1, "chosen": 1, "b": -1, "second": -1, "rejected": -1, "tie": 0}


def read_gold(path: Path, reader: VoteReader) -> int:
    """Adds the gold labels of ``path`` to the pairs that ``reader`` has read; returns how many fit none of them.

    A row is either a pair's id and ``gold`` (``a``, ``first`` or ``chosen`` for the response that the votes' files show
    first, ``b``, ``second`` or ``rejected`` for the other; ``tie`` says nothing), or a row of any layout whose texts
    and ids are those of the votes' files, with a ``gold`` field or a chosen response that is the better one.

    Raises:
        DataError: a row that is neither, or that contradicts an earlier one; names file and row.
    """
    unknown = found = 0
    for file, row, pair, gold in _rows(path, reader):
        if pair is None:
            unknown += 1
        elif gold:
            reader.ledger.add_gold(pair, gold, file, row)
            found += 1
    if not found:
        raise DataError(f"{path} has no gold label for any pair of the votes; its pair ids or texts must be the same")
    return unknown


def _rows(path: Path, reader: VoteReader) -> Iterator[tuple[str, int, int | None, int]]:
    """File, row, pair and gold label of every row."""
    [path] = as_paths(path, setting="--gold", folders=True)
    head = next(read_records(path))
    if isinstance(head, DataError):
        raise head
    if any(layout.recognises(head.fields) for layout in LAYOUTS.values()):
        yield from _full_rows(path, reader)
        return
    for record in read_records(path):
        if isinstance(record, DataError):
            raise record
        fields = Fields(record)
        pair = str(without_quote(fields.identity(reader.keys.pair_id_key, required=True)))
        yield record.file, record.row, reader.pairs.named(pair), _side(fields)


def _full_rows(path: Path, reader: VoteReader) -> Iterator[tuple[str, int, int | None, int]]:
    for parsed in read_parsed([path], reader.keys):
        row, gold = parsed.row, parsed.row.gold
        if gold is None and LAYOUTS[parsed.layout].labelled and not row.further and row.votes:
            gold = row.votes[0].sign
        if gold is None:
            raise RowError(row.file, row.row, "the row says nothing of the truth: give it a field 'gold'")
        sighting = reader.pairs.seen(row)
        yield row.file, row.row, sighting and sighting.text, -gold if sighting and sighting.turned else gold


def _side(fields: Fields) -> int:
    said = str(fields.require("gold")).strip().lower()
    if said not in _SIDES:
        raise fields.wrong_type("gold", ", ".join(_SIDES), fields.require("gold"))
    return _SIDES[said]
