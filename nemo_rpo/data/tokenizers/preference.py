"""How a prompt and a response become tokens."""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from nemo_rpo.data.layouts.every import SYSTEM, TEMPLATE_KWARGS, TOOLS
from nemo_rpo.data.layouts.fields import CALLS
from nemo_rpo.data.rows import Given, Messages, Text
from nemo_rpo.data.tokenizers.batches import encode_many
from nemo_rpo.data.tokenizers.seam import Seam, seam_of
from nemo_rpo.data.tokenizers.spec import DATE_FUNCTION, TokenizerSpec
from nemo_rpo.data.tokenizers.stops import read_stop_ids
from nemo_rpo.errors import DataError, NoTemplateError, RPOError, first_line

_WORD = re.compile(r"[A-Za-z_]\w*")
_ASKED_DATE = re.compile(DATE_FUNCTION + r"""\(\s*(["'])(.*?)\1\s*\)""")
_PROBE = "Zq"  # stands for words in a rendered dialogue that is looked at for what stands around them


class Laid(NamedTuple):
    """A prompt and a response as text: ``head``, then ``pieces`` whose 1st, 3rd, … are turns of the assistant.
    ``plain`` text has no turns, and tokens of its own at both ends.
    """

    head: str
    pieces: list[str]
    plain: bool

    def texts(self, seam: Seam) -> Iterator[str]:
        """Those that are tokenised: the head in two parts, and each piece behind the end of what stands before it."""
        before = self.head
        if cut := seam(before):
            yield before[:cut]
        for piece in self.pieces:
            before = before[seam(before) :]
            yield before
            before += piece
            yield before


