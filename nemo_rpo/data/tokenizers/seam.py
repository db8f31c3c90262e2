"""Where a text may be cut so that both parts, tokenised apart, have the ids of the whole, whatever follows.

A response's ids are those that it has behind its prompt. With a seam near the prompt's end, one word of the prompt is
tokenised beside each response, not all of it: a third of the work of a pair whose texts are of equal length.

A byte-level BPE first splits a text into words by a regular expression, and merges bytes within a word only. The
expressions below have no look-behind, and each of their branches that takes an ASCII letter ends behind letters.
Between an ASCII letter and a space before an ASCII letter there is therefore always an end of a word; and the words
behind it depend on nothing before it. Unicode's composed form (NFC) joins nothing to a space.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Seam = Callable[[str], int]

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ENDS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS, _SIGNS_AND_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n]*", r"| ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SHORTENED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ONE, _TO_THREE = r"|\p{N}", r"|\p{N}{1,3}"


def _by_case(end: str) -> str:
    return rf"{_BEFORE}{_UPPER}*{_LOWER}+{end}|{_BEFORE}{_UPPER}+{_LOWER}*{end}"


_SPLITS = frozenset(
    (
        rf"{_SHORTENED}|{_BEFORE}\p{{L}}+{_TO_THREE}{_SIGNS}{_ENDS}",  # Llama 3
        rf"{_SHORTENED}|{_BEFORE}\p{{L}}+{_ONE}{_SIGNS}{_ENDS}",  # Qwen 2 and 3
        f"{_by_case(_SHORTENED + '?')}{_TO_THREE}{_SIGNS_AND_SLASHES}{_ENDS}",  # gpt-oss, Llama 4
        f"{_by_case('')}{_ONE}{_SIGNS_AND_SLASHES}{_ENDS}",  # Mistral NeMo
    )
)


def seam_of(tokenizer: Any) -> Seam:
    """A function that gives the last such place of a text, in characters; 0 where it has none, and of any text where
    nothing is known of the tokenizer.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return _last_word if backend is not None and _splits_at_words(backend) else _nowhere


def _nowhere(text: str) -> int:
    return 0


def _last_word(text: str) -> int:
    at = len(text) - 1
    while (at := text.rfind(" ", 0, at)) > 0:
        if text[at - 1] in _LETTERS and text[at + 1] in _LETTERS:
            return at
    return 0


def _splits_at_words(backend: Any) -> bool:
    if type(backend.model).__name__ != "BPE" or backend.model.dropout:
        return False
    normalizer, split = _described(backend.normalizer), _described(backend.pre_tokenizer)
    if normalizer and normalizer.get("type") != "NFC":
        return False
    return _is_known(split) and not any(map(_reaches_over, backend.get_added_tokens_decoder().values()))


def _described(part: Any) -> dict[str, Any]:
    """The part as ``tokenizer.json`` has it; nothing where there is none."""
    return {} if part is None else json.loads(part.__getstate__())


def _is_known(split: dict[str, Any]) -> bool:
    if split.get("type") == "ByteLevel":
        return split.get("use_regex", True)  # then by the expression of GPT-2
    steps = split.get("pretokenizers", [])
    if [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return False
    at, level = steps
    whole = at.get("behavior") == "Isolated" and not at.get("invert")
    return whole and at.get("pattern", {}).get("Regex") in _SPLITS and not level.get("use_regex", True)


def _reaches_over(token: Any) -> bool:
    """Whether an added token, which is found before words are, may lie across such a place or depend on its sides."""
    text = token.content
    if not text.isspace() and any(character.isspace() for character in text):
        return True
    at_letters = text[:1] in _LETTERS or text[-1:] in _LETTERS
    return at_letters and (token.lstrip or token.rstrip or token.single_word)
