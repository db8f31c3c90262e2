"""What only the tokenizer shows: what training would cut, refuse, or be unable to tell apart."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.truncation import fits
from nemo_rpo.errors import DataError
from nemo_rpo.validation.texts import Problem


class TokenChecks:
    """The checks of tokens, under training's own rendering and truncation.

    Training cuts the beginning of a prompt and never a completion, so it refuses one that does not fit; other trainers
    cut the end. ``identical_after_truncation`` is about those: prompt and completions agree in every token they keep.

    Attributes:
        longest: most tokens of a prompt, of a completion, and of a prompt with one completion, seen so far.
    """

    def __init__(self, tokenizer: PreferenceTokenizer, seq_length: int) -> None:
        self.tokenizer = tokenizer
        self.seq_length = seq_length
        self.longest = {"prompt": 0, "completion": 0, "together": 0}

    def __call__(self, row: PreferenceRow) -> Iterator[Problem]:
        try:
            prompt, first = self.tokenizer.render(row.prompt, row.chosen)
            _, second = self.tokenizer.render(row.prompt, row.rejected)
        except DataError as exc:
            yield "not_renderable", str(exc)
            return
        longer, together = max(len(first), len(second)), len(prompt) + max(len(first), len(second))
        for name, length in (("prompt", len(prompt)), ("completion", longer), ("together", together)):
            self.longest[name] = max(self.longest[name], length)
        if np.array_equal(first, second):
            yield "identical_tokens", ""
            return
        if not fits(longer, self.seq_length):
            yield "over_long", f"a completion has {longer:,} tokens, the sequence length is {self.seq_length:,}"
        elif together > self.seq_length:
            cut = together - self.seq_length
            yield "truncated_prompt", f"{cut:,} of the prompt's {len(prompt):,} tokens will be cut"
        room = max(0, self.seq_length - len(prompt))
        if np.array_equal(first[:room], second[:room]):
            common = _common(first, second)
            yield (
                "identical_after_truncation",
                f"the completions agree in their first {common:,} tokens, and the prompt leaves room for {room:,}",
            )


def _common(first: np.ndarray, second: np.ndarray) -> int:
    shorter = min(len(first), len(second))
    differ = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differ[0]) if len(differ) else shorter
