"""Battles of the arenas: chatbot_arena_conversations, mt_bench_human_judgments, arena-human-preference."""

from __future__ import annotations

from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.details import when
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public.answers import annotator, sign_of
from nemo_rpo.data.layouts.winner import split_messages
from nemo_rpo.data.rows import Messages, PreferenceRow, Vote, VoteDetails

READ = frozenset(
    "conversation_a conversation_b winner judge evaluation_session_id turn tstamp timestamp model_a model_b".split()
)


def battle(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"conversation_a", "conversation_b", "winner", "judge" or "evaluation_session_id", …}``, model a on the left.

    ``turn`` says how many turns were judged; later ones are cut off. The messages that both sides share are the prompt.
    A ``winner`` of both_bad or tie (bothbad) is a tie.
    """
    fields = Fields(record)
    turns = fields.integer("turn") if fields.values.get("turn") is not None else None
    sides = [_judged(_conversation(fields, f"conversation_{side}"), turns) for side in "ab"]
    prompt, first, second = split_messages(fields, *sides, names=("conversation_a", "conversation_b"))
    sign = sign_of(fields, "winner", ("model_a", "model_b"))
    time = when(fields, "tstamp" if fields.values.get("tstamp") is not None else "timestamp")
    name = "judge" if fields.values.get("judge") is not None else "evaluation_session_id"
    vote = None if sign is None else Vote(annotator(fields, keys, name), sign, VoteDetails(1, time=time))
    return PreferenceRow(
        record.file, record.row, fields.pair_id(keys), prompt, first, second, () if vote is None else (vote,)
    )


def _conversation(fields: Fields, name: str) -> Messages:
    """A list of messages, whose content may be a list of typed parts; images are refused."""
    value = fields.require(name)
    if not isinstance(value, list):
        raise fields.wrong_type(name, "a list of messages", value)
    plain = [_plain(fields, name, message) for message in value]
    messages = Fields(fields.record, {name: plain}, fields.path).messages(name)
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _plain(fields: Fields, name: str, message: Any) -> Any:
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = []
    for part in message["content"]:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise fields.error(f"field '{fields.path}{name}' holds a part of type {kind}; only texts can be trained on")
        parts.append(part["text"])
    return {**message, "content": "".join(parts)}


def _judged(messages: Messages, turns: int | None) -> Messages:
    """The messages up to the answer to the user's last judged turn."""
    if turns is None:
        return messages
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return messages[: users[turns]] if 0 < turns < len(users) else messages
