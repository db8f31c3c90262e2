"""The verdict in what a language model has said."""

from __future__ import annotations

import re

from nemo_rpo.judging.judging_settings import ChatJudge
from nemo_rpo.judging.verdicts import Said


class AnswerReader:
    """Reads the answers of a judge by its ``words`` and ``pattern``; None where there is no verdict.

    >>> reader = AnswerReader(ChatJudge())
    >>> reader.last("[[A]] at first, but then [[B]]"), reader.word(" tie"), reader.last("A is better")
    ('second', 'tie', None)
    """

    def __init__(self, settings: ChatJudge) -> None:
        words = "|".join(re.escape(word) for word in settings.words.values())
        self._pattern = re.compile(settings.pattern or rf"\[\[\s*({words})\s*\]\]", re.IGNORECASE)
        self._said: dict[str, Said] = {word.lower(): name for name, word in settings.words.items()}

    def word(self, text: str) -> Said | None:
        """Of a text that is one of the words and nothing else."""
        return self._said.get(text.strip().lower())

    def last(self, text: str) -> Said | None:
        """By the last match of the pattern, of which the first group is one of the words."""
        found = self._pattern.findall(text)
        return self.word(found[-1] if isinstance(found[-1], str) else found[-1][0]) if found else None
