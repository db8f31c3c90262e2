"""Label Studio's JSON export: a task with its annotations."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.details import at_least_0, when
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public.answers import sign_of, texts
from nemo_rpo.data.rows import PreferenceRow, Vote, VoteDetails

READ = frozenset(("data", "annotations"))
OF_ANNOTATION = frozenset(("completed_by", "result", "was_cancelled", "ground_truth", "lead_time", "created_at"))
UNKNOWN = "unknown"  # an order shown that nobody recorded
_RENAMED = ("prompt", "response_a", "response_b", "topic")  # by --columns prompt=data.question, say
_CONTROLS = ("strength", "confidence", "shown_first")  # what else an annotation may answer, by its from_name


def task(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"data": {prompt, answer1, answer2}, "annotations": [{"completed_by", "result": [{"type": "pairwise",
    "value": {"selected": "left"|"right"}}], "lead_time", …}]}``; a tie is a result of type ``choices``.

    The left response is shown first, unless a result called ``shown_first`` says otherwise. An annotation with
    ``ground_truth`` is the gold label and no vote. Results of type ``number`` or ``rating`` called ``strength`` or
    ``confidence`` are kept; cancelled annotations and those without an answer count for nothing.
    """
    fields = Fields(record)
    values = fields.require("data")
    if not isinstance(values, dict):
        raise fields.wrong_type("data", "an object", values)
    renamed = {name: record.fields[name] for name in _RENAMED if name in record.fields}
    data = Fields(record, {**values, **renamed}, "data.")
    prompt, first, second = texts(data)
    votes, gold = [], None
    for annotation in _annotations(fields):
        sign, details = _said(annotation)
        if sign is None:
            continue
        if annotation.flag("ground_truth"):
            if sign and gold == -sign:
                raise annotation.error("two annotations with ground_truth contradict one another", "gold_conflict")
            gold = sign or gold
        else:
            votes.append(Vote(_who(annotation, keys), sign, details))
    return PreferenceRow(
        record.file,
        record.row,
        data.pair_id(keys) if keys.pair_id_key in values else fields.pair_id(keys),
        prompt,
        first,
        second,
        tuple(votes),
        gold=gold,
        topic=data.identity("topic", required=False),
    )


def ignored(fields: dict[str, Any]) -> Iterator[str]:
    """Annotations that were cancelled, or hold no answer; machine predictions."""
    for annotation in fields.get("annotations") or ():
        if annotation.get("was_cancelled"):
            yield "annotations[] that were cancelled"
        elif not annotation.get("result"):
            yield "annotations[] without an answer"


def _annotations(fields: Fields) -> Iterator[Fields]:
    for annotation in fields.objects("annotations"):
        if not annotation.flag("was_cancelled") and annotation.values.get("result"):
            yield annotation


def _said(annotation: Fields) -> tuple[int | None, VoteDetails]:
    sign, known, shown = None, {}, 1
    for result in annotation.objects("result"):
        name, kind, value = (result.values.get(key) for key in ("from_name", "type", "value"))
        if not isinstance(value, dict):
            raise result.wrong_type("value", "an object", value)
        inner = Fields(result.record, value, f"{result.path}value.")
        if name in _CONTROLS and name != "shown_first":
            known[name] = inner.number("number" if "number" in value else "rating")
            if known[name] < 0 and name == "strength":
                raise inner.error("field 'strength' must be 0 or more")
        elif kind == "pairwise":
            sign = sign_of(inner, "selected")
        elif kind == "choices":
            choices = value.get("choices")
            choices = choices if isinstance(choices, list) else [choices]
            chosen = Fields(inner.record, {"choices": choices[0] if len(choices) == 1 else choices}, inner.path)
            if name == "shown_first":
                shown = 0 if choices == [UNKNOWN] else sign_of(chosen, "choices") or 0
            else:
                sign = sign_of(chosen, "choices")
    details = VoteDetails(
        shown,
        known.get("strength", math.nan),
        known.get("confidence", math.nan),
        at_least_0(annotation, "lead_time"),
        when(annotation, "created_at"),
    )
    return sign, details


def _who(annotation: Fields, keys: RowFormat) -> str | None:
    if keys.annotator_required:
        return annotation.annotator(keys)
    value = annotation.values.get("completed_by")
    if isinstance(value, dict):
        person = Fields(annotation.record, value, f"{annotation.path}completed_by.")
        return person.identity("id", required=False) or person.identity("email", required=True)
    return annotation.identity("completed_by", required=False)
