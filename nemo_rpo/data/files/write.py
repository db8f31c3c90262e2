"""Records into JSONL (gzipped or not), JSON, Parquet, CSV, or a saved Hugging Face data set: whole, or not at all."""

from __future__ import annotations

import contextlib
import csv
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nemo_rpo.data.files.formulas import with_quote
from nemo_rpo.data.files.sinks import SINKS, Sink
from nemo_rpo.data.files.whole import check_place, whole_file
from nemo_rpo.errors import ConfigError, DataError

Write = Callable[[dict[str, Any]], None]
log = logging.getLogger(__name__)


@contextlib.contextmanager
def record_writer(out: Path, overwrite: bool = False) -> Iterator[Write]:
    """Writes records to ``out``, whose name decides the format: ``.jsonl``, ``.jsonl.gz``, ``.json`` (one array),
    ``.parquet``, ``.csv`` (texts and numbers only), or without a suffix a folder as ``datasets.Dataset.save_to_disk``
    makes it.

    Rows go to a temporary folder beside ``out`` and take its place when the block ends well; a block that fails or
    writes nothing leaves no trace.

    Raises:
        ConfigError: another suffix, a folder that is missing, closed or full, or an ``out`` that is there already.
        DataError: no row was written, or rows whose fields have types that the format cannot hold together.
    """
    kind = sink_for(out, overwrite)
    with _in_a_line(out):
        workplace = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        rows = 0
        with _in_a_line(out):
            sink = kind(workplace)
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(_give_up, sink)

            def write(fields: dict[str, Any]) -> None:
                nonlocal rows
                rows += 1
                try:  # a context manager would cost a microsecond of every row
                    sink.write(fields)
                except OSError as exc:
                    raise _cannot(out, exc) from exc

            yield write
            if rows == 0:
                raise DataError(f"no row is left to write to {out}")
            with _in_a_line(out):
                _replace(sink.finish(), out)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)


@contextlib.contextmanager
def _in_a_line(out: Path) -> Iterator[None]:
    """What the disk says, as an answer to the user; only around writing, since the rows may come from other files."""
    try:
        yield
    except OSError as exc:
        raise _cannot(out, exc) from exc


def _cannot(out: Path, exc: OSError) -> ConfigError:
    return ConfigError(f"cannot write {out} ({exc.strerror or exc}); name another place")


def _give_up(sink: Sink) -> None:
    with contextlib.suppress(OSError):  # a full disk is full for what is still in the buffer too
        sink.close()


def write_csv(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes ``rows``, at least one, as CSV under the names of the first; an ``out`` that is there is replaced.

    A text that a spreadsheet would take for a formula (it begins with = + - @, a tab or a carriage return) gets a ' in
    front, which the log says; reading takes it off again. Numbers stay as they are.

    Raises:
        ConfigError: ``out`` cannot be written; what was there stays.
    """
    quoted, place = 0, whole_file(out, ConfigError, "name another place")
    with place as writing, writing.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for row in rows:
            safe = {name: with_quote(value) for name, value in row.items()}
            quoted += sum(safe[name] is not value for name, value in row.items())
            writer.writerow(safe)

    if quoted:
        log.warning("%s: %d texts that a spreadsheet would run as a formula have a ' in front", out, quoted)


def sink_for(out: Path, overwrite: bool = True) -> Callable[[Path], Sink]:
    """What :func:`record_writer` writes ``out`` with; for those who compute for long before they write.

    Raises:
        ConfigError: as there, before anything is written.
    """
    kind = next((kind for end, kind in SINKS.items() if end and out.name.endswith(end)), None)
    if kind is None and not out.suffix:
        kind = SINKS[""]
    if kind is None:
        named = ", ".join(end for end in SINKS if end)
        raise ConfigError(f"{out}: the name must end in {named}, or in none for a Hugging Face data set")
    check_place(out, overwrite)
    return kind


def _replace(finished: Path, out: Path) -> None:
    if out.is_dir():
        # A folder cannot be renamed over another; the old one is moved beside ``finished`` and deleted with its folder.
        os.replace(out, finished.with_name("replaced"))
    os.replace(finished, out)
