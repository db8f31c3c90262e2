"""Answers that can be checked by their text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")


def matches(prompt: str, response: str, fields: Mapping[str, Any], pattern: str, wanted: bool = True) -> float:
    """1 where the regular expression is found in the response (or, with ``wanted: false``, is not), else 0.

    >>> matches("", "I am sorry.", {}, pattern="(?i)sorry", wanted=False)
    0.0
    """
    return float((re.search(pattern, response) is not None) == wanted)


def exact_answer(
    prompt: str, response: str, fields: Mapping[str, Any], field: str = "answer", pattern: str | None = None
) -> float:
    r"""1 where the answer that the response comes to is the one in the row's ``field``, else 0.

    The answer is the last match of ``pattern`` (its first group), or else what stands in the last ``\boxed{}``, or
    else the last number where the right answer is one, or the last line. Numbers are compared as numbers, texts without
    regard to case, white space and a full stop.

    Raises:
        KeyError: the row has no such field.

    >>> exact_answer("", "3 + 4 makes 7.0, so 7.", {"answer": "7"}), exact_answer("", "Paris.", {"answer": "paris"})
    (1.0, 1.0)
    """
    right = str(fields[field]).strip()
    if pattern is not None:
        found = [match.group(1 if match.re.groups else 0) for match in re.finditer(pattern, response)]
    elif boxed := _BOXED.findall(response):
        found = boxed
    elif _number(right) is not None:
        found = _NUMBER.findall(response)
    else:
        found = response.strip().splitlines()
    return float(bool(found) and _same(found[-1], right))


def _same(said: str, right: str) -> bool:
    numbers = _number(said), _number(right)
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _folded(said) == _folded(right)


def _number(text: str) -> float | None:
    text = text.strip().rstrip(".").replace(",", "").removeprefix("$")
    try:
        return float(text)
    except ValueError:
        return None


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold().rstrip(".")
