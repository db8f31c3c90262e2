"""Prodigy's ``choice`` tasks, one answer a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.details import when
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public.answers import annotator, prompt_name
from nemo_rpo.data.layouts.public.best import best_of
from nemo_rpo.data.rows import PreferenceRow, Vote, VoteDetails

READ = frozenset(("options", "accept", "answer", "_session_id", "_annotator_id", "_timestamp"))


def choice(record: Record, keys: RowFormat) -> list[PreferenceRow]:
    """``{"prompt" or "text", "options": [{"id", "text"}, …], "accept": [id], "answer": "accept"}``.

    Of two options a pair, the upper one shown first; of more, the accepted one against each of the others. Answers
    ``reject`` and ``ignore``, and those that accept none or all, are no labels.
    """
    fields = Fields(record)
    name = prompt_name(fields.values)
    prompt = fields.conversation(name or "prompt")
    options = fields.objects("options")
    ids = [option.identity("id", required=True) for option in options]
    said = [option.text("text") for option in options]
    if len(options) < 2:
        raise fields.error(f"field 'options' holds {len(options)} options; a preference has 2 or more")
    accepted = _accepted(fields.values)
    if len(accepted) == 1 and str(accepted[0]) not in ids:
        raise fields.wrong_type("accept", f"the id of an option ({', '.join(map(str, ids))})", accepted[0])
    who = annotator(fields, keys, "_annotator_id" if fields.values.get("_annotator_id") else "_session_id")
    known = VoteDetails(1 if len(options) == 2 else 0, time=when(fields, "_timestamp"))
    best = ids.index(str(accepted[0])) if len(accepted) == 1 else None
    return best_of(fields, keys, prompt, said, best, lambda sign: Vote(who, sign, known))


def ignored(fields: dict[str, Any]) -> Iterator[str]:
    """Answers that are no labels."""
    if fields.get("answer") in ("reject", "ignore"):
        yield f"answers that {fields['answer']}"
    elif len(_accepted(fields)) != 1:
        yield "answers that accept none of the options, or several"


def _accepted(values: dict[str, Any]) -> list[Any]:
    accepted = values.get("accept") if values.get("answer", "accept") == "accept" else None
    return accepted if isinstance(accepted, list) else []
