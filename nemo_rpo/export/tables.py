"""Rows into a CSV or JSONL file, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.whole import check_place
from nemo_rpo.data.files.write import record_writer, write_csv
from nemo_rpo.errors import DataError


def write_table(rows: Iterable[dict[str, Any]], out: Path, overwrite: bool) -> int:
    """Writes rows that all have the fields of the first; returns how many. ``.csv``, or what
    :func:`nemo_rpo.data.files.write.record_writer` takes.

    Raises:
        ConfigError: ``out`` is there already, or cannot be written. DataError: there are no rows.
    """
    if out.suffix != ".csv":
        count = 0
        with record_writer(out, overwrite) as write:
            for count, row in enumerate(rows, start=1):  # noqa: B007  the count is what is wanted
                write(row)
        return count
    check_place(out, overwrite)
    listed = list(rows)
    if not listed:
        raise DataError(f"no row is left to write to {out}")
    write_csv(out, listed)
    return len(listed)