class PreferenceTokenizer:
    """Renders pairs of prompt and response into ids.

    Attributes:
        vocab_size: ids are below it, added tokens included.
        bos_id, eos_id: ``None`` where the tokenizer has none.
        pad_id: a real id to fill batches with: pad, else eos, else 0. Never scored.
        notes: what was done or left undone with the texts rendered since :meth:`take_notes`, in sentences for the user.
    """

    def __init__(
        self,
        tokenizer: Any,
        use_chat_template: bool,
        name: str,
        date: datetime.date | None = None,
        stop_ids: frozenset[int] = frozenset(),
        end_responses: bool = True,
    ) -> None:
        tokenizer.model_max_length = sys.maxsize  # the limit is seq_length; a warning a row would bury the log
        self.tokenizer = tokenizer
        self.use_chat_template = use_chat_template
        self.name = name
        self.vocab_size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self._encode = encode_many(tokenizer)
        self._seam = seam_of(tokenizer)
        self._known: dict[str, np.ndarray] = {}
        self._line_break = self._ids("\n")
        self.pad_id: int = next((i for i in (tokenizer.pad_token_id, self.eos_id) if i is not None), 0)
        self.notes: set[str] = set()
        self._date = date or datetime.date.today()
        self._prints_date = DATE_FUNCTION in _template_text(tokenizer)
        tokenizer.chat_template = _with_date(tokenizer.chat_template, self._date)
        self._stop_ids, self._ends = stop_ids, end_responses
        self._special = _special_ids(tokenizer)
        self._special_texts = tuple(tokenizer.convert_ids_to_tokens(i) for i in sorted(self._special))
        self._template = _template_text(tokenizer)
        self._template_words = frozenset(_WORD.findall(self._template))
        self._turn_end = self._end_of_turn() if self._template else _NONE
        self._template_notes = {note for note in (self._end_of_turn_problem(), self._date_note()) if note}

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
        stop_ids = frozenset() if spec.folder is None else read_stop_ids(spec.folder)
        return cls(tokenizer, spec.use_chat_template, spec.name, spec.date, stop_ids, spec.end_responses)

    def take_notes(self) -> frozenset[str]:
        """The notes since the last call; they begin anew."""
        taken, self.notes = frozenset(self.notes), set()
        return taken

    def render(self, prompt: Text, response: Text, given: Given | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the prompt and of the response, int32 [p] and [r].

        Messages, and text with ``use_chat_template``, go through the chat template: the prompt is the conversation up
        to and including the header of the assistant's turn, the response what the template adds to that, end-of-turn
        token included, unless responses are not to be ended. Where the prompt ends in words of the assistant, the
        response goes on with them. Plain text is
        ``[bos] + prompt`` and ``response + [eos]``, without a second of either; so is, under ``use_chat_template``,
        text that was rendered before. A response of several messages is as in :meth:`render_turns`.

        Args:
            given: :attr:`nemo_rpo.data.rows.PreferenceRow.given`; the chat template gets it.

        Raises:
            DataError: messages without a chat template, or a template that rejects them or rewrites the prompt once the
                response is known.
        """
        return self.render_turns(prompt, response, given)[:2]

    def render_turns(
        self, prompt: Text, response: Text, given: Given | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """:meth:`render`, and the response's runs (:mod:`nemo_rpo.data.turns`), int32 [r].

        Of a response of several messages each assistant message is a turn: what the template adds to everything before
        it and the header of the turn. Each piece is tokenised as it came to the policy, after what stood there already.
        What follows the last turn is left out: nothing of it is scored.
        """
        return self.tokens_of(self.lay_out(prompt, response, given))

    def lay_out(self, prompt: Text, response: Text, given: Given | None = None) -> Laid:
        """The texts that :meth:`render_turns` makes tokens of. Raises as that does."""
        given = given or {}
        if self._is_plain(prompt, response):
            self._note_unread(given)
            return Laid(prompt, [response], plain=True)
        options = self._options(given)
        before, said = _messages(prompt, "user"), _messages(response, "assistant")
        if isinstance(prompt, str) and given.get(SYSTEM):
            before = [{"role": SYSTEM, "content": given[SYSTEM]}, *before]
        before, said, begun = _continued(before, said)
        if len(said) > 1:
            head, pieces = self._dialogue(before, said, options)
        else:
            head, tail = self._through_template(before, said, options)
            pieces = [tail]
        if begun:
            head, pieces[0] = self._behind(begun, said[0]["content"], head, pieces[0])
        self._note_template(before, said, given)
        return Laid(head, pieces, plain=False)

    def know(self, laid: Iterable[Laid]) -> None:
        """Tokenises all texts that :meth:`tokens_of` will need for these, in one call."""
        texts = list(dict.fromkeys(text for one in laid for text in one.texts(self._seam)))
        self._known = dict(zip(texts, map(_as_ids, self._encode(texts)), strict=True))

    def tokens_of(self, laid: Laid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids of the prompt, of the response, and its runs: see :meth:`render_turns`."""
        if laid.plain:
            prompt_ids, response_ids = self._plain(laid.head, laid.pieces[0])
            return prompt_ids, response_ids, np.array([len(response_ids)], dtype=np.int32)
        prompt_ids, text, ids = self._prompt_ids(laid.head), laid.head, []
        for piece in laid.pieces:
            ids.append(self._response_ids(text, piece) if piece else _NONE)
            text = text[self._seam(text) :] + piece
        if not self._ends:
            ids[-1] = self._without_end(ids[-1])
        return prompt_ids, np.concatenate(ids), np.array([len(of) for of in ids], dtype=np.int32)

    def says_nothing(self, prompt: Text, response: Text, given: Given | None = None) -> bool:
        """Whether a response has no words and nothing else that is rendered, a call of a tool say."""
        if isinstance(response, str):
            return not response.strip()
        said = [message for message in response if message["role"] == "assistant"]
        if any(message["content"].strip() for message in said):
            return False
        if all(message.keys() <= {"role", "content"} for message in said):
            return True
        bare = [
            {"role": "assistant", "content": message["content"]} if message["role"] == "assistant" else message
            for message in response
        ]
        try:
            without = self.render(prompt, bare, given)[1]
        except DataError:  # a template that takes no message without words, unless it calls a tool
            return False
        return np.array_equal(self.render(prompt, response, given)[1], without)

    def _is_plain(self, prompt: Text, response: Text) -> bool:
        if not (isinstance(prompt, str) and isinstance(response, str)):
            return False
        if not self.use_chat_template:
            return True
        if not prompt.startswith(self._special_texts):
            return False
        self.notes.add("texts begin with a special token: they were rendered before, and go through no chat template")
        return True

    def _plain(self, prompt: str, response: str) -> tuple[np.ndarray, np.ndarray]:
        prompt_ids, response_ids = self._prompt_ids(prompt), self._response_ids(prompt, response)
        bos, eos = self.bos_id, self.eos_id
        if bos is not None and len(prompt_ids) and prompt_ids[0] == bos:
            self.notes.add("prompts begin with the beginning-of-sequence token: no second one was added")
        elif bos is not None:
            prompt_ids = np.concatenate([np.array([bos], dtype=np.int32), prompt_ids])
        if not self._ends:
            return prompt_ids, response_ids
        if eos is not None and self._has_ended(response, response_ids):
            self.notes.add("responses end with an end-of-turn token: no end-of-sequence token was added")
        elif eos is not None:
            response_ids = np.concatenate([response_ids, np.array([eos], dtype=np.int32)])
        return prompt_ids, response_ids

    def _without_end(self, ids: np.ndarray) -> np.ndarray:
        """A turn without what the template puts behind the assistant's words."""
        end = len(self._turn_end)
        if end and np.array_equal(ids[-end:], self._turn_end):
            return ids[:-end]
        raise DataError(
            f"what the chat template of {self.name} puts behind a response cannot be told from its words: set "
            "model.tokenizer.end_responses=true"
        )

    def _has_ended(self, response: str, ids: np.ndarray) -> bool:
        """Whether the text's last token is an end, white space behind it aside."""
        ends = self._stop_ids | {self.eos_id} | (set(self._turn_end.tolist()) & self._special)
        if not any(int(i) in ends for i in ids[-4:]):
            return False
        bare = self._ids(response.rstrip())
        return int(ids[-1]) in ends or (len(bare) > 0 and int(bare[-1]) in ends)

    def _behind(self, begun: str, content: str, head: str, turn: str) -> tuple[str, str]:
        """The prompt up to the end of what the assistant had ``begun`` to say, and the rest of the turn, whose
        ``content`` is all that is said.
        """
        at = turn.rfind(content.strip())  # templates trim
        if at < 0:
            raise DataError(
                f"the chat template of {self.name} rewrites the assistant's words that the prompt ends in, so no "
                "response can go on with them"
            )
        cut = at + len(begun.lstrip())
        return head + turn[:cut], turn[cut:]

    def _dialogue(self, prompt: Messages, response: Messages, options: dict[str, Any]) -> tuple[str, list[str]]:
        """The prompt, and the response in pieces: a turn of the assistant, what stands before the next, and so on."""
        turns = [i for i, message in enumerate(response) if message["role"] == "assistant"]
        if not turns:
            raise DataError("a multi-message completion contains no assistant message")
        said = [self._through_template(prompt + response[:i], response[i : i + 1], options) for i in turns]
        head = said[0][0] if turns[0] == 0 else self._apply(prompt, **options)
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

    def _prompt_ids(self, prompt: str) -> np.ndarray:
        # The prompt is tokenised alone: these are the ids the policy is given when it has to answer, and they must be
        # the same beside both responses.
        cut = self._seam(prompt)
        return np.concatenate([self._ids(prompt[:cut]), self._ids(prompt[cut:])]) if cut else self._ids(prompt)

    def _response_ids(self, prompt: str, response: str) -> np.ndarray:
        """Ids of ``response`` behind ``prompt``, which begins anywhere before its seam."""
        # The response is what the joint text adds to the prompt, so that it gets the ids it has inside a text (no
        # second sentence-start mark, no stray space). Where a token would grow over the boundary, the policy could
        # never have produced it after that prompt: the response then follows a line break.
        prompt = prompt[self._seam(prompt) :]
        for context, context_ids in ((prompt, self._ids(prompt)), ("\n", self._line_break)):
            joint = self._ids(context + response)
            if np.array_equal(joint[: len(context_ids)], context_ids):
                return joint[len(context_ids) :]
        return self._ids(response)

    def _ids(self, text: str) -> np.ndarray:
        known = self._known.get(text)
        return _as_ids(self._encode([text])[0]) if known is None else known

    def _through_template(self, prompt: Messages, response: Messages, options: dict[str, Any]) -> tuple[str, str]:
        if not self._template:
            raise NoTemplateError(
                f"the row has messages, but the tokenizer in {self.name} has no chat template: add "
                "chat_template.jinja to the folder, or give another one with model.tokenizer.type"
            )
        whole = self._apply(prompt + response, **options)
        # Some templates open a turn in another way for generation than in a record (a <think> block); without the
        # generation header the prompt is a prefix of the record all the same.
        for header in (True, False):
            head = self._apply(prompt, add_generation_prompt=header, **options)
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

    def _options(self, given: Given) -> dict[str, Any]:
        """What the template gets beside the messages."""
        options = dict(given.get(TEMPLATE_KWARGS, {}))
        if TOOLS in given:
            options[TOOLS] = given[TOOLS]
        return options

    def _end_of_turn(self) -> np.ndarray:
        """Ids that the template puts behind the assistant's words; none where it cannot be asked."""
        said = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
        try:
            whole = self._apply(said, **self._options({}))
        except DataError:  # a template that takes no plain dialogue, of users alone say
            return _NONE
        return self._ids(whole[whole.rfind(_PROBE) + len(_PROBE) :]) if _PROBE in whole else _NONE

    def _end_of_turn_problem(self) -> str | None:
        """What keeps a policy that has learnt the template's turns from stopping; ``None`` where nothing does."""
        if not self._template or self.eos_id is None or self.eos_id in self._turn_end:
            return None
        special = [i for i in self._turn_end.tolist() if i in self._special]
        if set(special) & self._stop_ids:
            return None
        if not special:
            return (
                f"the chat template of {self.name} ends the assistant's turns with no end token, so the policy never "
                "learns to stop; let it end them with eos_token"
            )
        end, eos = (self.tokenizer.convert_ids_to_tokens(i) for i in (special[0], self.eos_id))
        return (
            f"the chat template of {self.name} ends the assistant's turns with {end}, and eos_token is {eos}: the "
            f"policy learns to stop at {end} only; name both in eos_token_id of generation_config.json"
        )

    def _date_note(self) -> str | None:
        """The note that the template prints a date, and which; ``None`` if it prints none."""
        if not self._prints_date:
            return None
        return (
            f"the chat template of {self.name} prints a date, which is {self._date.isoformat()} for this run; "
            "model.tokenizer.date sets another"
        )

    def _note_template(self, prompt: Messages, response: Messages, given: Given) -> None:
        for message in (*prompt, *response):
            self.notes |= {
                _not_taken(f"messages[].{key}") for key in message.keys() - self._template_words if key != "role"
            }
        self.notes |= {_not_taken(TOOLS)} if TOOLS in given and TOOLS not in self._template_words else set()
        unknown = given.get(TEMPLATE_KWARGS, {}).keys() - self._template_words
        self.notes |= {_not_taken(f"{TEMPLATE_KWARGS}.{key}") for key in unknown}
        self.notes |= self._template_notes

    def _note_unread(self, given: Given) -> None:
        self.notes |= {
            f"field '{name}' is not rendered: texts that go through no chat template have no place for it; "
            "model.tokenizer.use_chat_template=true renders it"
            for name in given
        }


_NONE = np.empty(0, dtype=np.int32)


def _as_ids(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.int32)


def _not_taken(name: str) -> str:
    return f"field '{name}' is not rendered: the chat template does not take it"


def _messages(text: Text, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _calls(message: dict[str, Any]) -> bool:
    return any(message.get(name) for name in CALLS)


def _continued(prompt: Messages, response: Messages) -> tuple[Messages, Messages, str]:
    """Moves words of the assistant at the prompt's end to the head of the response: prompt, response, and the words."""
    last, first = prompt[-1], response[0]
    goes_on = last["role"] == first["role"] == "assistant" and len(prompt) > 1
    if not goes_on or _calls(last) or not last["content"].strip():
        return prompt, response, ""
    merged = {**first, "content": last["content"] + first["content"]}
    return prompt[:-1], [merged, *response[1:]], last["content"]


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    special = {int(i) for i, token in added.items() if getattr(token, "special", False)}
    return frozenset(special | set(getattr(tokenizer, "all_special_ids", ())))


def _template_text(tokenizer: Any) -> str:
    """The source of the chat template, of several the one that a dialogue without tools gets and then the others."""
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else template or ""


def _with_date(template: Any, date: datetime.date) -> Any:
    """The template, or each of several, with the day written where it asks for it."""
    if isinstance(template, dict):
        return {name: _with_date(text, date) for name, text in template.items()}
    if not template:
        return template
    return _ASKED_DATE.sub(lambda asked: json.dumps(date.strftime(asked[2]), ensure_ascii=False), template)
