"""Options of a loss: dataclass fields that carry their own range, so that a bad value is one line naming the option."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any

from nemo_rpo.errors import ConfigError


def number(
    default: float,
    *,
    above: float = -math.inf,
    at_least: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
) -> Any:
    """A real-valued option within the given bounds."""
    bounds = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    expected = " and ".join(f"{word} {value:g}" for word, value in bounds.items() if math.isfinite(value))

    def accepts(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return False
        return above < value < below and at_least <= value <= at_most

    return field(default=default, metadata={"accepts": accepts, "expected": expected or "a finite number"})


def whole(default: int, *, at_least: int) -> Any:
    """An option that is a whole number."""

    def accepts(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= at_least

    return field(default=default, metadata={"accepts": accepts, "expected": f"a whole number, {at_least} or more"})


def choice(default: str, *others: str) -> Any:
    """An option that takes one of a few words."""
    words = (default, *others)
    return field(default=default, metadata={"accepts": words.__contains__, "expected": f"one of {', '.join(words)}"})


def flag(default: bool) -> Any:
    """An option that is true or false."""
    return field(
        default=default, metadata={"accepts": lambda value: isinstance(value, bool), "expected": "true or false"}
    )


def check_options(options: Any, owner: str) -> None:
    """Raises :class:`ConfigError` for the first field of the dataclass ``options`` whose value is out of its range."""
    for spec in fields(options):
        value = getattr(options, spec.name)
        if "accepts" in spec.metadata and not spec.metadata["accepts"](value):
            raise ConfigError(f"option '{spec.name}' of {owner} must be {spec.metadata['expected']}; got {value!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the nearest of ``known``, or the whole list where nothing is near."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known) or 'none'}"
