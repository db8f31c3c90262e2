"""Records under our names for fields that a file calls otherwise: ``--columns``, ``model.data.columns``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemo_rpo.data.columns import ALIASES
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts import every
from nemo_rpo.data.layouts.layout import Layout
from nemo_rpo.errors import ConfigError, DataError

_KEYS = (RowFormat.annotator_key, RowFormat.pair_id_key)
_OF_VOTE_ROWS = frozenset(("prompt", "response_a", "response_b", "vote", *_KEYS))


def check_columns(columns: Mapping[str, str], layouts: Iterable[Layout]) -> None:
    """Raises :class:`ConfigError` where a name on the left is none that any layout reads."""
    if not columns:
        return
    known = _OF_VOTE_ROWS | every.READ | every.OF_LABELLED | ALIASES.keys()
    known = known.union(*(layout.fields for layout in layouts))
    for name, column in columns.items():
        if name not in known:
            usual = ", ".join(sorted(_OF_VOTE_ROWS | every.OF_LABELLED | {"topic"}))
            raise ConfigError(
                f"model.data.columns (--columns) names '{name}', which no layout reads; the usual names are {usual}"
            )
        if not isinstance(column, str) or not column:
            raise ConfigError(f"model.data.columns.{name} must be the name of a field, found {column!r}")


def renamed(
    records: Iterator[Record | DataError], columns: Mapping[str, str], path: Path
) -> Iterator[Record | DataError]:
    """The records with each of ``columns``' fields under its new name; ``data.answer`` is a field of an object.

    Raises:
        DataError: at the end of the file, where no row had one of them: a misspelt column must not go unseen.
    """
    unseen, names = set(columns.values()), set()
    for record in records:
        if isinstance(record, DataError):
            yield record
            continue
        names.update(record.fields)
        fields = dict(record.fields)
        found = {}
        for name, column in columns.items():
            try:
                found[name] = _value(record.fields, column)
            except KeyError:
                continue
            unseen.discard(column)
            fields.pop(column, None)
        yield Record(record.file, record.row, fields | found)
    if unseen:
        raise DataError(
            f"{path}: no row has the field '{sorted(unseen)[0]}' that model.data.columns (--columns) names; "
            f"fields seen: {', '.join(sorted(names))}"
        )


def _value(fields: Mapping[str, Any], column: str) -> Any:
    if column in fields:
        return fields[column]
    outer, dot, inner = column.partition(".")
    if not dot or not isinstance(fields.get(outer), dict):
        raise KeyError(column)
    return _value(fields[outer], inner)
