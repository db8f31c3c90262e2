"""Typed access to the fields of a record; every complaint names the file, the row and the field."""

from __future__ import annotations

import math
from typing import Any

from nemo_rpo.data.columns import ALIASES
from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.rows import Messages, Text
from nemo_rpo.errors import DataError, RowError


class Fields:
    """A view of one (possibly nested) object of a record. ``path`` is its place in the row, ``votes[2].`` say."""

    def __init__(self, record: Record, values: dict[str, Any] | None = None, path: str = "") -> None:
        self.record = record
        self.values = record.fields if values is None else values
        self.path = path

    def error(self, problem: str, kind: str = "bad_field") -> DataError:
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
        value = self.require(name)
        if not isinstance(value, str):
            raise self.wrong_type(name, "a string", value)
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as exc:  # half an emoji, cut by a program that counts UTF-16 units: JSON lets it pass
            problem = f"field '{self.path}{name}' has a lone surrogate at character {exc.start}"
            raise self.error(problem, "bad_encoding") from exc
        return value

    def conversation(self, name: str) -> Text:
        """A string, or a list of messages."""
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
        """A non-empty list of ``{"role": str, "content": str, …}``; keys without a value are left out."""
        value = self.require(name)
        if not isinstance(value, list) or not value:
            raise self.wrong_type(name, "a string or a non-empty list of messages", value)
        return [self._message(f"{name}[{i}]", message) for i, message in enumerate(value)]

    def _message(self, name: str, message: Any) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise self.wrong_type(name, "a message", message)
        inner = Fields(self.record, message, f"{self.path}{name}.")
        inner.text("role"), inner.text("content")
        # Parquet gives every message the keys of all of them; an absent tool call is a null there.
        return {key: value for key, value in message.items() if value is not None}

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
        value = self.require(name)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong_type(name, "an integer", value)
        return value

    def identity(self, name: str, *, required: bool) -> str | None:
        """An id, a string or an integer; ``None`` if absent, null or blank and not required."""
        value = self.values.get(name)
        if value is None or value == "" or value != value:  # NaN is how tables write a missing number
            if required:
                self.require(name)
                raise self.error(f"field '{self.path}{name}' is blank")
            return None
        if isinstance(value, float) and value.is_integer():  # tables that hold nulls turn integer ids into floats
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise self.wrong_type(name, "an id (a string or an integer)", value)
        return self.text(name) if isinstance(value, str) else str(value)

    def pair_id(self, keys: RowFormat, fallback: str | None = None) -> str | None:
        found = self.identity(keys.pair_id_key, required=keys.pair_id_required and fallback not in self.values)
        return found if found is not None or fallback is None else self.identity(fallback, required=False)

    def annotator(self, keys: RowFormat) -> str | None:
        return self.identity(keys.annotator_key, required=keys.annotator_required)

    def columns(self) -> dict[str, float]:
        """The side columns under their canonical names; nulls and NaN are absent."""
        found = {}
        for name, canonical in ALIASES.items():
            if not math.isnan(value := self.number(name)):
                found[canonical] = value
        return found

    def number(self, name: str) -> float:
        """A number; NaN if absent or null."""
        value = self.values.get(name)
        if value is None:
            return math.nan
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong_type(name, "a number", value)
        return float(value)

    def numbers(self, name: str) -> list[float]:
        """A list of numbers; NaN for a null."""
        value = self.require(name)
        if not isinstance(value, list):
            raise self.wrong_type(name, "a list of numbers", value)
        named = {f"{name}[{i}]": item for i, item in enumerate(value)}
        inner = Fields(self.record, named, self.path)
        return [inner.number(item) for item in named]

    def wrong_type(self, name: str, expected: str, value: Any) -> DataError:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return self.error(f"field '{self.path}{name}' must be {expected}, found {type(value).__name__} {shown}")
