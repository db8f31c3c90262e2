"""Typed access to the fields of a record; every complaint names the file, the row and the field."""

from __future__ import annotations

import datetime
import json
import math
import re
from typing import Any

from nemo_rpo.data.columns import ALIASES
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.rows import Messages, Text
from nemo_rpo.errors import DataError, RowError

# An assistant's message that has one of these may have no content: the call is what it says.
CALLS = ("tool_calls", "function_call")
_EXACT = 2**53  # above it a float stands for several integers
_LARGEST = 3.4028234663852886e38  # float32, which side columns are kept in
_WHOLE_FLOAT = re.compile(r"(-?\d+)\.0")  # how a table that holds nulls writes an integer
_SCIENTIFIC = re.compile(r"-?\d(\.\d+)?[eE]\+\d+")
_FLAGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "": False}


class Fields:
    """A view of one (possibly nested) object of a record. ``path`` is its place in the row, ``votes[2].`` say."""

    def __init__(self, record: Record, values: dict[str, Any] | None = None, path: str = "") -> None:
        self.record = record
        self.values = record.fields if values is None else values
        self.path = path

    def error(self, problem: str, kind: str = "bad_field") -> DataError:
        """A :class:`RowError` at this record."""
        return RowError(self.record.file, self.record.row, problem, kind)

    def require(self, name: str) -> Any:
        """The value of a field that must be there and not null."""
        value = self.values.get(name)
        if value is None:
            what = "is null" if name in self.values else "is missing"
            seen = ", ".join(sorted(self.values)) or "none"
            raise self.error(f"field '{self.path}{name}' {what}; fields seen: {seen}")
        return value

    def text(self, name: str) -> str:
        """A field that must be a string."""
        value = self.values.get(name)
        if type(value) is str and value.isascii():  # most of them, in every row of every file
            return value
        value = self.require(name)
        if not isinstance(value, str):
            raise self.wrong_type(name, "a string", value)
        if value.isascii():
            return value
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as exc:  # half an emoji, cut by a program that counts UTF-16 units: JSON lets it pass
            problem = f"field '{self.path}{name}' has a lone surrogate at character {exc.start}"
            raise self.error(problem, "bad_encoding") from exc
        return value

    def conversation(self, name: str) -> Text:
        """A string, or a list of messages."""
        value = self.values.get(name)
        if type(value) is str and value.isascii():
            return value
        return self.text(name) if isinstance(self.require(name), str) else self.messages(name)

    def conversations(self, name: str) -> list[Text]:
        """A list of strings or of lists of messages."""
        value = self.require(name)
        if not isinstance(value, list):
            raise self.wrong_type(name, "a list of responses", value)
        named = {f"{name}[{i}]": item for i, item in enumerate(value)}
        inner = Fields(self.record, named, self.path)
        return [inner.conversation(item) for item in named]

    def messages(self, name: str) -> Messages:
        """A non-empty list of ``{"role": str, "content": str, …}``; keys without a value are left out.

        Content that is null or absent beside a call of a tool is the empty string.
        """
        value = self.require(name)
        if not isinstance(value, list) or not value:
            raise self.wrong_type(name, "a string or a non-empty list of messages", value)
        return [self._message(f"{name}[{i}]", message) for i, message in enumerate(value)]

    def _message(self, name: str, message: Any) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise self.wrong_type(name, "a message", message)
        inner = Fields(self.record, message, f"{self.path}{name}.")
        inner.text("role")
        if message.get("content") is None and any(message.get(call) for call in CALLS):
            message = {**message, "content": ""}
        inner.values = message
        inner.text("content")
        # Parquet gives every message the keys of all of them; an absent tool call is a null there.
        return without_nulls(message)

    def json(self, name: str, kind: type, expected: str) -> Any:
        """A value of that kind, or the string that spells it: columns of a table cannot hold objects of two shapes."""
        value = self.require(name)
        if isinstance(value, str):
            try:
                value = json.loads(self.text(name))
            except (ValueError, RecursionError):
                raise self.wrong_type(name, expected, value) from None
        if not isinstance(value, kind):
            raise self.wrong_type(name, expected, value)
        return without_nulls(value)

    def flag(self, name: str) -> bool:
        """True or false, as JSON or a table spells it; false if absent or null."""
        value = self.values.get(name)
        if value is None or value != value:
            return False
        said = _FLAGS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
        if said is None:
            raise self.wrong_type(name, "true or false", value)
        return said

    def objects(self, name: str) -> list[Fields]:
        """A list of objects, each as fields of its own."""
        value = self.require(name)
        if not isinstance(value, list):
            raise self.wrong_type(name, "a list", value)
        for i, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.wrong_type(f"{name}[{i}]", "an object", item)
        return [Fields(self.record, item, f"{self.path}{name}[{i}].") for i, item in enumerate(value)]

    def integer(self, name: str) -> int:
        """A field that must be a whole number."""
        value = self.require(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong_type(name, "an integer", value)
        return value

    def identity(self, name: str, *, required: bool) -> str | None:
        """An id, a string or an integer; ``None`` if absent, null or blank and not required.

        The same in every format: an integer that a table has written as a float is that integer, unless it is so large
        that other integers have the same float.
        """
        value = self.values.get(name)
        if type(value) is str and value[:1].isalpha() and value.isascii():  # no number, and not blank
            return value
        blank = value is None or value != value  # NaN is how tables write a missing number
        if blank or (isinstance(value, str) and not value.strip()):
            if required:
                self.require(name)
                raise self.error(f"field '{self.path}{name}' is blank")
            return None
        if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
            raise self.error(
                f"field '{self.path}{name}' is a {type(value).__name__} ({value}) in the file and must be an id: a "
                "reader took it for a date; store the column as strings"
            )
        if isinstance(value, str):
            text = self.text(name)
            whole = _WHOLE_FLOAT.fullmatch(text)
            if _SCIENTIFIC.fullmatch(text) or (whole and _beyond_exact(whole[1])):
                raise self._inexact(name, value)
            return whole[1] if whole else text
        if isinstance(value, float) and value.is_integer():
            if abs(value) >= _EXACT:
                raise self._inexact(name, value)
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong_type(name, "an id (a string or an integer)", value)
        return str(value)

    def _inexact(self, name: str, value: Any) -> DataError:
        return self.error(
            f"field '{self.path}{name}' is the floating-point number {value}, which stands for several integers: ids "
            "that differ have become one; write the column again as integers or strings"
        )

    def pair_id(self, keys: RowFormat, fallback: str | None = None) -> str | None:
        """The pair's id, under the configured key or else ``fallback``; None without one."""
        found = self.identity(keys.pair_id_key, required=keys.pair_id_required and fallback not in self.values)
        return found if found is not None or fallback is None else self.identity(fallback, required=False)

    def annotator(self, keys: RowFormat) -> str | None:
        """The annotator's id under the configured key; None without one."""
        return self.identity(keys.annotator_key, required=keys.annotator_required)

    def columns(self) -> dict[str, float]:
        """The side columns under their canonical names; nulls and NaN are absent."""
        found = {}
        if ALIASES.keys().isdisjoint(self.values):
            return found
        for name, canonical in ALIASES.items():
            if not math.isnan(value := self.number(name)):
                found[canonical] = value
        return found

    def number(self, name: str) -> float:
        """A finite number that float32 can hold, also one that a table spells as a string; NaN if absent or null."""
        value = self.values.get(name)
        if value is None or value != value:
            return math.nan
        if isinstance(value, str):
            value = self._spelt(name, value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong_type(name, "a number", value)
        if not -_LARGEST <= value <= _LARGEST:
            raise self.wrong_type(name, "a finite number that float32 can hold", value)
        return float(value)

    def _spelt(self, name: str, value: str) -> float:
        if not value.strip():
            return math.nan
        try:
            return float(value)
        except ValueError:
            raise self.wrong_type(name, "a number", value) from None

    def numbers(self, name: str) -> list[float]:
        """A list of numbers; NaN for a null."""
        value = self.require(name)
        if not isinstance(value, list):
            raise self.wrong_type(name, "a list of numbers", value)
        named = {f"{name}[{i}]": item for i, item in enumerate(value)}
        inner = Fields(self.record, named, self.path)
        return [inner.number(item) for item in named]

    def wrong_type(self, name: str, expected: str, value: Any, advice: str = "") -> DataError:
        """The error of a field that holds another type than ``expected``; ``advice`` ends the line."""
        found = f"{type(value).__name__} {_shown(value)}"
        return self.error(f"field '{self.path}{name}' must be {expected}, found {found}{advice}")


def without_nulls(value: Any) -> Any:
    """A copy of nested objects and lists without the keys that have no value."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _beyond_exact(digits: str) -> bool:
    return len(digits.lstrip("-")) > 16 or abs(int(digits)) >= _EXACT


def _shown(value: Any) -> str:
    try:
        shown = repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return "of thousands of digits"
    return shown if len(shown) <= 60 else shown[:57] + "..."
