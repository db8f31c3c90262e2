"""Argilla's records: version 2, flat (as data sets) and nested (as JSON), and version 1's columns of questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public.answers import not_an_answer, prompt_name, side_names, sign_of, texts
from nemo_rpo.data.rows import PreferenceRow, Vote

USERS, STATUS, RESPONSES = ".responses.users", ".responses.status", ".responses"
SUBMITTED = "submitted"
PREFERENCE = "preference"
_QUESTIONS = (PREFERENCE, "label", "vote", "choice", "ranking")  # looked for first, in this order


def record_of(record: Record, keys: RowFormat) -> PreferenceRow:
    """A record with its fields ``prompt`` and two responses, and the answers of a label or ranking question.

    An answer is the name of a response (or a, b, tie, …), or a ranking ``[{"rank": 1, "value": "response_a"}, …]``.
    Answers that are drafts or discarded count for nothing.
    """
    fields = Fields(record)
    shown = fields
    if isinstance(record.fields.get("fields"), dict):
        shown = Fields(record, record.fields["fields"], "fields.")
    prompt, first, second = texts(shown)
    sides = side_names(shown.values) or ()
    question = _question(record.fields)
    if question is None:
        raise fields.error("no question has answers with the users who gave them (….responses.users, or user_id)")
    _check(fields, question)
    votes = []
    for i, (user, value, status) in enumerate(_answers(record.fields, question)):
        if status in (None, SUBMITTED) and value is not None:
            answer = Fields(record, {"value": value, "user": user}, f"{question}[{i}].")
            votes.append(Vote(answer.identity("user", required=keys.annotator_required), _sign(answer, sides)))
    found = fields.pair_id(keys, fallback="id")
    return PreferenceRow(record.file, record.row, found, prompt, first, second, tuple(votes))


def recognises(fields: dict[str, Any]) -> bool:
    """Whether a question with its answerers is among the fields."""
    return _question(fields) is not None


def reads(fields: dict[str, Any]) -> Iterator[str]:
    """The fields of this record that mean something."""
    question = _question(fields)
    yield from ("id", "status", "fields", "responses") if isinstance(fields.get("fields"), dict) else ("id", "status")
    yield from (f"{question}{end}" for end in ("", RESPONSES, USERS, STATUS))
    yield from (prompt_name(fields) or "", *(side_names(fields) or ()))


def ignored(fields: dict[str, Any]) -> Iterator[str]:
    """Answers that were not submitted."""
    for _, _, status in _answers(fields, _question(fields)):
        if status not in (None, SUBMITTED):
            yield f"answers with status {status}"


def _questions(fields: dict[str, Any]) -> Iterator[str]:
    if isinstance(fields.get("fields"), dict) and isinstance(fields.get("responses"), dict):
        yield from fields["responses"]
    for name, value in fields.items():
        if name.endswith(USERS):
            yield name.removesuffix(USERS)
            continue
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, dict) and {"user_id", "value"} <= first.keys():  # a table holds one object of lists
            yield from [name] if first is not value or isinstance(value["value"], list) else []


def _question(fields: dict[str, Any]) -> str | None:
    found = list(_questions(fields))
    return next((name for name in _QUESTIONS if name in found), found[0] if found else None)


def _check(fields: Fields, question: str) -> None:
    """Raises :class:`RowError` where what should be a list is none."""
    values = fields.values
    for end in (RESPONSES, USERS, STATUS):
        if values.get(f"{question}{end}") is not None and not isinstance(values[f"{question}{end}"], list):
            raise fields.wrong_type(f"{question}{end}", "a list", values[f"{question}{end}"])
    nested = values.get("responses")
    answers = nested.get(question) if isinstance(nested, dict) else values.get(question)
    for name, answer in answers.items() if isinstance(answers, dict) else ():
        if answer is not None and not isinstance(answer, list):
            raise fields.wrong_type(f"{question}.{name}", "a list", answer)
    listed = answers if isinstance(answers, list) else []
    if (answers is not None and not isinstance(answers, dict | list)) or not all(isinstance(a, dict) for a in listed):
        raise fields.wrong_type(question, "a list of answers", answers)
    columns = [answers.get(name) for name in ("user_id", "value", "status")] if isinstance(answers, dict) else []
    columns = columns or [values.get(f"{question}{end}") for end in (USERS, RESPONSES, STATUS)]
    if len({len(column) for column in columns if column}) > 1:
        raise fields.error(f"field '{question}' has users, answers and statuses of different numbers")


def _answers(fields: dict[str, Any], question: str | None) -> list[tuple[Any, Any, Any]]:
    """User, value and status of each."""
    if question is None:
        return []
    if f"{question}{USERS}" in fields:
        users, values = fields[f"{question}{USERS}"] or [], fields.get(f"{question}{RESPONSES}") or []
        statuses = fields.get(f"{question}{STATUS}") or [None] * len(users)
        return list(zip(users, values, statuses, strict=False))
    nested = fields.get("responses")
    answers = nested.get(question) if isinstance(nested, dict) else fields.get(question)
    if isinstance(answers, dict):  # a table's way to hold a list of objects
        users, values = answers.get("user_id") or [], answers.get("value") or []
        return list(zip(users, values, answers.get("status") or [None] * len(users), strict=False))
    return [(answer.get("user_id"), answer.get("value"), answer.get("status")) for answer in answers or []]


def _sign(answer: Fields, sides: tuple[str, ...]) -> int:
    value = answer.values["value"]
    if isinstance(value, dict) and isinstance(value.get("rank"), list) and isinstance(value.get("value"), list):
        value = [{"rank": r, "value": v} for r, v in zip(value["rank"], value["value"], strict=False)]
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        ranks = {str(item.get("value")): item.get("rank") for item in value}
        first, second = (ranks.get(side) for side in sides)
        if isinstance(first, int | float) and isinstance(second, int | float):
            return (second > first) - (first > second)  # rank 1 is the best
        raise not_an_answer(answer, "value", value)
    if isinstance(value, list) and len(value) == 1:  # a question of several labels, of which one was given
        answer = Fields(answer.record, {"value": value[0]}, answer.path)
    sign = sign_of(answer, "value", sides)
    if sign is None:
        raise not_an_answer(answer, "value", value)
    return sign
