"""What a layout is: how its rows are told from others, and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nemo_rpo.data.columns import ALIASES
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts import every
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.errors import DataError

Parser = Callable[[Record, RowFormat], PreferenceRow | list[PreferenceRow]]
Records = Iterator[Record | DataError]


@dataclass(frozen=True)
class Layout:
    """How rows of a layout are told from others, and read.

    Attributes:
        parse: the layout's parser; a record of some layouts holds several comparisons.
        marks: the fields whose presence in a row tells its layout.
        fields: those that it reads, beside what every layout reads.
        inner: of fields that are lists of objects, what is read of each object.
        labelled: whether a row has one label, of which fields of the row speak: the annotator, ``tie``, details.
        without_votes: how to drop some of several votes of a row.
        recognises_more: tells the layout where no fixed name of a field does.
        reads_more: the fields that it reads in a record whose names are the user's own.
        ignored: what of a record was left out on purpose, a name each time: cancelled answers, say.
        gather: makes one record of those that belong together, where the pair is not one row's.
        public: a layout of other tools and data sets, which keep to their own fields: ``tools``, ``system`` and side
            columns are not looked for, and ``--fix`` does not write it.
    """

    parse: Parser
    marks: tuple[frozenset[str], ...] = ()
    fields: frozenset[str] = frozenset()
    inner: dict[str, frozenset[str]] = field(default_factory=dict)
    labelled: bool = True
    without_votes: Callable[[dict[str, Any], frozenset[int]], dict[str, Any]] | None = None
    recognises_more: Callable[[dict[str, Any]], bool] | None = None
    reads_more: Callable[[dict[str, Any]], Iterable[str]] | None = None
    ignored: Callable[[dict[str, Any]], Iterable[str]] | None = None
    gather: Callable[[Records], Records] | None = None
    public: bool = False

    def recognises(self, fields: dict[str, Any]) -> bool:
        """Whether a record with these fields is of this layout."""
        if any(mark <= fields.keys() for mark in self.marks):
            return True
        return self.recognises_more is not None and self.recognises_more(fields)

    def reads(self, keys: RowFormat, fields: dict[str, Any]) -> frozenset[str]:
        """The fields of a row that mean something."""
        own = {keys.annotator_key} if self.labelled or keys.annotator_required else set()
        own |= every.OF_LABELLED if self.labelled else set()
        more = () if self.reads_more is None else self.reads_more(fields)
        shared = frozenset() if self.public else every.READ | ALIASES.keys()
        return self.fields.union(shared, own, more, {keys.pair_id_key})


def marks(*alternatives: str) -> tuple[frozenset[str], ...]:
    """Sets of names from strings of them."""
    return tuple(frozenset(names.split()) for names in alternatives)


def names(text: str) -> frozenset[str]:
    """A set of names from a string of them."""
    return frozenset(text.split())
