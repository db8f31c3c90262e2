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
# Of a column, the four ways to say its value of either answer; the last two are of response_a and response_b.
_SIDES = (("chosen_{}", "rejected_{}"), ("{}_chosen", "{}_rejected"), ("{}_a", "{}_b"), ("a_{}", "b_{}"))
_A_B = 2  # _SIDES from here


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


def declared(
    fields: Mapping[str, Any], chosen: Text, columns: Sequence[str], where: str, by_slot: bool = False
) -> np.ndarray:
    """Differences of declared columns, first answer minus second, float64 [c].

    A column ``grade`` is the fields ``chosen_grade`` and ``rejected_grade`` (or ``grade_chosen``, …), or ``grade_a``
    and ``grade_b`` (or ``a_grade``, …) in a row with ``response_a`` and ``response_b``.

    Args:
        fields: of the row. chosen: its first answer, which tells whether that is ``response_a``.
        by_slot: the first answer is ``response_a`` whatever the texts are.

    Raises:
        DataError: a row without the column, or a value that is no number; names ``where``.
    """
    found = np.empty(len(columns))
    for i, column in enumerate(columns):
        for style, sides in enumerate(_SIDES):
            first, second = (side.format(column) for side in sides)
            if first in fields and second in fields:
                sign = -1.0 if style >= _A_B and not by_slot and fields.get("response_b") == chosen else 1.0
                try:
                    found[i] = sign * (float(fields[first]) - float(fields[second]))
                except (TypeError, ValueError):
                    found[i] = math.nan
                if not math.isfinite(found[i]):
                    raise DataError(f"{where}: {first} and {second} must be numbers")
                break
        else:
            raise DataError(
                f"{where}: there is no column '{column}': it takes {column}_a and {column}_b, or chosen_{column} and "
                f"rejected_{column}"
            )
    return found
