"""Records of JSONL, CSV, Parquet and saved Hugging Face data sets, each with the file and row it came from."""

from __future__ import annotations

import csv
import filecmp
import functools
import gzip
import json
import logging
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_rpo.data.files import saved_dataset
from nemo_rpo.data.files.arrow import plain_rows
from nemo_rpo.data.files.formulas import without_quote
from nemo_rpo.errors import DataError, RowError, first_line, missing_extra

log = logging.getLogger(__name__)
Paths = str | Path | Sequence[str | Path]
INDEX = "(unnamed)"  # the column that pandas writes first unless told not to
BUFFER = 2**20  # bytes: lines of several kilobytes would cost a call of the system each
_CSV_FIELD = 2**31 - 1
_BETWEEN = re.compile(r"[\s,]*")


@dataclass(frozen=True)
class Record:
    """The fields of one row, untouched."""

    file: str
    row: int
    fields: dict[str, Any]

    @property
    def where(self) -> str:
        """``file:row``, for messages."""
        return f"{self.file}:{self.row}"


def as_paths(paths: Paths, *, setting: str = "model.data.data_prefix", folders: bool = False) -> list[Path]:
    """One file or several; raises :class:`DataError`, naming the ``setting`` at fault, for a file that is not there.

    With ``folders``, a folder that ``datasets.Dataset.save_to_disk`` wrote counts as a file. The log says which file
    comes twice, by its name or by its content.
    """
    listed = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not listed:
        raise DataError(f"no data file given; set {setting}")
    for path in listed:
        if is_folder(path):
            if not folders:
                raise DataError(f"{path} is a folder; name the JSONL, JSONL.gz or Parquet files in it")
            saved_dataset.check(path)
        elif not is_file(path):
            raise DataError(f"data file {path} does not exist; check {setting}")
    if len(listed) > 1:
        _warn_of_repeats(tuple((path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in listed))
    return listed


@functools.lru_cache(maxsize=64)  # a command checks its files whenever it opens them
def _warn_of_repeats(files: tuple[tuple[Path, int, int], ...]) -> None:
    seen: dict[int, list[tuple[Path, Path]]] = {}  # by size
    for path, size, _ in files:
        alike, real = seen.setdefault(size, []), path.resolve()
        for other, known in alike:
            if real == known:
                log.warning("%s is given twice: all that it says counts twice", path)
                break
            if _same_content(path, other):
                log.warning("%s holds the same as %s: all that it says counts twice", path, other)
                break
        else:
            alike.append((path, real))


def _same_content(path: Path, other: Path) -> bool:
    try:
        return path.is_file() and other.is_file() and filecmp.cmp(path, other, shallow=False)
    except OSError:  # one that cannot be read; who reads it says so
        return False


def is_file(path: Path) -> bool:
    """``path.is_file()``, also of names that no file system takes (too long, say): there is none of that name."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """``path.is_dir()`` in the same way."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_records(path: Path) -> Iterator[Record | DataError]:
    """The rows of one file in order; a line that is no JSON object is yielded as its error, and reading goes on.

    The name decides the format: ``.parquet``, ``.csv`` and ``.tsv`` (a header line; every value is a string, an empty
    one absent), a folder (a saved Hugging Face data set), ``.json`` (one array of objects, or JSONL), anything else
    JSONL, gzipped if it ends in ``.gz``. Of an array, rows are counted from 1.

    Damage that ends the file (a truncated gzip or Parquet, an unreadable disk) and a file without rows are raised.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    if path.is_dir():
        rows = enumerate(saved_dataset.read(path), start=1)
    else:
        rows = _BY_SUFFIX.get(path.suffix, _jsonl_rows)(path)
    row = 0
    for row, fields in rows:
        yield fields if isinstance(fields, DataError) else Record(str(path), row, fields)
    if row == 0:
        raise DataError(f"{path} has no rows")


def count_rows(path: Path) -> int:
    """Rows of a file for a progress bar: Parquet's own count, a CSV's records, else its lines that are not blank."""
    if path.suffix == ".parquet":
        with _open_parquet(path) as file:
            return file.metadata.num_rows
    if path.suffix in _BY_SUFFIX:
        return sum(1 for _ in _BY_SUFFIX[path.suffix](path))
    return sum(not line.isspace() for line in _lines(path))


def _lines(path: Path) -> Iterator[bytes]:
    line = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb", BUFFER) as file:
            for line, text in enumerate(file, start=1):  # noqa: B007  the except clauses name it
                yield text
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise DataError(f"{path}:{line + 1}: damaged or truncated gzip ({exc}); copy the file again") from exc
    except OSError as exc:
        raise DataError(f"{path}:{line + 1}: cannot be read ({exc.strerror or exc})") from exc


def json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """The objects of one array, of which the file's text is held; a file that begins otherwise is JSONL."""
    first = next((line for line in _lines(path) if not line.isspace()), b"")
    if not first.decode("utf-8-sig", "replace").lstrip().startswith("["):
        yield from _jsonl_rows(path)
        return
    try:
        text = b"".join(_lines(path)).decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataError(f"{path} is not UTF-8 ({exc.reason} at byte {exc.start}); save it as UTF-8") from exc
    decode, end, row = json.JSONDecoder().raw_decode, text.index("[") + 1, 0
    while True:
        row += 1
        begin = _BETWEEN.match(text, end).end()
        if text[begin : begin + 1] == "]" and (row == 1 or "," not in text[end:begin]):
            break
        if row > 1 and text[end:begin].count(",") != 1:
            raise _cut(path, row, "no comma between two objects" if begin < len(text) else "the array does not end")
        try:
            fields, end = decode(text, begin)
        except RecursionError:
            raise _cut(path, row, "nested too deep") from None
        except ValueError as exc:
            raise _cut(path, row, first_line(exc).split(";")[0]) from exc
        yield row, _as_object(path, row, fields)
    if text[begin + 1 :].strip():
        raise _cut(path, row, "something stands behind the array")


def _cut(path: Path, row: int, problem: str) -> DataError:
    return DataError(f"{path}:{row}: bad JSON ({problem})")


def _as_object(path: Path, row: int, fields: Any) -> dict[str, Any] | DataError:
    if isinstance(fields, dict):
        return fields
    return RowError(str(path), row, f"expected a JSON object, found a {type(fields).__name__}", "bad_json")


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    for row, line in enumerate(_lines(path), start=1):
        if line.isspace():
            continue
        try:
            # utf-8-sig: editors on Windows put a byte-order mark at the head of the file.
            fields = json.loads(line.decode("utf-8-sig" if row == 1 else "utf-8"))
        except UnicodeDecodeError as exc:
            yield row, RowError(str(path), row, f"not UTF-8 ({exc.reason} at byte {exc.start})", "bad_encoding")
        except json.JSONDecodeError as exc:
            problem = f"bad JSON ({exc.msg.removesuffix(' at')} at column {exc.colno})"
            yield row, RowError(str(path), row, problem, "bad_json")
        except RecursionError:
            yield row, RowError(str(path), row, "bad JSON (nested too deep)", "bad_json")
        except ValueError as exc:  # an integer of more digits than Python reads
            yield row, RowError(str(path), row, f"bad JSON ({first_line(exc).split(';')[0]})", "bad_json")
        else:
            if not isinstance(fields, dict):
                found = type(fields).__name__
                fields = RowError(str(path), row, f"expected a JSON object a line, found a {found}", "bad_json")
            yield row, fields


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | DataError]]:
    """Rows are numbered as their last line is, the header being line 1. A column without a name is a table's index.

    The quote that keeps a spreadsheet from running a text as a formula is taken off.
    """
    csv.field_size_limit(_CSV_FIELD)  # the module's own is 131,072 characters, which a dialogue may have
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True, delimiter="\t" if path.suffix == ".tsv" else ",")
            names = next(reader, [])
            for name in (name for i, name in enumerate(names) if name and name in names[:i]):
                raise DataError(f"{path}:1: two columns are called '{name}'; rename one")
            for values in reader:
                if len(values) == len(names):
                    cells = zip(names, values, strict=True)
                    yield reader.line_num, {name or INDEX: without_quote(cell) for name, cell in cells if cell}
                elif values:
                    difference, which = len(values) - len(names), "more" if len(values) > len(names) else "fewer"
                    problem = f"{abs(difference)} values {which} than the header has columns"
                    yield reader.line_num, RowError(str(path), reader.line_num, problem)
    except UnicodeDecodeError as exc:
        raise DataError(f"{path} is not UTF-8 ({exc.reason}); save it as UTF-8") from exc
    except csv.Error as exc:
        raise DataError(f"{path}:{reader.line_num}: bad CSV ({exc})") from exc
    except OSError as exc:
        raise DataError(f"{path} cannot be read ({exc.strerror or exc})") from exc


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow

    row = 0
    with _open_parquet(path) as file:
        try:
            # Small batches: to_pylist() is what costs memory, and long chats are a megabyte per hundred rows.
            for batch in file.iter_batches(batch_size=256):
                for row, fields in enumerate(plain_rows(batch), start=row + 1):  # noqa: B020
                    yield row, fields
        except (pyarrow.ArrowException, OSError) as exc:
            reason = first_line(exc).rstrip(".")
            raise DataError(f"{path}:{row + 1}: damaged Parquet ({reason}); copy the file again") from exc


_BY_SUFFIX = {".parquet": _parquet_rows, ".csv": _csv_rows, ".tsv": _csv_rows, ".json": json_rows}


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise missing_extra("pyarrow", "data") from exc
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as exc:
        raise DataError(f"{path}: no Parquet file, or a truncated one ({first_line(exc).rstrip('.')})") from exc
