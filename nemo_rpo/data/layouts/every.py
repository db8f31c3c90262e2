"""What a row of any layout may hold beside the layout's own fields, and what is asked of any row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from nemo_rpo.data.layouts.details import (
    CHOSEN_REJECTED,
    GOLD,
    OF_VOTE,
    SHOWN_FIRST,
    TOPIC,
    side,
    vote_details,
)
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import Given, Messages, PreferenceRow, Text, Vote

SYSTEM, TOOLS, TEMPLATE_KWARGS, TIE = "system", "tools", "chat_template_kwargs", "tie"
READ = frozenset((SYSTEM, TOOLS, TEMPLATE_KWARGS, TOPIC))  # in every layout
OF_LABELLED = OF_VOTE | {TIE, GOLD}  # in layouts with a single label a row, which these fields of the row speak of

# Of apply_chat_template, and decided here: no row may set them.
_RESERVED = frozenset(
    "conversation messages chat_template add_generation_prompt continue_final_message tokenize padding truncation "
    "max_length return_tensors return_dict return_assistant_tokens_mask tokenizer_kwargs "
    "sanitize_control_tokens strftime_now".split()
)
# A response begins with the prompt by chance where that is a greeting; no longer prompt is answered with itself.
_WORDS, _CHARACTERS = 3, 12


def complete(row: PreferenceRow, fields: Fields, labelled: bool, public: bool) -> PreferenceRow:
    """The row with what any layout may say: ``system``, ``tools``, ``chat_template_kwargs``, ``topic``; where it is
    ``labelled`` (one label a row) also :data:`OF_LABELLED`; and without a prompt that the responses repeat at their
    head. Of a ``public`` layout only the last.

    Raises:
        RowError: one of them is of another type, or a response has no message of the assistant.
    """
    for place, text in enumerate(row.responses):
        if type(text) is not str:
            _check_response(fields, ("chosen", "rejected", "further")[min(place, 2)], text)
    values, changes = {} if public else fields.values, {}
    if values.get(SYSTEM) is not None or values.get(TOOLS) is not None or values.get(TEMPLATE_KWARGS) is not None:
        changes = _given(row, fields)
    if values.get(TOPIC) is not None and row.topic is None:
        changes["topic"] = fields.identity(TOPIC, required=False)
    if labelled and not row.alone and not OF_LABELLED.isdisjoint(values):
        changes |= _label(row, fields)
    if isinstance(row.prompt, str) and _is_repeated(row.prompt, row.responses):
        sides = (row.chosen, row.rejected, *row.further)
        chosen, rejected, *further = (text[len(row.prompt) :] for text in sides)
        changes |= {"chosen": chosen, "rejected": rejected, "further": tuple(further), "prompt_repeated": True}
    return replace(row, **changes) if changes else row


def _label(row: PreferenceRow, fields: Fields) -> dict[str, Any]:
    """What the fields of the row say of its label and of the truth."""
    details = vote_details(fields, CHOSEN_REJECTED)
    gold = side(fields, GOLD, {**CHOSEN_REJECTED, TIE: 0}) or None
    if row.further and (gold or details.shown_first):
        name = GOLD if gold else SHOWN_FIRST
        raise fields.error(f"field '{name}' speaks of two responses, and the ranking holds {len(row.responses)}")
    tied = TIE in fields.values and fields.flag(TIE)
    votes = tuple(Vote(vote.annotator, 0 if tied else vote.sign, details) for vote in row.votes)
    return {"votes": votes, "gold": gold}


def _check_response(fields: Fields, name: str, text: Messages) -> None:
    if not any(message["role"] == "assistant" for message in text):
        roles = ", ".join(sorted({message["role"] for message in text}))
        raise fields.error(
            f"the {name} response has no message of the assistant (role: {roles}); the messages that are to be learnt "
            "need the role 'assistant'"
        )


def _given(row: PreferenceRow, fields: Fields) -> dict[str, Given | Text]:
    given, changes = {}, {}
    if fields.values.get(TOOLS) is not None:
        given[TOOLS] = fields.json(TOOLS, list, "a list of tools, or the JSON of one")
    if fields.values.get(TEMPLATE_KWARGS) is not None:
        given[TEMPLATE_KWARGS] = fields.json(TEMPLATE_KWARGS, dict, "an object, or the JSON of one")
        if reserved := sorted(given[TEMPLATE_KWARGS].keys() & _RESERVED):
            raise fields.error(f"field '{TEMPLATE_KWARGS}' must not set {', '.join(reserved)}")
    system = _system(fields)
    if system and isinstance(row.prompt, str):
        given[SYSTEM] = system[0]["content"]
    elif system:
        changes["prompt"] = _behind(system, row.prompt, fields)
    return changes | {"given": {name: value for name, value in given.items() if value}}


def _system(fields: Fields) -> Messages:
    """One message, or none where the field is blank."""
    value = fields.values.get(SYSTEM)
    if value is None or (isinstance(value, str) and not fields.text(SYSTEM).strip()):
        return []
    messages = [{"role": SYSTEM, "content": value}] if isinstance(value, str) else fields.messages(SYSTEM)
    if len(messages) != 1 or messages[0]["role"] not in (SYSTEM, "developer"):
        raise fields.wrong_type(SYSTEM, "a string, or a list of one message of the system", value)
    return messages


def _behind(system: Messages, prompt: Messages, fields: Fields) -> Messages:
    if prompt[0]["role"] not in (SYSTEM, "developer"):
        return [*system, *prompt]
    if prompt[0]["content"].strip() != system[0]["content"].strip():
        raise fields.error(f"field '{SYSTEM}' and the first message of the prompt are different system messages")
    return prompt


def _is_repeated(prompt: str, responses: tuple[Text, ...]) -> bool:
    if len(prompt) < _CHARACTERS:
        return False
    for text in responses:
        if not isinstance(text, str) or not text.startswith(prompt):
            return False
    return len(prompt.split()) >= _WORDS
