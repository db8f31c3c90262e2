"""Layouts with several labels a row: our own ``votes`` and MultiPref's."""

from __future__ import annotations

from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import PreferenceRow, Vote

_SIGNS = {"a": +1, "b": -1, "tie": 0}
ANNOTATIONS = ("normal_worker_annotations", "expert_worker_annotations")


def votes(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"pair_id", "prompt", "response_a", "response_b", "votes": [{"annotator": "w1", "vote": "a"|"b"|"tie"}, …]}``.

    ``gold``, ``a`` or ``b``, may stand beside them; a gold ``tie`` says as little about either response as none.
    """
    fields = Fields(record)
    cast = tuple(Vote(vote.annotator(keys), _vote(vote)) for vote in fields.objects("votes"))
    gold = _sign(fields, "gold") if fields.values.get("gold") not in (None, "") else 0
    return PreferenceRow(
        record.file,
        record.row,
        fields.pair_id(keys),
        fields.conversation("prompt"),
        fields.conversation("response_a"),
        fields.conversation("response_b"),
        cast,
        fields.columns(),
        gold or None,
    )


def multipref(record: Record, keys: RowFormat) -> PreferenceRow:
    """MultiPref (Miranda et al. 2024): ``text``, ``completion_a``, ``completion_b`` and two lists of annotations.

    Each annotation has an ``evaluator`` (null where unknown) and an ``overall_pref``: ``A-is-clearly-better``,
    ``A-is-slightly-better``, ``Tie``, …. The strength and ``overall_confidence`` of a label are not used: one annotator
    is one reliability.
    """
    fields = Fields(record)
    cast = []
    for name in ANNOTATIONS:
        if fields.values.get(name) is not None:
            cast += [Vote(_evaluator(label, keys), _overall(label)) for label in fields.objects(name)]
    return PreferenceRow(
        record.file,
        record.row,
        fields.pair_id(keys, fallback="comparison_id"),
        fields.conversation("text" if "text" in fields.values else "prompt"),
        fields.conversation("completion_a"),
        fields.conversation("completion_b"),
        tuple(cast),
        fields.columns(),
    )


def without_votes(fields: dict[str, Any], dropped: frozenset[int]) -> dict[str, Any]:
    """The fields of a record of either layout without some of its votes, counted from 0 in the order they are read."""
    kept, start = dict(fields), 0
    for name in ("votes", *ANNOTATIONS):
        if kept.get(name) is not None:
            numbered = enumerate(kept[name], start)
            start += len(kept[name])
            kept[name] = [vote for i, vote in numbered if i not in dropped]
    return kept


def _sign(fields: Fields, name: str) -> int:
    value = fields.text(name)
    if value not in _SIGNS:
        raise fields.wrong_type(name, "'a', 'b' or 'tie'", value)
    return _SIGNS[value]


def _vote(vote: Fields) -> int:
    tie = vote.flag("tie")
    if not tie or vote.values.get("vote") is not None:
        sign = _sign(vote, "vote")
        if tie and sign:
            raise vote.error(f"field '{vote.path}tie' says a tie, and 'vote' says {vote.values['vote']}")
        return sign
    return 0


def _overall(label: Fields) -> int:
    value = label.text("overall_pref")
    side = value.split("-", 1)[0].lower()
    if side not in _SIGNS:
        raise label.wrong_type("overall_pref", "'A-is-…-better', 'B-is-…-better' or 'Tie'", value)
    return _SIGNS[side]


def _evaluator(label: Fields, keys: RowFormat) -> str | None:
    if keys.annotator_required:
        return label.annotator(keys)
    if "evaluator" not in label.values:  # a null is somebody unnamed; a field that is not there, another layout
        label.require("evaluator")
    return label.identity("evaluator", required=False)
