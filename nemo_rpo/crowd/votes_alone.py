"""Files of votes without texts: a row a vote, with the id of what was judged."""

from __future__ import annotations

import re
from collections.abc import Iterator, Set
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nemo_rpo.crowd.long_form import BESIDE, signs, vote_table
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record, as_paths, read_records
from nemo_rpo.data.formats import LAYOUTS
from nemo_rpo.data.layouts.column_names import renamed
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import DataError

# What files call them; our own names first. The keys of the row format come before all.
_PAIR = ("pair", "pair_id", "task", "item", "comparison_id", "question_id")
_ANNOTATOR = ("annotator", "annotator_id", "worker", "worker_id", "WorkerId", "user_id", "rater", "judge")
_VOTE = ("vote", "label", "choice", "preference", "winner")
_GOLD = ("gold", "truth", "ground_truth")
_SIDES = ("vote", "gold", "shown_first")  # the columns that hold a side, which may be spelt as a number
_HEAD = 100  # rows that show what a file has
_ROW = re.compile(r"^row (\d+): ")


def read_votes_alone(paths: list[Path], keys: RowFormat, gold: Path | None = None) -> tuple[VoteTable, int] | None:
    """The votes of files that have no texts, and how many labels of ``gold`` are for pairs that nobody labelled; None
    where the first rows are of a layout with texts, or have no pair, annotator and vote.

    A row has the id of a pair, an annotator and a vote, under one of their usual names or those of ``keys``, and may
    have ``gold``, ``shown_first``, ``strength``, ``confidence``, ``seconds``, ``time``, ``family`` and ``topic``. Votes
    are read as :func:`nemo_rpo.crowd.estimate.estimate_reliability` reads them.

    Raises:
        DataError: a row that cannot be understood; names file and row.
    """
    paths = as_paths(paths, setting="the path", folders=True)
    head = [record for record in islice(_or_errors(paths[0], keys), _HEAD) if isinstance(record, Record)]
    if any(layout.recognises(record.fields) for layout in LAYOUTS.values() for record in head):
        return None
    names = _names({name for record in head for name in record.fields}, keys)
    if names is None:
        return None
    records = [record for path in paths for record in _records(path, keys)]
    columns = {name: [record.fields.get(name) for record in records] for name in names.values()}
    for name in (names[side] for side in _SIDES if side in names):
        columns[name] = [_value(value) for value in columns[name]]
    try:
        table = vote_table(columns, names)
    except DataError as exc:
        raise _at(records, exc) from None
    unknown = 0
    if gold is not None:
        known, unknown = _gold(gold, keys, table)
        table = replace(table, gold=known)
    return _placed(table, records), unknown


def _or_errors(path: Path, keys: RowFormat) -> Iterator[Record | DataError]:
    records = read_records(path)
    return renamed(records, keys.columns, path) if keys.columns else records


def _records(path: Path, keys: RowFormat) -> Iterator[Record]:
    for record in _or_errors(path, keys):
        if isinstance(record, DataError):
            raise record
        yield record


def _names(fields: Set[str], keys: RowFormat) -> dict[str, str] | None:
    wanted = {
        "pair": (keys.pair_id_key, *_PAIR),
        "annotator": (keys.annotator_key, *_ANNOTATOR),
        "vote": _VOTE,
    }
    found = {what: next((name for name in names if name in fields), None) for what, names in wanted.items()}
    if None in found.values():
        return None
    return found | {name: name for name in BESIDE if name in fields}


def _value(value: Any) -> Any:
    """Numbers as numbers: a CSV file holds strings."""
    if isinstance(value, str) and value.strip() in ("1", "-1", "0", "+1"):
        return int(value)
    return value


def _gold(path: Path, keys: RowFormat, table: VoteTable) -> tuple[np.ndarray, int]:
    """Gold labels [n] by the pair's id, and how many are for other pairs."""
    [path] = as_paths([path], setting="--gold", folders=True)
    records = list(_records(path, keys))
    pair = next((name for name in (keys.pair_id_key, *_PAIR) if name in records[0].fields), None)
    side = next((name for name in _GOLD if name in records[0].fields), None)
    if pair is None or side is None:
        seen = ", ".join(sorted(records[0].fields))
        raise DataError(f"{path} needs a pair's id ({', '.join(_PAIR)}) and {' or '.join(_GOLD)}; fields seen: {seen}")
    try:
        told = signs([_value(record.fields.get(side)) for record in records], side)
    except DataError as exc:
        raise _at(records, exc) from None
    place, known, unknown = {name: i for i, name in enumerate(table.pair_id)}, table.gold.copy(), 0
    for record, sign in zip(records, told.tolist(), strict=True):
        index = place.get(str(record.fields.get(pair)))
        unknown += index is None
        if index is not None and sign:
            if known[index] == -sign:
                raise DataError(f"{record.file}:{record.row}: the pair has the opposite gold label in an earlier row")
            known[index] = sign
    if unknown == len(records):
        raise DataError(f"{path} has no gold label for any pair of the votes; its pair ids must be the same")
    return known, unknown


def _placed(table: VoteTable, records: list[Record]) -> VoteTable:
    """The table with every vote where its file has it."""
    files = list(dict.fromkeys(record.file for record in records))
    number = {name: i for i, name in enumerate(files)}
    file, row = np.array([(number[record.file], record.row) for record in records]).T
    return replace(table, files=files, file=file, row=row, pair_file=file[table.pair_row], pair_row=row[table.pair_row])


def _at(records: list[Record], error: DataError) -> DataError:
    """``row 3: …``, counted from 0 over all files, as ``votes.csv:5: …``."""
    place = _ROW.match(str(error))
    if place is None:
        return DataError(f"{records[0].file}: {error}")
    record = records[int(place[1])]
    return DataError(f"{record.file}:{record.row}: {str(error)[place.end() :]}")
