"""Battles: which of two models answered a prompt better. Of the answers themselves nothing is kept.

A battle is a pair whose two responses are the names of the models, so that votes, judges and everything else that a
pair has are the same here.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.details import when
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.layouts.public import arena
from nemo_rpo.data.layouts.public.answers import annotator, side_names, sign_of
from nemo_rpo.data.rows import PreferenceRow, Text, Vote, VoteDetails
from nemo_rpo.errors import RowError

READ = arena.READ | {"prompt", RowFormat.annotator_key}
_MARKS = frozenset(("prompt", "model_a", "model_b", "winner"))
_BOTH_BAD = frozenset(("bothbad", "tiebothbad"))
_SHOWN = 8  # names that a message lists


def recognises(fields: dict[str, Any]) -> bool:
    """A prompt, two models and a winner, and not the answers: those are a pair to align a policy on."""
    return fields.keys() >= _MARKS and side_names(fields) is None


def battle(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"prompt", "model_a", "model_b", "winner", "annotator" or "judge" or "evaluation_session_id"}``, model a on the
    left. A row of the arenas without ``prompt`` has it at the head of ``conversation_a`` and ``conversation_b``.

    ``winner`` is a or b (``model_a``, ``model_b``, or a name), ``tie``, or ``both_bad``: a tie too, with 1 in the
    column of that name. Each row is a battle of its own; rows with one ``pair_id`` are several judges' verdicts on one
    battle.

    Raises:
        RowError: a model against itself, or a field that is missing or of another kind.
    """
    fields = Fields(record)
    names = [str(fields.identity(name, required=True)) for name in ("model_a", "model_b")]
    if names[0] == names[1]:
        raise fields.error(f"'{names[0]}' is compared with itself: a battle has two models")
    prompt = _prompt(fields, record, keys)
    first, second = (name if isinstance(prompt, str) else _said(name) for name in names)
    sign = sign_of(fields, "winner", tuple(names))
    time = when(fields, "tstamp" if fields.values.get("tstamp") is not None else "timestamp")
    votes = () if sign is None else (Vote(_judge(fields, keys), sign, VoteDetails(1, time=time)),)
    bad = "".join(filter(str.isalpha, str(fields.values.get("winner")).lower())) in _BOTH_BAD
    pair_id = fields.pair_id(keys) or f"{record.file}:{record.row}"
    columns = {"both_bad": float(bad)}
    return PreferenceRow(record.file, record.row, pair_id, prompt, first, second, votes, columns)


def between(row: PreferenceRow, players: tuple[str, ...]) -> PreferenceRow:
    """The row with the places of its two responses, which are names, in ``players``.

    Raises:
        RowError: a name that is not among them, or something else than a battle.
    """
    if row.alone or row.further:
        raise RowError(row.file, row.row, "model.data.players is of battles, and this is no pair", "unknown_player")
    columns = {"both_bad": 0.0, **row.columns}
    for side, text in (("chosen", row.chosen), ("rejected", row.rejected)):
        name = text if isinstance(text, str) else text[-1]["content"]
        place = _places(players).get(name)
        if place is None:
            known = ", ".join(players[:_SHOWN]) + (", …" if len(players) > _SHOWN else "")
            shown = name if len(name) <= 60 else name[:57] + "..."
            problem = f"'{shown}' is not in model.data.players ({known}): add the model, or leave its battles out"
            raise RowError(row.file, row.row, problem, "unknown_player")
        columns[f"{side}_player"] = float(place)
    return replace(row, columns=columns)


@functools.lru_cache(maxsize=8)
def _places(players: tuple[str, ...]) -> dict[str, int]:
    return {name: place for place, name in enumerate(players)}


def _prompt(fields: Fields, record: Record, keys: RowFormat) -> Text:
    if fields.values.get("prompt") is None and fields.values.get("conversation_a") is not None:
        return arena.battle(record, keys).prompt
    return fields.conversation("prompt")


def _said(name: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": name}]


def _judge(fields: Fields, keys: RowFormat) -> str | None:
    names = (RowFormat.annotator_key, "judge", "evaluation_session_id")
    there = (name for name in names if fields.values.get(name) is not None)
    return annotator(fields, keys, next(there, RowFormat.annotator_key))
