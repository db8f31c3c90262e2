"""A prompt with its responses as tokens, and whether it can be trained on: one answer for training, its hosts and
``validate``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nemo_rpo.data.rows import Given, Text
from nemo_rpo.data.tokenizers.preference import PreferenceTokenizer
from nemo_rpo.data.truncation import fits
from nemo_rpo.errors import DataError, NoTemplateError

OK = 0
PROBLEMS = (
    "",
    "empty completion",
    "identical completions",
    "over-long completion",
    "empty prompt",
    "cannot be rendered",
)
EMPTY, IDENTICAL, OVER_LONG, NO_PROMPT, NOT_RENDERED = range(1, len(PROBLEMS))


@dataclass(frozen=True)
class RawText:
    """A prompt and its responses, two or more, as read at ``where`` (``file:row``); ``given`` as in a row."""

    where: str
    prompt: Text
    responses: tuple[Text, ...]
    given: Given = field(default_factory=dict)


class Rendered(NamedTuple):
    """What a text is in tokens.

    Attributes:
        prompt: int32 [p]. responses: int32 each. runs: of each response (:mod:`nemo_rpo.data.turns`).
        problem: index into :data:`PROBLEMS`. reason: of a text that cannot be rendered, why.
        notes: see :class:`nemo_rpo.data.tokenizers.preference.PreferenceTokenizer`.
    """

    prompt: np.ndarray
    responses: tuple[np.ndarray, ...]
    runs: tuple[np.ndarray, ...]
    problem: int
    reason: str
    notes: frozenset[str]


def render(text: RawText, tokenizer: PreferenceTokenizer, seq_length: int) -> Rendered:
    """Raises :class:`NoTemplateError` for messages where the tokenizer has no chat template."""
    try:
        rendered = [tokenizer.render_turns(text.prompt, response, text.given) for response in text.responses]
        (prompt, *others), responses, runs = zip(*rendered, strict=True)
        if not all(np.array_equal(prompt, other) for other in others):
            raise DataError(f"the chat template of {tokenizer.name} gives the responses different prompts")
        problem = _problem(text, tokenizer, prompt, responses, seq_length)
    except NoTemplateError:
        raise
    except DataError as exc:
        nothing = (np.empty(0, dtype=np.int32),) * len(text.responses)
        return Rendered(nothing[0], nothing, nothing, NOT_RENDERED, str(exc), tokenizer.take_notes())
    return Rendered(prompt, responses, runs, problem, "", tokenizer.take_notes())


def _problem(
    text: RawText,
    tokenizer: PreferenceTokenizer,
    prompt: np.ndarray,
    responses: tuple[np.ndarray, ...],
    seq_length: int,
) -> int:
    # A template gives an answer of no words its end-of-turn token all the same.
    if any(tokenizer.says_nothing(text.prompt, response, text.given) for response in text.responses):
        return EMPTY
    if len({ids.tobytes() for ids in responses}) < len(responses):
        return IDENTICAL
    if not fits(max(map(len, responses)), seq_length):
        return OVER_LONG
    return NO_PROMPT if len(prompt) == 0 else OK
