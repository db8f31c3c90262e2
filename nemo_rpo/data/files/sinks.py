"""Where records go while they are written: one class a file format."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import logging
from abc import ABC, abstractmethod
from pathlib import Path
from typing import IO, Any

from nemo_rpo.data.files import saved_dataset
from nemo_rpo.data.files.formulas import with_quote
from nemo_rpo.data.files.read import BUFFER
from nemo_rpo.errors import DataError, first_line, missing_extra

log = logging.getLogger(__name__)
_BATCH = 4096  # rows that a Parquet schema is looked for in at a time


class Sink(ABC):
    """Writes records into a folder of its own."""

    @abstractmethod
    def __init__(self, folder: Path) -> None: ...

    @abstractmethod
    def write(self, fields: dict[str, Any]) -> None:
        """Adds a record."""

    @abstractmethod
    def finish(self) -> Path:
        """The finished file or folder."""

    @abstractmethod
    def close(self) -> None:
        """Gives up whatever is open."""


class Lines(Sink):
    """JSONL."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rows.jsonl"
        self._file = self._opened()

    def _opened(self) -> IO[bytes]:
        return open(self.path, "wb", BUFFER)

    def write(self, fields: dict[str, Any]) -> None:
        self._file.write(line(fields))

    def finish(self) -> Path:
        self._file.close()
        return self.path

    def close(self) -> None:
        self._file.close()


class GzippedLines(Lines):
    """JSONL, gzipped."""

    def _opened(self) -> IO[bytes]:
        return gzip.open(self.path, "wb")


class Array(Lines):
    """JSON: one array with an object a line."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._between = b"["

    def write(self, fields: dict[str, Any]) -> None:
        self._file.write(self._between + b"\n" + line(fields)[:-1])
        self._between = b","

    def finish(self) -> Path:
        self._file.write(b"\n]\n")
        return super().finish()


class Csv(Lines):
    """CSV, by way of lines: a column may come up in the last row."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._names: dict[str, None] = {}

    def write(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            if isinstance(value, dict | list):
                raise DataError(
                    f"a CSV file holds texts and numbers, and '{name}' has more to it; write .jsonl instead"
                )
        self._names |= dict.fromkeys(fields)
        super().write(fields)

    def finish(self) -> Path:
        lines, path, quoted = super().finish(), self.path.with_name("rows.csv"), 0
        with lines.open("rb") as read, path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(self._names))
            writer.writeheader()
            for text in read:
                fields = json.loads(text)
                safe = {name: with_quote(value) for name, value in fields.items()}
                quoted += sum(safe[name] is not value for name, value in fields.items())
                try:
                    writer.writerow(safe)
                except UnicodeEncodeError as exc:  # half an emoji
                    raise DataError(f"a text cannot be written as UTF-8 ({exc.reason}); write .jsonl instead") from exc
        if quoted:
            log.warning(
                "%d texts that a spreadsheet would run as a formula have a ' in front; reading takes it off", quoted
            )
        return path


