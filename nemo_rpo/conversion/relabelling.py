"""Labels to buy as files for a label tool, and the answers read back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from nemo_rpo.conversion.tasks import LabelTask, write_tasks
from nemo_rpo.crowd.buying import NextLabel, checked_prices
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.formulas import without_quote
from nemo_rpo.data.files.read import as_paths, read_records
from nemo_rpo.data.formats import read_parsed
from nemo_rpo.data.identity import PairIndex, Sighting, comparisons
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.data.vote_ledger import VoteReader
from nemo_rpo.errors import DataError, RowError

TOOL_OF = {".csv": "csv", ".json": "label_studio", ".jsonl": "argilla", ".parquet": "argilla"}


def write_next(
    out: Path, labels: Sequence[NextLabel], paths: Sequence[Path], keys: RowFormat, tool: str, overwrite: bool = False
) -> int:
    """Reads the texts of the pairs from ``paths`` and writes a task for each label; returns their number.

    The two responses stand in the order of a hash of their texts, so that the order tells nothing of earlier labels.
    """
    wanted: dict[int, NextLabel] = {label.pair: label for label in labels}
    return write_tasks(out, _tasks(wanted, paths, keys), tool, overwrite)


def _tasks(wanted: dict[int, NextLabel], paths: Sequence[Path], keys: RowFormat) -> Iterator[LabelTask]:
    pairs = PairIndex()
    for parsed in read_parsed(as_paths(list(paths), setting="the path", folders=True), keys, lambda error: None):
        for row in comparisons(parsed.row):
            try:
                sighting = pairs.find(row)
            except RowError:
                continue
            label = wanted.get(sighting.text) if sighting.new else None
            if label is not None:
                row.require_pair("a task for label tools")
                first, second = row.chosen, row.rejected
                if pairs.content_turned()[-1]:
                    first, second = second, first
                yield LabelTask(label.pair_id, row.prompt, first, second, {"annotator": label.annotator})


def read_relabelled(paths: Sequence[Path], reader: VoteReader) -> tuple[int, int]:
    """Adds the votes of files that came back to those that ``reader`` has; returns the votes added, and tasks without
    an answer.

    Any layout will do. A pair is found by its texts; where a tool shows dialogues as one text, by the ``pair_id`` that
    :func:`write_next` gave it.

    Raises:
        DataError: a row that cannot be read, or that is about a pair which the votes' files do not hold.
    """
    added = blank = 0
    turned = reader.pairs.content_turned()
    for parsed in read_parsed(as_paths(list(paths), setting="--relabelled", folders=True), RowFormat()):
        for row in comparisons(parsed.row):
            row = replace(row, pair_id=without_quote(row.pair_id))
            sighting = _sighting(row, reader.pairs, turned)
            if sighting is None:
                raise RowError(row.file, row.row, "the pair is not in the votes' files; name the same files as before")
            reader.ledger.add(row, sighting, parsed.row.size)
            added += len(row.votes)
            blank += not row.votes
    return added, blank


def _sighting(row: PreferenceRow, pairs: PairIndex, turned: Sequence[bool]) -> Sighting | None:
    with contextlib.suppress(RowError):  # the id is right, and the texts are as a tool shows them
        if found := pairs.spoken_of(row) or pairs.spoken_of(replace(row, pair_id=None)):
            return found[0]
    known = None if row.pair_id is None else pairs.named(row.pair_id)
    return None if known is None else Sighting(known, False, bool(turned[known]))


def read_prices(path: Path) -> dict[str, float]:
    """``annotator`` and ``price`` of every row of a CSV, JSONL or Parquet file."""
    [path] = as_paths(path, setting="--prices")
    prices = {}
    for record in read_records(path):
        if isinstance(record, DataError):
            raise record
        fields = Fields(record)
        name, price = str(without_quote(fields.identity("annotator", required=True))), fields.require("price")
        if prices.setdefault(name, price) != price:
            raise fields.error(f"'{name}' has another price in an earlier row")
    return checked_prices(prices)
