"""Records that belong together, where a comparison is not one row's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_rpo.data.files.read import Record
from nemo_rpo.errors import DataError, RowError

UTTERANCES = "utterances"


def conversations(records: Iterator[Record | DataError]) -> Iterator[Record | DataError]:
    """PRISM's rows by conversation. Rows of one that do not follow one another are an error."""
    seen: set[Any] = set()
    for group in _runs(records, "conversation_id"):
        name = None if isinstance(group, DataError) else str(group.fields[UTTERANCES][0].get("conversation_id"))
        if name in seen and not isinstance(group, DataError):
            problem = f"conversation_id '{name}' stands in earlier rows too; sort the file by it"
            yield RowError(group.file, group.row, problem)
        else:
            seen.add(name)
            yield group


def same_prompt(records: Iterator[Record | DataError]) -> Iterator[Record | DataError]:
    """HelpSteer2's rows by prompt."""
    return _runs(records, "prompt")


def _runs(records: Iterator[Record | DataError], key: str) -> Iterator[Record | DataError]:
    first: Record | None = None
    held: list[dict[str, Any]] = []
    for record in records:
        if isinstance(record, DataError):
            yield record
            continue
        if first is not None and record.fields.get(key) == first.fields.get(key):
            held.append(record.fields)
            continue
        if first is not None:
            yield Record(first.file, first.row, {UTTERANCES: held})
        first, held = record, [record.fields]
    if first is not None:
        yield Record(first.file, first.row, {UTTERANCES: held})
