"""What can be seen of an answer without a model: length, format, overlap with the prompt, declared columns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nemo_rpo.data.rows import Text
from nemo_rpo.errors import ConfigError, DataError

_LIST = re.compile(r"^[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}[ \t]+\S|^\*\*[^*\n]+\*\*:?[ \t]*$", re.MULTILINE)
_CODE = re.compile(r"```|`[^`\n]+`")
_CITATION = re.compile(r"\[\d+(?:[,–-] ?\d+)*\]|https?://\S+")
_WORD = re.compile(r"\w+")


def _overlap(prompt: str, answer: str) -> float:
    """Share of the answer's distinct words that the prompt has too."""
    words = set(_WORD.findall(answer.casefold()))
    return len(words & set(_WORD.findall(prompt.casefold()))) / len(words) if words else 0.0


FEATURES: dict[str, Callable[[str, str], float]] = {
    "length": lambda prompt, answer: math.log1p(len(answer)),
    "lists": lambda prompt, answer: math.log1p(len(_LIST.findall(answer))),
    "code": lambda prompt, answer: math.log1p(len(_CODE.findall(answer))),
    "headings": lambda prompt, answer: math.log1p(len(_HEADING.findall(answer))),
    "citations": lambda prompt, answer: math.log1p(len(_CITATION.findall(answer))),
    "overlap": _overlap,
}
# How a row may name a column's value of either answer, and the fields that hold the second answer.
_REJECTED, _SECOND = ("rejected", "rejected_response"), ("response_b",)
_SIDES = (
    (("chosen_{}", "rejected_{}"), _REJECTED),
    (("{}_chosen", "{}_rejected"), _REJECTED),
    (("{}_a", "{}_b"), _SECOND),
    (("a_{}", "b_{}"), _SECOND),
)


def check_features(names: Sequence[str], where: str) -> None:
    """Raises :class:`ConfigError` of a name that is no feature."""
    for name in names:
        if name not in FEATURES:
            raise ConfigError(f"{where}: there is no feature '{name}'; it can be {', '.join(FEATURES)}")


def features(prompt: Text, answer: Text, names: Sequence[str] = tuple(FEATURES)) -> np.ndarray:
    """Of one answer, float64 [d]; of messages the contents one after the other. Counts as log(1 + count).

    >>> features("Name two fruits", "- Apples\\n- two pears", ["lists", "overlap"]).round(3)
    array([1.099, 0.333])
    """
    asked, said = content_of(prompt), content_of(answer)
    return np.array([FEATURES[name](asked, said) for name in names], dtype=np.float64)


def content_of(text: Text) -> str:
    """What is said in a text or in messages, without roles."""
    if isinstance(text, str):
        return text
    return "\n".join(str(message.get("content") or "") for message in text)


def declared(fields: Mapping[str, Any], first: Text, columns: Sequence[str], where: str) -> np.ndarray:
    """Differences of declared columns, first answer minus second, float64 [c].

    A column ``grade`` is the fields ``chosen_grade`` and ``rejected_grade`` (or ``grade_chosen``, …), or ``grade_a``
    and ``grade_b`` (or ``a_grade``, …) in a row with ``response_a`` and ``response_b``.

    Args:
        fields: of the row.
        first: the first answer, which tells whether that is ``response_a`` (or the row's ``chosen``).

    Raises:
        DataError: a row without the column, or a value that is no number; names ``where``.
    """
    found = np.empty(len(columns))
    for i, column in enumerate(columns):
        for sides, second_texts in _SIDES:
            a, b = (side.format(column) for side in sides)
            if a in fields and b in fields:
                sign = -1.0 if any(fields.get(name) == first for name in second_texts) else 1.0
                try:
                    found[i] = sign * (float(fields[a]) - float(fields[b]))
                except (TypeError, ValueError):
                    found[i] = math.nan
                if not math.isfinite(found[i]):
                    raise DataError(f"{where}: {a} and {b} must be numbers")
                break
        else:
            raise DataError(
                f"{where}: there is no column '{column}': it takes {column}_a and {column}_b, or chosen_{column} and "
                f"rejected_{column}"
            )
    return found
