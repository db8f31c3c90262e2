"""Layouts of completions judged alone: TRL's unpaired one, and one with all votes on a completion in a row."""

from __future__ import annotations

from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.details import GOLD, OF_VOTE, SHOWN_FIRST, vote_details
from nemo_rpo.data.layouts.every import TIE
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import ABSENT, PreferenceRow, Vote, VoteDetails

LABEL, VOTE = "label", "vote"
DETAILS = OF_VOTE - {SHOWN_FIRST}  # nothing is shown beside a completion judged alone
_SIGNS = {"true": 1, "1": 1, "1.0": 1, "up": 1, "good": 1, "false": -1, "0": -1, "0.0": -1, "down": -1, "bad": -1}


def unpaired(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"prompt", "completion", "label"}``, the label true of a good completion and false of a bad one (or up and
    down, 1 and 0); with ``annotator``, ``gold`` and what else is known of a label beside it. ``tie``: no side taken.
    """
    fields = Fields(record)
    sign = 0 if fields.flag(TIE) else _sign(fields, LABEL)
    return _row(fields, keys, (Vote(fields.annotator(keys), sign, _details(fields)),))


def unpaired_votes(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"prompt", "completion", "votes": [{"annotator": "w1", "vote": "up"|"down"|"tie"}, …]}``; ``gold``, up or
    down, may stand beside them.
    """
    fields = Fields(record)
    cast = []
    for vote in fields.objects("votes"):
        sign = 0 if vote.values.get(VOTE) == TIE else _sign(vote, VOTE)
        cast.append(Vote(vote.annotator(keys), sign, _details(vote)))
    return _row(fields, keys, tuple(cast))


def without_votes(fields: dict[str, Any], dropped: frozenset[int]) -> dict[str, Any]:
    """The fields of a record of votes without some of them, counted from 0."""
    return {**fields, "votes": [vote for i, vote in enumerate(fields["votes"]) if i not in dropped]}


def _details(fields: Fields) -> VoteDetails:
    if fields.values.get(SHOWN_FIRST) is not None:
        raise fields.error(f"field '{fields.path}{SHOWN_FIRST}' speaks of two responses, and this one was judged alone")
    return vote_details(fields, {})


def _row(fields: Fields, keys: RowFormat, votes: tuple[Vote, ...]) -> PreferenceRow:
    gold = _sign(fields, GOLD) if fields.values.get(GOLD) not in (None, "") else None
    return PreferenceRow(
        fields.record.file,
        fields.record.row,
        fields.pair_id(keys),
        fields.conversation("prompt"),
        fields.conversation("completion"),
        ABSENT,
        votes,
        gold=gold,
        alone=True,
    )


def _sign(fields: Fields, name: str) -> int:
    value = fields.require(name)
    sign = _SIGNS.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None
    if sign is None:
        raise fields.wrong_type(name, "true or false (or up and down, 1 and 0)", value)
    return sign
