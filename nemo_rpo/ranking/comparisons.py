"""Who was compared with whom, who won, and who said so. Shapes: n comparisons, N players, K annotators."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace

import numpy as np

from nemo_rpo.data.annotator_table import VIRTUAL
from nemo_rpo.data.files.read import Paths, Record, as_paths, read_records
from nemo_rpo.data.layouts.details import when
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.errors import DataError

_OUTCOMES = {"a": +1, "model_a": +1, "question_a": +1, "b": -1, "model_b": -1, "question_b": -1}
_SLOTS = dict(_OUTCOMES)
SHOWN_FIRST = "shown_first"
_OUTCOMES |= dict.fromkeys(("tie", "draw", "tie (bothbad)", "both_bad", "bothbad"), 0)


@dataclass(frozen=True)
class ComparisonFormat:
    """The fields of a record. The winner is ``a``, ``b`` or ``tie``, ``model_a`` or ``model_b``, or a player's name."""

    a_key: str = "model_a"
    b_key: str = "model_b"
    winner_key: str = "winner"
    annotator_key: str = "annotator"
    time_key: str | None = None  # not read


@dataclass(frozen=True)
class Comparisons:
    """Comparisons in the order of the file.

    Attributes:
        players: names [N], sorted.
        first, second: int64 [n], indices into ``players``.
        outcome: int8 [n], +1 first won, -1 second won, 0 a tie.
        annotators: ids [K], sorted. annotator: int64 [n]; those without an id share the id ``all``.
        slot: int8 [n], +1 if ``first`` was shown first, -1 if ``second`` was, 0 where not known; ``None`` if never.
        time: float64 [n], seconds since 1970 or whatever numbers the file has; ``None`` where it was not read.
    """

    players: list[str]
    first: np.ndarray
    second: np.ndarray
    outcome: np.ndarray
    annotators: list[str]
    annotator: np.ndarray
    slot: np.ndarray | None = None
    time: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.outcome)

    def take(self, which: np.ndarray) -> Comparisons:
        """The comparisons ``which``, indices or bool [n], between the same players."""
        arrays = {name: getattr(self, name)[which] for name in ("first", "second", "outcome", "annotator")}
        known = {name: None if (of := getattr(self, name)) is None else of[which] for name in ("slot", "time")}
        return replace(self, **arrays, **known)

    def tally(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Wins, losses and ties of every player, int64 [N] each."""
        players = len(self.players)
        first_won, second_won, tied = (self.outcome == sign for sign in (1, -1, 0))

        def count(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            return np.bincount(self.first[first], minlength=players) + np.bincount(
                self.second[second], minlength=players
            )

        return count(first_won, second_won), count(second_won, first_won), count(tied, tied)


def read_comparisons(paths: Paths, keys: ComparisonFormat | None = None) -> Comparisons:
    """Reads JSONL, CSV or Parquet files of comparisons.

    Raises:
        DataError: a file or a row that cannot be read; names file, row and field.
    """
    keys = keys or ComparisonFormat()
    players: dict[str, int] = {}
    annotators: dict[str, int] = {}
    first, second, annotator, outcome = array("q"), array("q"), array("q"), array("b")
    slot, time = array("b"), array("d")
    for path in as_paths(paths, setting="the path", folders=True):
        for record in read_records(path):
            if isinstance(record, DataError):
                raise record
            a, b = _name(record, keys.a_key), _name(record, keys.b_key)
            if a == b:
                raise Fields(record).error(f"'{a}' is compared with itself")
            first.append(players.setdefault(a, len(players)))
            second.append(players.setdefault(b, len(players)))
            outcome.append(_outcome(record, keys.winner_key, a, b))
            slot.append(_slot(record))
            if keys.time_key:
                time.append(_time(record, keys.time_key))
            annotator.append(annotators.setdefault(_annotator(record, keys), len(annotators)))
    return Comparisons(
        sorted(players),
        _places(players)[np.array(first)],
        _places(players)[np.array(second)],
        np.array(outcome, dtype=np.int8),
        sorted(annotators),
        _places(annotators)[np.array(annotator)],
        np.array(slot, dtype=np.int8) if any(slot) else None,
        np.array(time) if keys.time_key else None,
    )


def _places(numbered: dict[str, int]) -> np.ndarray:
    """From numbers in the order of appearance to places in the sorted order."""
    place = {name: i for i, name in enumerate(sorted(numbered))}
    return np.array([place[name] for name in numbered], dtype=np.int64)


def _name(record: Record, key: str) -> str:
    name = record.fields.get(key)
    # A million rows pass here: only what is no plain name goes through the careful reader.
    plain = type(name) is str and name.strip() and not name[0].isdigit()
    return name if plain else str(Fields(record).identity(key, required=True))


def _annotator(record: Record, keys: ComparisonFormat) -> str:
    required = keys.annotator_key != ComparisonFormat.annotator_key
    if not required and keys.annotator_key not in record.fields:
        return VIRTUAL
    return Fields(record).identity(keys.annotator_key, required=required) or VIRTUAL


def _slot(record: Record) -> int:
    """``shown_first``, a or b (model_a or model_b), where the record has it."""
    value = record.fields.get(SHOWN_FIRST)
    if value is None or value == "":
        return 0
    if not isinstance(value, str) or value.lower() not in _SLOTS:
        raise Fields(record).wrong_type(SHOWN_FIRST, ", ".join(_SLOTS), value)
    return _SLOTS[value.lower()]


def _time(record: Record, key: str) -> float:
    fields = Fields(record)
    fields.require(key)
    if (found := when(fields, key)) != found:
        raise fields.error(f"field '{key}' is blank, and every comparison needs its time")
    return found


def _outcome(record: Record, key: str, a: str, b: str) -> int:
    winner = record.fields.get(key)
    if type(winner) is not str:  # a player whose name is a number
        winner = Fields(record).identity(key, required=True)
    if winner not in (a, b) and winner.lower() not in _OUTCOMES:
        winner = Fields(record).identity(key, required=True)  # "1.0" in a table that holds nulls
    if winner in (a, b):
        return 1 if winner == a else -1
    if winner.lower() in _OUTCOMES:
        return _OUTCOMES[winner.lower()]
    fields = Fields(record)
    raise fields.wrong_type(key, f"a, b or tie, or '{a}' or '{b}'", fields.require(key))
