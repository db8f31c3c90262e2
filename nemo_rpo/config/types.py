"""The types of settings: ranges that a hint carries, and how a plain tree becomes the dataclasses by their hints.

OmegaConf's structured configs would do this too, but 2.3, to which hydra holds NeMo's containers, knows no ``Literal``,
and its errors take several lines.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """``low`` to ``high``; an ``open`` end is not in the range itself. NaN is in no range."""

    low: float
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"at least {self.low:g}"
        if self.high == float("inf"):
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:g}"


Count = Annotated[int, Range(1)]
WholeNumber = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1, open_high=True)]  # dropout, Adam's betas
Batches = Annotated[int | float, Range(0)]  # an int counts batches, a float is a share of them (Lightning's rule)


class Mismatch(ValueError):
    """A value that its hint does not accept; the message is what is accepted."""


@cache
def hints_of(cls: type) -> dict[str, Any]:
    """Field name → type hint with its constraints, of a dataclass and those it inherits from."""
    hints = get_type_hints(cls, include_extras=True)
    return {spec.name: hints[spec.name] for spec in fields(cls)}


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting below the dataclass ``cls`` as (dotted path, hint); sections themselves are left out."""
    for name, hint in hints_of(cls).items():
        if is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def expected(hint: Any) -> str:
    """What ``hint`` accepts, in words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{expected(args[0])}, {', '.join(str(extra) for extra in args[1:])}"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin in (Union, types.UnionType):
        if set(args) == {int, float}:
            return "a number"
        words = [expected(arg) for arg in args if arg is not type(None)]
        return " or ".join([*words, "null"] if type(None) in args else words)
    if origin is list:
        return f"a list, each {expected(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)}, each {expected(args[0])}"
    if hint is dict or origin is dict:
        return "a mapping"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[hint]


def convert(hint: Any, value: Any) -> Any:
    """``value`` as ``hint`` wants it: 1e3 is the whole number 1000, 32 the text "32", the text "0.1" a number.

    Raises:
        Mismatch: with what is accepted.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _within(args[0], value, hint)
    if origin is Literal:
        return _choice(value, hint)
    if origin in (Union, types.UnionType):
        return _any_of(value, hint)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple) or (origin is tuple and len(value) != len(args)):
            raise Mismatch(expected(hint))
        return _items(origin, args, value, hint)
    if hint is dict or origin is dict:
        if not isinstance(value, Mapping):
            raise Mismatch(expected(hint))
        return dict(value)
    return _scalar(hint, value)


def _within(base: Any, value: Any, hint: Any) -> Any:
    try:
        number = convert(base, value)
    except Mismatch:
        number = None
    if number is None or any(isinstance(extra, Range) and number not in extra for extra in get_args(hint)[1:]):
        raise Mismatch(expected(hint))
    return number


def _choice(value: Any, hint: Any) -> Any:
    for option in get_args(hint):
        if str(value) == str(option) and not isinstance(value, bool):
            return option
    raise Mismatch(expected(hint))


def _any_of(value: Any, hint: Any) -> Any:
    options = get_args(hint)
    if type(value) in options:
        return value
    for option in options:
        try:
            return convert(option, value)
        except Mismatch:
            continue
    raise Mismatch(expected(hint))


def _items(origin: type, args: tuple[Any, ...], value: Any, hint: Any) -> Any:
    try:
        item_hints = args if origin is tuple else args * len(value)
        return origin(convert(item, one) for item, one in zip(item_hints, value, strict=True))
    except Mismatch:
        raise Mismatch(expected(hint)) from None


def _scalar(hint: Any, value: Any) -> Any:
    if value is None or isinstance(value, bool):
        if type(value) is hint:
            return value
    elif isinstance(value, str | int | float):
        if hint is str:
            return str(value)
        if hint in (int, float):
            return _number(hint, value)
    raise Mismatch("null" if hint is type(None) else expected(hint))


def _number(hint: type, value: str | int | float) -> int | float:
    if type(value) is hint:
        return value
    try:
        number = float(value)
        if hint is float or number == int(number):
            return hint(number)
    except (ValueError, OverflowError):  # a text, or int(nan), int(inf)
        pass
    raise Mismatch(expected(hint))
