"""Relabelled rows on their way back: the file of doubtful labels with its column ``relabel`` filled in."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from nemo_rpo.data.files.read import Record, as_paths, read_records
from nemo_rpo.data.rows import Vote
from nemo_rpo.errors import DataError, RowError
from nemo_rpo.export.doubtful import BY, RELABEL
from nemo_rpo.report.run import Run

_SIGNS = {"a": 1, "b": -1, "tie": 0}


class Relabelled(NamedTuple):
    """New labels by the row of the label that each replaces; signs are relative to the data's first response."""

    votes: dict[int, Vote]
    unanswered: int


def read_relabelled(path: Path, run: Run, by: str) -> Relabelled:
    """Reads CSV, JSONL or Parquet; rows whose ``relabel`` is empty are left as they are.

    Args:
        by: whose labels these are, where the row's ``relabelled_by`` is empty.

    Raises:
        DataError: with file and row, where a row is none of those that were exported, or its answer none of them.
    """
    [checked] = as_paths(path, setting="--relabelled")
    votes: dict[int, Vote] = {}
    unanswered = 0
    for record in read_records(checked):
        if isinstance(record, DataError):
            raise record
        answer = str(record.fields.get(RELABEL) or "").strip().lower()
        row = _row(record, run)
        if not answer:
            unanswered += 1
            continue
        if answer not in _SIGNS:
            raise _problem(record, f"{RELABEL} is '{answer}'; it can be a, b, tie, or nothing")
        if row in votes:
            raise _problem(record, f"label_id {row} stands in an earlier row too")
        votes[row] = Vote(str(record.fields.get(BY) or "").strip() or by, _SIGNS[answer])
    return Relabelled(votes, unanswered)


def _row(record: Record, run: Run) -> int:
    given: Any = record.fields.get("label_id")
    try:
        row = int(given)
    except (TypeError, ValueError):
        raise _problem(record, f"label_id is {given!r}; keep that column of the exported file") from None
    if not 0 <= row < len(run.labels) or str(run.labels.pair_id[row]) != _pair_id(record):
        raise _problem(record, f"label_id {row} of pair '{record.fields.get('pair_id')}' is no label of {run.folder}")
    return row


def _pair_id(record: Record) -> str:
    return str(record.fields.get("pair_id"))


def _problem(record: Record, text: str) -> RowError:
    return RowError(record.file, record.row, text)
