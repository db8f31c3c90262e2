"""Preference rows from files in any of the field's layouts, read one by one and never held."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Paths, Record, as_paths, read_records
from nemo_rpo.data.identity import comparisons
from nemo_rpo.data.layouts import battles, every, judged_alone, ranked, voted, winner
from nemo_rpo.data.layouts.column_names import check_columns, renamed
from nemo_rpo.data.layouts.details import GOLD, OF_VOTE
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.layout import Layout, marks
from nemo_rpo.data.layouts.public.table import PUBLIC, VOTE_ROWS
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.errors import ConfigError, DataError, RowError

log = logging.getLogger(__name__)

_PAIR = frozenset(("prompt", "response_a", "response_b"))
_OF_VOTE = OF_VOTE | {"vote", "tie"}
_OF_ANNOTATION = frozenset(("evaluator", "overall_pref", "overall_confidence", "time_spent", "timestamp"))

# In the order of detection: the more particular marks first.
LAYOUTS: dict[str, Layout] = {
    "votes": Layout(
        voted.votes,
        marks("response_a response_b votes"),
        frozenset(("prompt", "response_a", "response_b", "votes", GOLD)),
        {"votes": _OF_VOTE | {voted.P_A}},
        labelled=False,
        without_votes=voted.without_votes,
    ),
    "multipref": Layout(
        voted.multipref,
        marks(
            "completion_a completion_b normal_worker_annotations", "completion_a completion_b expert_worker_annotations"
        ),
        frozenset(("text", "prompt", "completion_a", "completion_b", "comparison_id", *voted.ANNOTATIONS)),
        dict.fromkeys(voted.ANNOTATIONS, _OF_ANNOTATION),
        labelled=False,
        without_votes=voted.without_votes,
    ),
    "nemo_rl": Layout(
        ranked.nemo_rl,
        marks("context completions"),
        frozenset(("context", "completions")),
        {"completions": frozenset(("rank", "completion", "reward"))},
    ),
    **PUBLIC,
    "rankings": Layout(ranked.rankings, marks("prompt responses"), frozenset(("prompt", "responses", "rewards"))),
    "nemo_aligner": Layout(
        winner.nemo_aligner,
        marks("chosen_response rejected_response"),
        frozenset(("prompt", "chosen_response", "rejected_response")),
    ),
    "hf": Layout(winner.hf, marks("chosen rejected"), frozenset(("prompt", "chosen", "rejected"))),
    "unpaired_votes": Layout(
        judged_alone.unpaired_votes,
        marks("prompt completion votes"),
        frozenset(("prompt", "completion", "votes", GOLD)),
        {"votes": judged_alone.DETAILS | {judged_alone.VOTE}},
        labelled=False,
        without_votes=judged_alone.without_votes,
    ),
    "unpaired": Layout(
        judged_alone.unpaired, marks("prompt completion label"), frozenset(("prompt", "completion", judged_alone.LABEL))
    ),
    "battles": Layout(
        battles.battle, fields=battles.READ, labelled=False, recognises_more=battles.recognises, public=True
    ),
    "vote_rows": VOTE_ROWS,
}


def detect_layout(record: Record) -> str:
    """The layout whose marking fields the record has; :class:`DataError` with the fields seen if there is none."""
    for name, layout in LAYOUTS.items():
        if layout.recognises(record.fields):
            return name
    raise RowError(
        record.file,
        record.row,
        f"no known layout has these fields: {', '.join(sorted(record.fields)) or 'none'}; "
        "say which is which with --columns or model.data.columns (prompt, response_a, response_b, vote, annotator), "
        f"or set model.data.layout to one of {', '.join(LAYOUTS)}",
        "unknown_layout",
    )


def rows_of(record: Record, keys: RowFormat, layout: str) -> list[PreferenceRow]:
    """The comparisons of one record under a named layout; :class:`DataError` with file, row and field where it does
    not fit.
    """
    of = LAYOUTS[layout]
    try:
        parsed = of.parse(record, keys)
        rows = parsed if isinstance(parsed, list) else [parsed]
        fields = Fields(record)
        found = [every.complete(row, fields, labelled=of.labelled, public=of.public) for row in rows]
        return [battles.between(row, tuple(keys.players)) for row in found] if keys.players else found
    except RecursionError:
        raise RowError(record.file, record.row, "objects nested too deep in a field", "bad_json") from None


def unread_fields(record: Record, keys: RowFormat, layout: str) -> list[str]:
    """Names of the fields of a record that have a value and mean nothing in its layout; ``votes[].seconds`` is one of
    the objects in a list. And what the layout leaves out of a record on purpose, once for each.
    """
    of, fields = LAYOUTS[layout], record.fields
    if of.reads_more is None:
        reads = _reads(layout, keys.annotator_key, keys.pair_id_key, keys.annotator_required)
    else:
        reads = of.reads(keys, fields)
    unread = [name for name in fields if name not in reads and not _is_blank(fields[name])]
    for name, inner in of.inner.items():
        known = inner if of.labelled else inner | {keys.annotator_key}
        items = fields.get(name) or ()
        found = {key for item in items for key in item if key not in known and not _is_blank(item[key])}
        unread += [f"{name}[].{key}" for key in sorted(found)]
    return unread if of.ignored is None else [*unread, *of.ignored(fields)]


@functools.lru_cache(maxsize=len(LAYOUTS))
def _reads(layout: str, annotator_key: str, pair_id_key: str, annotator_required: bool) -> frozenset[str]:
    """The same for all rows of a file."""
    columns = {annotator_key: annotator_key} if annotator_required else {}
    return LAYOUTS[layout].reads(RowFormat(layout, annotator_key, pair_id_key, columns), {})


def _is_blank(value: Any) -> bool:
    return value is None or value == "" or value == []


class Parsed(NamedTuple):
    """A record, the layout it was read under, and a row that it says; some layouts say several."""

    record: Record
    layout: str
    row: PreferenceRow


def read_rows(
    paths: Paths, keys: RowFormat | None = None, on_error: Callable[[DataError], None] | None = None
) -> Iterator[PreferenceRow]:
    """The rows of one or several files, in order; see :func:`nemo_rpo.data.files.read.read_records` for their formats.

    Args:
        paths: files of one layout each.
        keys: layout and keys; with layout ``auto`` the first readable row of each file decides for that file, and the
            decision is logged.
        on_error: called with the error of every bad row, which is then left out; ``None`` raises the first one.

    Raises:
        DataError: a file that is missing, empty or damaged; without ``on_error`` also the first bad row.
        ConfigError: an unknown layout.
    """
    for parsed in read_parsed(as_paths(paths), keys, on_error):
        yield parsed.row


def read_pairs(paths: list[Path], keys: RowFormat | None = None) -> Iterator[Parsed]:
    """:func:`read_parsed` with each ranking as its pairs, one after the other."""
    for parsed in read_parsed(paths, keys):
        for pair in comparisons(parsed.row):
            yield parsed._replace(row=pair)


def read_parsed(
    paths: list[Path],
    keys: RowFormat | None = None,
    on_error: Callable[[DataError], None] | None = None,
    prepare: Callable[[Record], Record] | None = None,
) -> Iterator[Parsed]:
    """:func:`read_rows` with the records themselves; ``paths`` come from :func:`nemo_rpo.data.files.read.as_paths`.

    Of a layout that holds several comparisons in a record, the same record comes once for each. ``prepare`` makes of
    each record, under the names of this package, the one that is read: :func:`pairs_without_votes`, say.
    """
    keys = keys or RowFormat()
    if keys.layout != "auto" and keys.layout not in LAYOUTS:
        raise ConfigError(f"model.data.layout is '{keys.layout}'; it can be auto, {', '.join(LAYOUTS)}")
    check_columns(keys.columns, LAYOUTS.values())
    for path in paths:
        yield from _of_file(path, keys, on_error, prepare)


def pairs_without_votes(record: Record) -> Record:
    """A record of a prompt and two responses, ``{"prompt", "response_a", "response_b"}``, as a pair that nobody has
    labelled; any other as it is.
    """
    fields = record.fields
    if not fields.keys() >= _PAIR or any(layout.recognises(fields) for layout in LAYOUTS.values()):
        return record
    return replace(record, fields=fields | {"votes": []})


def _of_file(
    path: Path,
    keys: RowFormat,
    on_error: Callable[[DataError], None] | None,
    prepare: Callable[[Record], Record] | None,
) -> Iterator[Parsed]:
    records = read_records(path)
    if keys.columns:
        records = renamed(records, keys.columns, path)
    if prepare is not None:
        records = (prepare(record) if isinstance(record, Record) else record for record in records)
    layout = None if keys.layout == "auto" else keys.layout
    gathered = False
    while (record := next(records, None)) is not None:
        try:
            if isinstance(record, DataError):
                raise record
            if layout is None:
                layout = detect_layout(record)
                log.info("%s: layout '%s', from the fields of row %d", path, layout, record.row)
            if not gathered and (gather := LAYOUTS[layout].gather):
                records, gathered = gather(itertools.chain([record], records)), True
                continue
            rows = rows_of(record, keys, layout)
        except DataError as exc:
            if on_error is None:
                raise
            on_error(exc)
        else:
            for row in rows:
                yield Parsed(record, layout, row)
