"""How a prompt and a response become tokens."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from nemo_rpo.data.rows import Messages, Text
from nemo_rpo.data.tokenizers.spec import TokenizerSpec
from nemo_rpo.errors import DataError, RPOError, first_line

# What AutoTokenizer reads, weights and training leftovers beside it excluded.


class PreferenceTokenizer:
    """Renders pairs of prompt and response into ids.

    Attributes:
        vocab_size: ids are below it, added tokens included.
        bos_id, eos_id: ``None`` where the tokenizer has none.
        pad_id: a real id to fill batches with: pad, else eos, else 0. Never scored.
    """

    def __init__(self, tokenizer: Any, use_chat_template: bool, name: str) -> None:
        tokenizer.model_max_length = sys.maxsize  # the limit is seq_length; a warning a row would bury the log
        self.tokenizer = tokenizer
        self.use_chat_template = use_chat_template
        self.name = name
        self.vocab_size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self._line_break = self._ids("\n")
        self.pad_id: int = next((i for i in (tokenizer.pad_token_id, self.eos_id) if i is not None), 0)

    @classmethod
    def load(cls, spec: TokenizerSpec) -> PreferenceTokenizer:
        """Raises :class:`RPOError` if the tokenizer cannot be used; nothing of ours reaches for the network."""
        try:
            tokenizer = spec.build()
        except RPOError:
            raise
        except Exception as exc:  # transformers raises whatever the damaged file led it to
            raise DataError(f"the tokenizer in {spec.name} cannot be loaded: {first_line(exc)}") from exc
        if spec.use_chat_template and not tokenizer.chat_template:
            raise DataError(
                f"the tokenizer in {spec.name} has no chat template; add chat_template.jinja to the folder "
                "or set model.tokenizer.use_chat_template=false"
            )
        return cls(tokenizer, spec.use_chat_template, spec.name)

    def render(self, prompt: Text, response: Text) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the prompt and of the response, int32 [p] and [r].

        Messages, and text with ``use_chat_template``, go through the chat template: the prompt is the conversation up
        to and including the header of the assistant's turn, the response what the template adds to that, end-of-turn
        token included. Plain text is ``[bos] + prompt`` and ``response + [eos]``. A response of several messages is as
        in :meth:`render_turns`.

        Raises:
            DataError: messages without a chat template, or a template that rejects them or rewrites the prompt once the
                response is known.
        """
        if isinstance(response, list) and len(response) > 1:
            return self.render_turns(prompt, response)[:2]
        if self.use_chat_template or not (isinstance(prompt, str) and isinstance(response, str)):
            head, tail = self._through_template(_messages(prompt, "user"), _messages(response, "assistant"))
            return self._split(head, tail)
        prompt_ids, response_ids = self._split(prompt, response)
        bos = [] if self.bos_id is None else [self.bos_id]
        eos = [] if self.eos_id is None else [self.eos_id]
        return (
            np.concatenate([np.array(bos, dtype=np.int32), prompt_ids]),
            np.concatenate([response_ids, np.array(eos, dtype=np.int32)]),
        )

    def render_turns(self, prompt: Text, response: Text) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:meth:`render`, and the response's runs (:mod:`nemo_rpo.data.turns`), int32 [r].

        Of a response of several messages each assistant message is a turn: what the template adds to everything before
        it and the header of the turn. Each piece is tokenised as it came to the policy, after what stood there already.
        What follows the last turn is left out: nothing of it is scored.
        """
        if not (isinstance(response, list) and len(response) > 1):
            prompt_ids, response_ids = self.render(prompt, response)
            return prompt_ids, response_ids, np.array([len(response_ids)], dtype=np.int32)
        head, pieces = self._dialogue(_messages(prompt, "user"), response)
        prompt_ids, text, ids = self._ids(head), head, []
        for piece in pieces:
            ids.append(self._split(text, piece)[1] if piece else np.empty(0, dtype=np.int32))
            text += piece
        return prompt_ids, np.concatenate(ids), np.array([len(of) for of in ids], dtype=np.int32)

    def _dialogue(self, prompt: Messages, response: Messages) -> tuple[str, list[str]]:
        """The prompt, and the response in pieces: a turn of the assistant, what stands before the next, and so on."""
        turns = [i for i, message in enumerate(response) if message["role"] == "assistant"]
        if not turns:
            raise DataError("a completion of several messages has none of the assistant's")
        said = [self._through_template(prompt + response[:i], response[i : i + 1]) for i in turns]
        head = said[0][0] if turns[0] == 0 else self._apply(prompt)
        text, pieces = head, [] if turns[0] == 0 else [""]
        for before, turn in said:
            if not before.startswith(text):
                raise DataError(
                    f"the chat template of {self.name} rewrites what was said once the dialogue goes on, so no model "
                    "has seen the completion as it would be scored; use a template that only appends"
                )
            pieces += [turn] if not pieces else [before[len(text) :], turn]
            text = before + turn
        return head, pieces

    def _split(self, prompt: str, response: str) -> tuple[np.ndarray, np.ndarray]:
        # The prompt is tokenised alone: these are the ids the policy is given when it has to answer, and they must be
        # the same beside both responses. The response is what the joint text adds to them, so that a response gets the
        # ids it has inside a text (no second sentence-start mark, no stray space). Where a token would grow over the
        # boundary, the policy could never have produced it after that prompt: the response then follows a line break.
        prompt_ids = self._ids(prompt)
        for context, context_ids in ((prompt, prompt_ids), ("\n", self._line_break)):
            joint = self._ids(context + response)
            if np.array_equal(joint[: len(context_ids)], context_ids):
                return prompt_ids, joint[len(context_ids) :]
        return prompt_ids, self._ids(response)

    def _ids(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int32)

    def _through_template(self, prompt: Messages, response: Messages) -> tuple[str, str]:
        if not self.tokenizer.chat_template:
            raise DataError(f"the row has messages, but the tokenizer in {self.name} has no chat template")
        whole = self._apply(prompt + response)
        # Some templates open a turn in another way for generation than in a record (a <think> block); without the
        # generation header the prompt is a prefix of the record all the same.
        for header in (True, False):
            head = self._apply(prompt, add_generation_prompt=header)
            if whole.startswith(head):
                return head, whole[len(head) :]
        raise DataError(
            f"the chat template of {self.name} rewrites the prompt once a response follows, so the two responses would "
            "not share one prompt; use a template that only appends"
        )

    def _apply(self, messages: Messages, **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)
        except Exception as exc:  # a template raises what it likes: jinja2's errors, its own raise_exception
            raise DataError(f"the chat template of {self.name} rejects the row: {first_line(exc)}") from exc


def _messages(text: Text, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
