"""Reads files once, the texts waiting on disk until it is known who said what, and writes them in another layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nemo_rpo.conversion.layouts import WRITERS, WRITERS_OF_ALONE, records_of
from nemo_rpo.conversion.merged import MergedPairs
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Paths, as_paths
from nemo_rpo.data.files.spool import Spool
from nemo_rpo.data.files.write import record_writer
from nemo_rpo.data.formats import Parsed, read_pairs, unread_fields
from nemo_rpo.errors import ConfigError, DataError


@dataclass
class Converted:
    """What a conversion did: rows read, pairs found, rows written, and ``lost``, what the layout had no place for."""

    rows: int
    pairs: int
    written: int = 0
    lost: Counter[str] = field(default_factory=Counter)


def convert(paths: Paths, to: str, out: Path, keys: RowFormat | None = None, overwrite: bool = False) -> Converted:
    """Writes the preferences of ``paths`` to ``out`` in the layout ``to``; of a ranking, all its pairs.

    Rows that speak of one pair are brought together: layouts with votes get one row a pair, the others a row a label,
    in the order of the pairs' first rows. Pair ids, annotator ids, side columns, system messages and tools are kept;
    fields that no layout knows are not, and are counted. Memory grows by some hundred bytes a pair and a vote; the
    texts wait on the disk of ``out``.

    Args:
        to: one of :data:`nemo_rpo.conversion.layouts.WRITERS`, or of ``WRITERS_OF_ALONE`` there.
        out: see :func:`nemo_rpo.data.files.write.record_writer`; nothing is written if the conversion fails.

    Raises:
        DataError: the first row that cannot be read, or that the layout cannot hold.
        ConfigError: an unknown layout, or an ``out`` that cannot be written.
    """
    layouts = (*WRITERS, *WRITERS_OF_ALONE)
    if to not in layouts:
        raise ConfigError(f"--to is '{to}'; it can be {', '.join(layouts)}")
    checked = as_paths(paths, setting="the path", folders=True)
    with record_writer(out, overwrite) as write, Spool(out.parent) as spool:
        unread: Counter[str] = Counter()
        merged = MergedPairs(_counting(read_pairs(checked, keys), keys or RowFormat(), unread), spool)
        done = Converted(merged.rows, len(merged), lost=unread)
        for pair in merged:
            for fields in records_of(pair, to, done.lost):
                write(fields)
                done.written += 1
        if not done.written:
            why = "; ".join(f"{what}: {count:,}" for what, count in done.lost.items() if count)
            raise DataError(f"no row is left to write to {out}{why and f' ({why})'}")
    return done


def _counting(pairs: Iterable[Parsed], keys: RowFormat, unread: Counter[str]) -> Iterator[Parsed]:
    """The pairs as they are; counts the rows with a value in a field that is not read."""
    last = None
    for parsed in pairs:
        if parsed.record is not last:  # a ranking is several pairs
            last = parsed.record
            unread.update(f"values of field '{name}' (not read)" for name in unread_fields(last, keys, parsed.layout))
        yield parsed
