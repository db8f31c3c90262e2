"""A vote a row, as the tables of crowd platforms have it; and crowd-kit's pairwise tables."""

from __future__ import annotations

import math
from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.details import A_B, GOLD, OF_VOTE, at_least_0, vote_details, when
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public.answers import annotator, prompt_name, side_names, sign_of, texts
from nemo_rpo.data.rows import NOTHING_ELSE, PreferenceRow, Vote

VOTE = "vote"
# How Mechanical Turk and Toloka call the columns of a task, its answers and its control answers.
_PREFIXES = ("Input.", "Answer.", "INPUT:", "OUTPUT:")
_GOLDEN = f"GOLDEN:{VOTE}"
_PEOPLE = ("WorkerId", "ASSIGNMENT:worker_id", "workerId", "worker_id", "PROLIFIC_PID", "Participant id", "worker")
_SECONDS, _TIMES = ("WorkTimeInSeconds", "time_spent"), ("SubmitTime", "ASSIGNMENT:submitted", "timestamp")
_STATUS, _REFUSED = ("AssignmentStatus", "ASSIGNMENT:status"), ("Rejected", "REJECTED")
_LEFT_RIGHT = {"left": +1, "right": -1}
CROWD_KIT = frozenset(("worker", "left", "right", "label", GOLD, "prompt", "question", "text", *OF_VOTE))


def vote_rows(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"pair_id", "prompt", "response_a", "response_b", "vote": a | b | tie, "annotator"}``, ``gold`` and details.

    The same with the columns of Mechanical Turk (``Input.prompt``, ``Answer.vote``, ``WorkerId``, …), Toloka
    (``INPUT:prompt``, ``OUTPUT:vote``, ``GOLDEN:vote``, ``ASSIGNMENT:worker_id``), SageMaker (``workerId``) and
    Prolific (``PROLIFIC_PID``). A row without a vote is a pair that nobody labelled; so is a rejected assignment.
    """
    fields = Fields(record, _plain(record.fields))
    prompt, first, second = texts(fields)
    sides = side_names(fields.values) or ()
    sign = None if _is_refused(record.fields) else sign_of(fields, VOTE, sides)
    name = keys.annotator_key if keys.annotator_key in fields.values else _first(_PEOPLE, fields.values)
    who = annotator(fields, keys, name or keys.annotator_key)
    details = vote_details(fields, A_B)
    if math.isnan(details.seconds) and (column := _first(_SECONDS, fields.values)):
        details = details._replace(seconds=at_least_0(fields, column))
    if math.isnan(details.time) and (column := _first(_TIMES, fields.values)):
        details = details._replace(time=when(fields, column))
    votes = () if sign is None else (Vote(who, sign, NOTHING_ELSE if details == NOTHING_ELSE else details),)
    gold = sign_of(fields, GOLD if fields.values.get(GOLD) is not None else _GOLDEN, sides) or None
    of = (record.file, record.row, fields.pair_id(keys), prompt, first, second)
    return PreferenceRow(*of, votes, fields.columns(), gold)


def recognises(fields: dict[str, Any]) -> bool:
    """Whether a vote, a prompt and two responses are among the fields, under a platform's or the plain names."""
    if VOTE not in fields and not any(f"{prefix}{VOTE}" in fields for prefix in _PREFIXES) and _GOLDEN not in fields:
        # An empty value of a CSV file is absent: a file to be labelled is told by its other columns.
        return {"response_a", "response_b", "pair_id"} <= fields.keys() and "votes" not in fields
    plain = _plain(fields)
    return prompt_name(plain) is not None and side_names(plain) is not None


def reads(fields: dict[str, Any]) -> frozenset[str]:
    """The fields of this record that mean something."""
    plain = _plain(fields)
    used = {VOTE, GOLD, _GOLDEN, RowFormat.annotator_key, *OF_VOTE, prompt_name(plain), *(side_names(plain) or ())}
    used |= {_first(names, plain) for names in (_PEOPLE, _SECONDS, _TIMES, _STATUS)}
    return frozenset(name for name in fields if name in used or _unprefixed(name) in used)


def ignored(fields: dict[str, Any]) -> list[str]:
    """Assignments that their requester rejected."""
    return ["assignments that were rejected"] if _is_refused(fields) else []


def crowd_kit(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"worker", "left", "right", "label"}``, the label being the better item (or left, right, tie); ``prompt`` (or
    question, text), ``gold`` and details may stand beside them, of which ``shown_first`` is left or right.
    """
    fields = Fields(record)
    name = prompt_name(fields.values)
    first, second = fields.conversation("left"), fields.conversation("right")
    sides = tuple(side for side in (first, second) if isinstance(side, str))
    prompt = fields.conversation(name) if name else ""
    votes = ()
    if (sign := _label(fields, "label", sides)) is not None:
        votes = (Vote(annotator(fields, keys, "worker"), sign, vote_details(fields, _LEFT_RIGHT)),)
    gold = _label(fields, GOLD, sides) or None
    return PreferenceRow(record.file, record.row, fields.pair_id(keys), prompt, first, second, votes, {}, gold)


def _label(fields: Fields, name: str, sides: tuple[str, ...]) -> int | None:
    """The answer; items may be numbers, and two that are the same say nothing."""
    value = fields.values.get(name)
    if value is not None and len(sides) == 2 and sides[0] != sides[1] and str(value) in sides:
        return 1 if str(value) == sides[0] else -1
    return sign_of(fields, name)


def _plain(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without the platform's prefixes; a plain name stands before a prefixed one."""
    if not any(name.startswith(_PREFIXES) for name in fields):
        return fields
    return {_unprefixed(name): value for name, value in fields.items()} | {
        name: value for name, value in fields.items() if not name.startswith(_PREFIXES)
    }


def _unprefixed(name: str) -> str:
    return next((name.removeprefix(prefix) for prefix in _PREFIXES if name.startswith(prefix)), name)


def _first(names: tuple[str, ...], fields: dict[str, Any]) -> str | None:
    return next((name for name in names if name in fields), None)


def _is_refused(fields: dict[str, Any]) -> bool:
    return any(fields.get(name) in _REFUSED for name in _STATUS)
