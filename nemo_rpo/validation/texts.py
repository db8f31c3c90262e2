"""What can be seen in the texts of one pair without a tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from nemo_rpo.data.layouts.fields import CALLS
from nemo_rpo.data.layouts.winner import ASSISTANT_TURN
from nemo_rpo.data.rows import PreferenceRow, Text

Problem = tuple[str, str]  # kind, and what is wrong in words

# Tab, line feed and carriage return are text; the C1 block is what Windows-1252 bytes become when read as Latin-1.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")

# How the templates of the common models begin a text or a turn.
_RENDERED = re.compile(r"\s*(<\|(begin_of_text|im_start|start_header_id|user|system|start)\|>|<s>|<bos>|\[INST\])")
_AROUND = 8
_BEGIN = 64
_BEYOND_ASCII = re.compile(rf"[^\x00-\x7f](?:[\x00-\x7f]{{0,{2 * _AROUND}}}[^\x00-\x7f])*")
_CONTROL_BYTES = bytes(i for i in range(128) if _CONTROL.match(chr(i)))


class TextChecks:
    """The checks of texts.

    Args:
        judge: tell empty and identical completions; with a tokenizer that is for :class:`TokenChecks` to say, which
            sees what is rendered.

    Attributes:
        not_checked: kinds that need a package that is not installed, and how to install it.
    """

    def __init__(self, judge: bool = True) -> None:
        self._judge = judge
        self.not_checked: dict[str, str] = {}
        self._is_mojibake = self._detector()

    def __call__(self, row: PreferenceRow) -> Iterator[Problem]:
        """The problems of the row's texts, each kind at most once a row."""
        prompt, first, second = flat(row.prompt), flat(row.chosen), flat(row.rejected)
        if self._judge:
            yield from judgement(row)
        if not row.alone and first.strip() and first != second and _same_words(first, second) and not has_calls(row):
            yield "identical_but_for_space", ""
        if not prompt.strip():
            yield "empty_prompt", ""
        if isinstance(row.prompt, str) and _RENDERED.match(row.prompt):
            yield "rendered_before", f"the prompt begins with {row.prompt.split(None, 1)[0][:40]}"
        if row.prompt_repeated:
            yield "prompt_repeated", ""
        yield from _turns(row)
        yield from self._damage((("prompt", prompt), ("first completion", first), ("second completion", second)))

    def _damage(self, texts: tuple[tuple[str, str], ...]) -> Iterator[Problem]:
        beyond = [(name, text) for name, text in texts if not text.isascii()]
        clean = all(_is_clean(text) for _, text in texts)
        if clean and not beyond:
            return
        for kind, find in (("replacement_character", _replacement), ("control_character", _control)):
            for name, text in () if clean and kind == "control_character" else texts:
                if (found := find(text)) is not None:
                    yield kind, f"{found} of the {name}"
                    break
        damaged = next((name for name, text in beyond if _somewhere(self._is_mojibake, text)), None)
        if damaged:
            yield "mojibake", f"the {damaged} looks decoded with the wrong encoding"

    def _detector(self) -> Callable[[str], bool]:
        try:
            from ftfy.badness import is_bad
        except ImportError:
            self.not_checked["mojibake"] = "needs ftfy; run: pip install 'nemo-rpo[data]'"
            return lambda text: False
        return is_bad


def judgement(row: PreferenceRow) -> Iterator[Problem]:
    """Whether a completion is empty, or both are the same, as far as that can be told without a tokenizer."""
    if isinstance(row.chosen, str) and isinstance(row.rejected, str) and row.chosen != row.rejected:
        if not (row.chosen.isspace() or row.rejected.isspace()) and row.chosen and row.rejected:
            return  # most rows
    sides = [(name, _said(text)) for name, text in _sides(row)]
    empty = [name for name, said in sides if not any(content.strip() or calls for _, content, calls in said)]
    if empty:
        yield "empty_completion", f"the {' and the '.join(empty)} completion is empty"
    elif not row.alone and sides[0][1] == sides[1][1]:
        yield "identical_completions", ""


def has_calls(row: PreferenceRow) -> bool:
    """Whether a completion calls a tool."""
    return any(calls for text in (row.chosen, row.rejected) for _, _, calls in _said(text))


def _sides(row: PreferenceRow) -> list[tuple[str, Text]]:
    return [("first", row.chosen), ("second", row.rejected)][: len(row.responses)]


def _said(text: Text) -> list[tuple[str, str, list]]:
    """Role, content and calls of every message that a tool or the assistant is heard in."""
    if isinstance(text, str):
        return [("assistant", text, [])]
    return [
        (message["role"], message["content"], [message[name] for name in CALLS if message.get(name)])
        for message in text
    ]


def flat(text: Text) -> str:
    """The words of a text or of all its messages."""
    return text if isinstance(text, str) else "\n".join(message["content"] for message in text)


def _turns(row: PreferenceRow) -> Iterator[Problem]:
    longer = [name for name, text in _sides(row) if _has_turns(text)]
    if longer:
        yield "later_prompts_differ", f"the {' and the '.join(longer)} completion holds further turns of the dialogue"


def _has_turns(text: Text) -> bool:
    if isinstance(text, str):
        return ASSISTANT_TURN in text
    return any(message["role"] == "user" for message in text)


def _same_words(first: str, second: str) -> bool:
    # Most texts differ in their first words, and the others need not be cut into theirs; the last word may be half one.
    begin = [text[:_BEGIN].split()[:-1] for text in (first, second)]
    if any(a != b for a, b in zip(*begin, strict=False)):
        return False
    return first.split() == second.split()


def _is_clean(text: str) -> bool:
    """True only for a text without control characters: removing those below 128 removes nothing, and no byte C2, with
    which the others begin in UTF-8, occurs. Ten times as fast as the search that finds where one is.
    """
    data = text.encode("utf-8", "surrogatepass")
    return len(data.translate(None, _CONTROL_BYTES)) == len(data) and b"\xc2" not in data


def _somewhere(is_bad: Callable[[str], bool], text: str) -> bool:
    """Whether a search finds what it looks for in the parts of a text that are not ASCII.

    The signs of a wrong encoding are a few characters, one of them beyond ASCII: eight on either side are enough, and
    hundreds of times as many need not be searched.
    """
    parts = (run.span() for run in _BEYOND_ASCII.finditer(text))
    return any(is_bad(text[max(0, start - _AROUND) : end + _AROUND]) for start, end in parts)


def _replacement(text: str) -> str | None:
    at = text.find("\ufffd")
    return None if at < 0 else f"U+FFFD at character {at + 1}"


def _control(text: str) -> str | None:
    found = _CONTROL.search(text)
    return found and f"U+{ord(found[0]):04X} at character {found.start() + 1}"
