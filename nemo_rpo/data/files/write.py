"""Records into a JSONL, gzipped JSONL, Parquet or CSV file, or a saved Hugging Face data set: whole, or not at all."""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nemo_rpo.data.files import saved_dataset
from nemo_rpo.data.files.whole import whole_file
from nemo_rpo.errors import ConfigError, DataError, first_line, missing_extra

Write = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_BATCH = 1024  # rows a Parquet schema is looked for in at a time
_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")


@contextlib.contextmanager
def record_writer(out: Path, overwrite: bool = False) -> Iterator[Write]:
    """Writes records to ``out``, whose name decides the format: ``.jsonl``, ``.jsonl.gz``, ``.parquet``, or without a
    suffix a folder as ``datasets.Dataset.save_to_disk`` makes it.

    Rows go to a temporary folder beside ``out`` and take its place when the block ends well; a block that fails or
    writes nothing leaves no trace.

    Raises:
        ConfigError: another suffix, a folder that is missing, closed or full, or an ``out`` that is there already.
        DataError: no row was written, or rows whose fields have types that no Parquet column can hold together.
    """
    _check(out, overwrite)
    with _in_a_line(out):
        workplace = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        rows = 0
        lines = workplace / "rows.jsonl"
        opened = gzip.open if out.name.endswith(".gz") else open
        with contextlib.ExitStack() as on_failure:
            with _in_a_line(out):
                file = opened(lines, "wt", encoding="utf-8")
            on_failure.callback(_give_up, file)

            def write(fields: dict[str, Any]) -> None:
                nonlocal rows
                rows += 1
                with _in_a_line(out):
                    file.write(_line(fields))

            yield write
            if rows == 0:
                raise DataError(f"no row is left to write to {out}")
            with _in_a_line(out):
                file.close()
                _replace(_formatted(lines, out, workplace), out)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


@contextlib.contextmanager
def _in_a_line(out: Path) -> Iterator[None]:
    """What the disk says, as an answer to the user; only around writing, since the rows may come from other files."""
    try:
        yield
    except OSError as exc:
        raise ConfigError(f"cannot write {out} ({exc.strerror or exc}); name another place") from exc


def _give_up(file: IO[str]) -> None:
    with contextlib.suppress(OSError):  # a full disk is full for what is still in the buffer too
        file.close()


def _line(fields: dict[str, Any]) -> str:
    """One line of JSON; dates and decimals as strings, and half an emoji, which no file can hold, as its escape."""
    line = json.dumps(fields, ensure_ascii=False, default=_spelt) + "\n"
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        return json.dumps(fields, default=_spelt) + "\n"
    return line


def _spelt(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def write_csv(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``rows``, at least one, as CSV under the names of the first; an ``out`` that is there is replaced.

    A text that a spreadsheet would take for a formula (it begins with = + - @, a tab or a carriage return) gets a ' in
    front, which the log says; :func:`without_quote` takes it off again. Numbers stay as they are.

    Raises:
        ConfigError: ``out`` cannot be written; what was there stays.
    """
    quoted, place = 0, whole_file(out, ConfigError, "name another place")
    with place as writing, writing.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            safe = {name: _quoted(value) for name, value in row.items()}
            quoted += sum(safe[name] is not value for name, value in row.items())
            writer.writerow(safe)

    if quoted:
        log.warning("%s: %d texts that a spreadsheet would run as a formula have a ' in front", out, quoted)


def without_quote(value: Any) -> Any:
    """A cell as it was before :func:`write_csv` put a quote in front."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and value[1:2] in _FORMULA else value


def _quoted(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value and value[0] in _FORMULA else value


def _check(out: Path, overwrite: bool) -> None:
    if out.suffix and not out.name.endswith(_SUFFIXES):
        raise ConfigError(f"{out}: the name must end in {', '.join(_SUFFIXES)}, or in none for a Hugging Face data set")
    if out.exists() and not overwrite:
        raise ConfigError(f"{out} exists; name another file, or say --overwrite")
    if out.is_dir() and not (out / "state.json").is_file():
        raise ConfigError(f"{out} is a folder that is no saved Hugging Face data set; name another one")
    if not out.parent.is_dir():
        raise ConfigError(f"folder {out.parent} does not exist; make it, or name another place")


def _formatted(lines: Path, out: Path, workplace: Path) -> Path:
    if out.name.endswith((".jsonl", ".jsonl.gz")):
        return lines
    parquet = workplace / "rows.parquet"
    _write_parquet(lines, parquet)
    if out.suffix:
        return parquet
    saved_dataset.write(parquet, workplace / "saved")
    return workplace / "saved"


def _replace(finished: Path, out: Path) -> None:
    if out.is_dir():
        # A folder cannot be renamed over another; the old one is moved beside ``finished`` and deleted with its folder.
        os.replace(out, finished.with_name("replaced"))
    os.replace(finished, out)


def _write_parquet(lines: Path, parquet: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet as format
    except ImportError as exc:
        raise missing_extra("pyarrow", "hf") from exc
    try:
        # A first look at every row: a field that is absent from the first thousand may be there in the next.
        schema = pyarrow.schema([])
        for batch in _batches(lines):
            schema = pyarrow.unify_schemas([schema, _schema_of(batch)], promote_options="permissive")
        with format.ParquetWriter(parquet, schema) as writer:
            for batch in _batches(lines):
                writer.write_batch(pyarrow.RecordBatch.from_pylist(batch, schema=schema))
    except (pyarrow.ArrowException, OverflowError, UnicodeError) as exc:  # integers of 64 bits, half an emoji
        raise DataError(f"rows do not fit one Parquet table ({first_line(exc)}); write .jsonl instead") from exc


def _schema_of(batch: list[dict[str, Any]]) -> Any:
    import pyarrow

    # from_pylist takes its columns from the first row alone.
    names = dict.fromkeys(name for fields in batch for name in fields)
    return pyarrow.schema([(name, pyarrow.array([fields.get(name) for fields in batch]).type) for name in names])


def _batches(lines: Path) -> Iterator[list[dict[str, Any]]]:
    batch = []
    with lines.open(encoding="utf-8") as file:
        for line in file:
            batch.append(json.loads(line))
            if len(batch) == _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch
