"""Preference rows from files in any of the field's layouts, read one by one and never held."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nemo_rpo.data.columns import ALIASES
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Paths, Record, as_paths, read_records
from nemo_rpo.data.identity import comparisons
from nemo_rpo.data.layouts import every, ranked, voted, winner
from nemo_rpo.data.layouts.details import OF_VOTE
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.errors import ConfigError, DataError, RowError

log = logging.getLogger(__name__)

Parser = Callable[[Record, RowFormat], PreferenceRow]


@dataclass(frozen=True)
class Layout:
    """How rows of a layout are told from others, and read.

    Attributes:
        parse: the layout's parser.
        marks: the fields whose presence in a row tells its layout.
        fields: those that it reads, beside what every layout reads.
        inner: of fields that are lists of objects, what is read of each object.
        labelled: whether a row has one label, of which fields of the row speak: the annotator, ``tie``, details.
        without_votes: how to drop some of several votes of a row.
    """

    parse: Parser
    marks: tuple[frozenset[str], ...]
    fields: frozenset[str]
    inner: dict[str, frozenset[str]] = field(default_factory=dict)
    labelled: bool = True
    without_votes: Callable[[dict[str, Any], frozenset[int]], dict[str, Any]] | None = None

    def recognises(self, fields: dict) -> bool:
        """Whether a record with these fields is of this layout."""
        return any(mark <= fields.keys() for mark in self.marks)

    def reads(self, keys: RowFormat) -> frozenset[str]:
        """The fields of a row that mean something."""
        own = {keys.annotator_key, *every.OF_LABELLED} if self.labelled else set()
        return self.fields | every.READ | ALIASES.keys() | own | {keys.pair_id_key}


def _marks(*alternatives: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(names.split()) for names in alternatives)


_OF_VOTE = OF_VOTE | {"vote", "tie"}
_OF_ANNOTATION = frozenset(("evaluator", "overall_pref", "overall_confidence", "time_spent", "timestamp"))

# In the order of detection: the more particular marks first.
LAYOUTS: dict[str, Layout] = {
    "votes": Layout(
        voted.votes,
        _marks("response_a response_b votes"),
        frozenset(("prompt", "response_a", "response_b", "votes", "gold")),
        {"votes": _OF_VOTE},
        labelled=False,
        without_votes=voted.without_votes,
    ),
    "multipref": Layout(
        voted.multipref,
        _marks(
            "completion_a completion_b normal_worker_annotations", "completion_a completion_b expert_worker_annotations"
        ),
        frozenset(("text", "prompt", "completion_a", "completion_b", "comparison_id", *voted.ANNOTATIONS)),
        dict.fromkeys(voted.ANNOTATIONS, _OF_ANNOTATION),
        labelled=False,
        without_votes=voted.without_votes,
    ),
    "nemo_rl": Layout(
        ranked.nemo_rl,
        _marks("context completions"),
        frozenset(("context", "completions")),
        {"completions": frozenset(("rank", "completion", "reward"))},
    ),
    "rankings": Layout(ranked.rankings, _marks("prompt responses"), frozenset(("prompt", "responses", "rewards"))),
    "nemo_aligner": Layout(
        winner.nemo_aligner,
        _marks("chosen_response rejected_response"),
        frozenset(("prompt", "chosen_response", "rejected_response")),
    ),
    "hf": Layout(winner.hf, _marks("chosen rejected"), frozenset(("prompt", "chosen", "rejected"))),
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
        f"rename them, or set model.data.layout to one of {', '.join(LAYOUTS)}",
        "unknown_layout",
    )


def parse(record: Record, keys: RowFormat, layout: str) -> PreferenceRow:
    """One record under a named layout; :class:`DataError` with file, row and field where it does not fit."""
    try:
        row = LAYOUTS[layout].parse(record, keys)
        return every.complete(row, Fields(record), labelled=LAYOUTS[layout].labelled)
    except RecursionError:
        raise RowError(record.file, record.row, "objects nested too deep in a field", "bad_json") from None


def unread_fields(record: Record, keys: RowFormat, layout: str) -> list[str]:
    """Names of the fields of a record that have a value and mean nothing in its layout; ``votes[].seconds`` is one of
    the objects in a list.
    """
    of, fields = LAYOUTS[layout], record.fields
    reads = of.reads(keys)
    unread = [name for name in fields if name not in reads and not _is_blank(fields[name])]
    for name, inner in of.inner.items():
        known = inner if of.labelled else inner | {keys.annotator_key}
        found = {
            key for item in fields.get(name) or () for key in item if key not in known and not _is_blank(item[key])
        }
        unread += [f"{name}[].{key}" for key in sorted(found)]
    return unread


def _is_blank(value: Any) -> bool:
    return value is None or value == "" or value == []


class Parsed(NamedTuple):
    """A record, the layout it was read under, and the row it says."""

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
    paths: list[Path], keys: RowFormat | None = None, on_error: Callable[[DataError], None] | None = None
) -> Iterator[Parsed]:
    """:func:`read_rows` with the records themselves; ``paths`` come from :func:`nemo_rpo.data.files.read.as_paths`."""
    keys = keys or RowFormat()
    if keys.layout != "auto" and keys.layout not in LAYOUTS:
        raise ConfigError(f"model.data.layout is '{keys.layout}'; it can be auto, {', '.join(LAYOUTS)}")
    for path in paths:
        layout = None if keys.layout == "auto" else keys.layout
        for record in read_records(path):
            try:
                if isinstance(record, DataError):
                    raise record
                if layout is None:
                    layout = detect_layout(record)
                    log.info("%s: layout '%s', from the fields of row %d", path, layout, record.row)
                row = parse(record, keys, layout)
            except DataError as exc:
                if on_error is None:
                    raise
                on_error(exc)
            else:
                yield Parsed(record, layout, row)
