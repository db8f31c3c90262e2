"""Texts of tables that a spreadsheet would run as formulas: a quote in front, and off again."""

from __future__ import annotations

import re
from typing import Any

# What a program takes for a formula; and such a text with quotes in front, which gets one more, so that one comes off.
_RUN = re.compile(r"'*[=+\-@\t\r]")
_QUOTED = re.compile(r"'+[=+\-@\t\r]")


def with_quote(value: Any) -> Any:
    """A text that begins with = + - @, a tab or a carriage return, with a ' in front; anything else as it is."""
    return f"'{value}" if isinstance(value, str) and _RUN.match(value) else value


def without_quote(value: Any) -> Any:
    """A cell as it was before :func:`with_quote`."""
    return value[1:] if isinstance(value, str) and value[:1] == "'" and _QUOTED.match(value) else value
