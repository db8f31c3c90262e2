"""A prompt with its responses as tokens, and whether it can be trained on: one answer for training, its hosts and
``validate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nemo_rpo.data.rows import Given, Text
from nemo_rpo.data.tokenizers.preference import Laid, PreferenceTokenizer
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
    """A prompt and its responses as read at ``where`` (``file:row``), one that was judged alone or several; ``given``
    as in a row.
    """

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


def render(texts: Sequence[RawText], tokenizer: PreferenceTokenizer, seq_length: int) -> list[Rendered]:
    """Each text in tokens; all of them are tokenised in one call.

    Raises:
        NoTemplateError: naming the row, for messages where the tokenizer has no chat template.
    """
    laid = [_lay_out(text, tokenizer) for text in texts]
    tokenizer.know(one for responses, _, _ in laid for one in responses)
    return [_in_tokens(text, *of, tokenizer, seq_length) for text, of in zip(texts, laid, strict=True)]


def _lay_out(text: RawText, tokenizer: PreferenceTokenizer) -> tuple[list[Laid], str, frozenset[str]]:
    """The responses behind the prompt, or why there are none, and the notes."""
    try:
        laid, reason = [tokenizer.lay_out(text.prompt, response, text.given) for response in text.responses], ""
    except NoTemplateError as exc:
        raise NoTemplateError(f"{text.where}: {exc}") from exc
    except DataError as exc:
        laid, reason = [], str(exc)
    return laid, reason, tokenizer.take_notes()


def _in_tokens(
    text: RawText,
    laid: list[Laid],
    reason: str,
    notes: frozenset[str],
    tokenizer: PreferenceTokenizer,
    seq_length: int,
) -> Rendered:
    nothing = (np.empty(0, dtype=np.int32),) * len(text.responses)
    if not reason:
        (prompt, *others), responses, runs = zip(*map(tokenizer.tokens_of, laid), strict=True)
        if not all(np.array_equal(prompt, other) for other in others):
            reason = f"the chat template of {tokenizer.name} gives the responses different prompts"
    if reason:
        return Rendered(nothing[0], nothing, nothing, NOT_RENDERED, reason, notes | tokenizer.take_notes())
    problem = _problem(text, tokenizer, prompt, responses, seq_length)
    return Rendered(prompt, responses, runs, problem, "", notes | tokenizer.take_notes())


def _problem(
    text: RawText,
    tokenizer: PreferenceTokenizer,
    prompt: np.ndarray,
    responses: tuple[np.ndarray, ...],
    seq_length: int,
) -> int:
    # Tokens alone do not tell: a template adds its end-of-turn token even to an empty answer.
    if any(tokenizer.says_nothing(text.prompt, response, text.given) for response in text.responses):
        return EMPTY
    if len({ids.tobytes() for ids in responses}) < len(responses):
        return IDENTICAL
    if not fits(max(map(len, responses)), seq_length):
        return OVER_LONG
    return NO_PROMPT if len(prompt) == 0 else OK
