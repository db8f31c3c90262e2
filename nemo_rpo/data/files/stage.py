"""A table that is made item by item, by something slow and mortal, and is whole or not there.

Until all items are there they stand as lines of ``NAME.jsonl`` beside ``NAME.parquet``; then the Parquet file is
renamed into place and the lines are deleted. Both name the inputs that they are made of. Whoever starts again reads the
lines back, drops a last one that was cut, and asks for what is missing: there is no other state to disagree with.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nemo_rpo.data.files.whole import check_place, whole_file
from nemo_rpo.errors import ConfigError, DataError, RPOError, first_line, missing_extra

log = logging.getLogger(__name__)
Row = dict[str, Any]
Key = tuple[Any, ...]
_INPUTS = "nemo_rpo.inputs"


def fingerprint(inputs: Mapping[str, Any]) -> str:
    """SHA-256 of plain data, hexadecimal; the same whatever the order of the keys.

    >>> fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    True
    """
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Stage:
    """One table in the making.

    Args:
        out: the Parquet file to be.
        columns: names and Arrow types (``string``, ``int64``, ``float64``, ``bool``), in order.
        keys: the columns that name a row.
        inputs: the :func:`fingerprint` of what the table is made of.

    Raises:
        ConfigError: what is at ``out`` was made of other inputs, or is being made by another process; or the folder
            does not exist.
        DataError: what is there is damaged.
    """

    def __init__(self, out: Path, columns: Mapping[str, str], keys: Sequence[str], inputs: str) -> None:
        self.out, self.lines, self.inputs = out, out.with_suffix(".jsonl"), inputs
        self._columns, self._keys = dict(columns), tuple(keys)
        self._file: IO[bytes] | None = None
        if out.suffix != ".parquet":
            raise ConfigError(f"{out}: the name must end in .parquet")
        check_place(out)
        self.done = out.exists()
        if not self.done:
            self._claim()
        self.rows: dict[Key, Row] = {}
        try:
            for row in self._read_back():
                self.rows[self.key(row)] = row
        except RPOError:
            self.close()
            raise

    def key(self, row: Mapping[str, Any]) -> Key:
        """What names a row."""
        return tuple(row[name] for name in self._keys)

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those of ``keys`` that have no row yet, in order."""
        return [key for key in keys if key not in self.rows]

    def add(self, row: Row) -> None:
        """Keeps a row; it is in the file when this returns, so that an end of this process does not lose it."""
        if self._file is None:
            self._claim()
        if not self._file.seek(0, os.SEEK_END):
            self._write({_INPUTS: self.inputs})
        self._write({name: row[name] for name in self._columns})
        self.rows[self.key(row)] = row

    def finish(self, keys: Iterable[Key]) -> list[Row]:
        """The rows of ``keys`` in their order, which is the table; other rows that were read back are left out.

        Raises:
            KeyError: a row is missing.
        """
        rows = [self.rows[key] for key in keys]
        if not self.done:
            self.close()
            write_table(self.out, rows, self._columns, self.inputs)
            self.lines.unlink(missing_ok=True)
            self.done = True
        return rows

    def discard(self) -> None:
        """Throws the lines away: what they hold is of no use."""
        self.close()
        self.lines.unlink(missing_ok=True)
        self.rows = {}

    def close(self) -> None:
        """Closes the file of lines, and lets others add to it; what is missing can be added later."""
        if self._file is not None:
            if not self._file.seek(0, os.SEEK_END):
                self.lines.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _claim(self) -> None:
        try:
            self._file = self.lines.open("a+b", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise ConfigError(f"{self.lines} is being written by another process; wait for it, or end it") from None
        except OSError as exc:
            if self._file is None:
                advice = "name another place"
                raise ConfigError(f"{self.lines} cannot be written ({exc.strerror or exc}); {advice}") from exc
            log.info("%s cannot be locked on this file system (%s)", self.lines, exc.strerror)

    def _write(self, content: Row) -> None:
        try:
            # Escapes: half an emoji is no UTF-8, and a server may well send one.
            line = json.dumps(content).encode("ascii") + b"\n"
            if self._file.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as exc:
            advice = "make room and run the same command again: it goes on from there"
            raise ConfigError(f"{self.lines} cannot be written ({exc.strerror or exc}); {advice}") from exc

    def _read_back(self) -> list[Row]:
        if self.done:
            rows, inputs = read_table(self.out)
            self._check(inputs, self.out)
            return rows
        if not self.lines.exists():
            return []
        data = self.lines.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            with self.lines.open("r+b") as file:  # what comes next must not continue half a line
                file.truncate(len(whole))
        rows = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as exc:
                advice = "delete that line, or the file to begin anew"
                raise DataError(f"{self.lines}:{number}: bad JSON ({first_line(exc)}); {advice}") from exc
        if not rows:
            return []
        self._check(rows[0].get(_INPUTS), self.lines)
        return rows[1:]

    def _check(self, inputs: str | None, path: Path) -> None:
        if inputs != self.inputs:
            raise ConfigError(
                f"{path} was made of other inputs (prompts, pairs or settings have changed since); name another place, "
                "or delete it to begin anew"
            )


def write_table(out: Path, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], inputs: str) -> None:
    """Rows as Parquet with the fingerprint of what they are made of, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
        MissingExtraError: pyarrow is not installed.
    """
    pa, pq = _pyarrow()
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in columns.items()], metadata={_INPUTS: inputs})
    # Half an emoji again: Arrow's strings are UTF-8.
    values = {name: [_utf8(row[name]) for row in rows] for name in columns}
    table = pa.table([pa.array(values[field.name], field.type) for field in schema], schema=schema)
    with whole_file(out, ConfigError, "name another place") as writing:
        pq.write_table(table, writing)


def read_table(path: Path) -> tuple[list[Row], str | None]:
    """The rows of a table of :func:`write_table`, and the fingerprint of what it is made of; None in other files.

    Raises:
        DataError: no such file, or a damaged one.
    """
    pa, pq = _pyarrow()
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as exc:
        raise DataError(f"{path}: no Parquet file, or a truncated one ({first_line(exc).rstrip('.')})") from exc
    inputs = (table.schema.metadata or {}).get(_INPUTS.encode())
    return table.to_pylist(), None if inputs is None else inputs.decode()


def _utf8(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as exc:
        raise missing_extra("pyarrow", "loop") from exc
    return pyarrow, pyarrow.parquet
