"""What only the tokenizer shows: what training would cut, refuse, or be unable to tell apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from nemo_rpo.data import rendering
from nemo_rpo.data.rows import PreferenceRow
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.errors import NoTemplateError
from nemo_rpo.validation.texts import Problem, judgement


class TokenChecks:
    """The checks of tokens, under training's own rendering, judgement and truncation.

    Training cuts the beginning of a prompt and never a completion, so it refuses one that does not fit; other trainers
    cut the end. ``identical_after_truncation`` is about those: prompt and completions agree in every token they keep.

    Attributes:
        longest: most tokens of a prompt, of a completion, and of a prompt with one completion, seen so far.
        notes: pairs by what the tokenizer has to say of them.
    """

    def __init__(self, tokenizer: PreferenceTokenizer, seq_length: int) -> None:
        self.tokenizer = tokenizer
        self.seq_length = seq_length
        self.longest = {"prompt": 0, "completion": 0, "together": 0}
        self.notes: Counter[str] = Counter()

    def __call__(self, row: PreferenceRow) -> Iterator[Problem]:
        text = rendering.RawText(row.where, row.prompt, row.responses, row.given)
        try:
            [rendered] = rendering.render([text], self.tokenizer, self.seq_length)
        except NoTemplateError as exc:
            yield "no_chat_template", str(exc).removeprefix(f"{row.where}: ")
            return
        self.notes.update(rendered.notes)
        if rendered.problem == rendering.NOT_RENDERED:
            yield "not_renderable", rendered.reason
            return
        prompt, responses = rendered.prompt, rendered.responses
        longer = max(map(len, responses))
        together = len(prompt) + longer
        for name, length in (("prompt", len(prompt)), ("completion", longer), ("together", together)):
            self.longest[name] = max(self.longest[name], length)
        match rendered.problem:
            case rendering.EMPTY:
                yield next(judgement(row), ("empty_completion", "of a completion nothing is rendered"))
                return
            case rendering.IDENTICAL:
                yield next(judgement(row), ("identical_tokens", ""))
                return
            case rendering.OVER_LONG:
                yield "over_long", f"a completion has {longer:,} tokens, the sequence length is {self.seq_length:,}"
            case rendering.NO_PROMPT:
                yield "no_prompt_token", ""
        if rendered.problem == rendering.OK and together > self.seq_length:
            cut = together - self.seq_length
            yield "truncated_prompt", f"{cut:,} of the prompt's {len(prompt):,} tokens will be cut"
        if row.alone:
            return
        first, second = responses
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