class Parquet(Sink):
    """Parquet. A column may come up, or change its type, in the last batch: from the first batch that does not fit the
    ones before it all wait in Arrow's own format, and the file is written again under the schema of all.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import pyarrow
        except ImportError as exc:
            raise missing_extra("pyarrow", "data") from exc
        self._path, self._held, self._waiting = folder / "rows.parquet", [], []
        self._schema, self._writer = pyarrow.schema([]), None

    def write(self, fields: dict[str, Any]) -> None:
        self._held.append(fields)
        if len(self._held) == _BATCH:
            self._set_down()

    def finish(self) -> Path:
        if self._held:
            self._set_down()
        self.close()
        if self._waiting:
            first = self._path.rename(self._path.with_name("first.parquet"))
            try:
                self._again(first)
            except _unfit() as exc:
                raise _no_table(exc) from exc
        return self._path

    def close(self) -> None:
        self._held = []
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _set_down(self) -> None:
        import pyarrow

        try:
            # from_pylist takes its columns from the first row alone.
            names = dict.fromkeys(name for fields in self._held for name in fields)
            columns = [_column([fields.get(name) for fields in self._held]) for name in names]
            batch = pyarrow.RecordBatch.from_arrays(columns, list(names))
            schema = pyarrow.unify_schemas([self._schema, batch.schema], promote_options="permissive")
            self._held = []
            if self._writer is None and not self._waiting:
                self._schema, self._writer = schema, self._writer_of(schema)
            if schema.equals(self._schema) and not self._waiting:
                self._writer.write_batch(_as(batch, schema))
                return
        except _unfit() as exc:  # integers of 64 bits, half an emoji
            raise _no_table(exc) from exc
        self._schema = schema
        path = self._path.with_name(f"{len(self._waiting)}.arrow")
        with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        self._waiting.append(path)

    def _again(self, first: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        with self._writer_of(self._schema) as writer:
            with parquet.ParquetFile(first) as file:
                for batch in file.iter_batches(_BATCH):
                    writer.write_batch(_as(batch, self._schema))
            for path in self._waiting:
                with pyarrow.memory_map(str(path)) as file:
                    writer.write_batch(_as(pyarrow.ipc.open_file(file).get_batch(0), self._schema))

    def _writer_of(self, schema: Any) -> Any:
        from pyarrow import parquet

        # Texts hardly ever repeat: a dictionary of them is given up after its first pages.
        return parquet.ParquetWriter(self._path, schema, dictionary_pagesize_limit=2**16)


class SavedDataset(Parquet):
    """A folder as Hugging Face ``datasets`` writes it."""

    def finish(self) -> Path:
        saved = self._path.with_name("saved")
        saved_dataset.write(super().finish(), saved)
        return saved


SINKS: dict[str, type[Sink]] = {
    ".jsonl": Lines,
    ".jsonl.gz": GzippedLines,
    ".json": Array,
    ".parquet": Parquet,
    ".csv": Csv,
    "": SavedDataset,
}


def line(fields: dict[str, Any]) -> bytes:
    """One line of JSON in UTF-8; dates and decimals as strings, and half an emoji, which no file can hold, as its
    escape.
    """
    if orjson is not None:
        try:
            return orjson.dumps(fields, _spelt, orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_APPEND_NEWLINE)
        except orjson.JSONEncodeError:  # large integers, keys that are no texts, half an emoji
            pass
    text = _ASCII(fields)
    if "\\u" in text:  # else nothing was escaped that need not be, at two thirds of the time
        unescaped = _UNICODE(fields)
        with contextlib.suppress(UnicodeEncodeError):
            return unescaped.encode() + b"\n"
    return text.encode() + b"\n"


def _spelt(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


# A quarter of json's time, where it is there; the same values.
try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]
_ASCII = json.JSONEncoder(default=_spelt).encode
_UNICODE = json.JSONEncoder(ensure_ascii=False, default=_spelt).encode


def _column(values: list[Any]) -> Any:
    """Values as Arrow has them, those that JSON has no type for as JSON spells them: the two formats hold the same."""
    import pyarrow

    array = pyarrow.array(values)
    if _is_plain(array.type):
        return array
    return pyarrow.array([json.loads(json.dumps(value, default=_spelt)) for value in values])


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return all(_is_plain(kind.field(i).type) for i in range(kind.num_fields))
    if types.is_list(kind):
        return _is_plain(kind.value_type)
    return (
        types.is_string(kind)
        or types.is_null(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
    )


def _as(batch: Any, schema: Any) -> Any:
    """The batch under the schema of all of them."""
    import pyarrow

    if batch.schema.equals(schema):
        return batch
    columns = []
    for field in schema:
        place = batch.schema.get_field_index(field.name)
        if place < 0:
            columns.append(pyarrow.nulls(len(batch), field.type))
        elif batch.column(place).type.equals(field.type):
            columns.append(batch.column(place))
        else:
            columns.append(pyarrow.array(batch.column(place).to_pylist(), type=field.type))
    return pyarrow.RecordBatch.from_arrays(columns, schema=schema)


def _unfit() -> tuple[type[BaseException], ...]:
    """What Arrow says of rows that no table holds."""
    import pyarrow

    return (pyarrow.ArrowException, OverflowError, UnicodeError)


def _no_table(exc: BaseException) -> DataError:
    return DataError(f"rows do not fit one Parquet table ({first_line(exc)}); write .jsonl instead")
