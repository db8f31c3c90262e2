"""Layouts with several labels a row: our own ``votes`` and MultiPref's."""

from __future__ import annotations

import math
from typing import Any

from nemo_rpo.data.data_settings import RowFormat
from nemo_rpo.data.files.read import Record
from nemo_rpo.data.layouts.details import A_B, CONFIDENCE, PROBABILITY, at_least_0, share, vote_details, when
from nemo_rpo.data.layouts.fields import Fields
from nemo_rpo.data.rows import NOTHING_ELSE, PreferenceRow, Vote, VoteDetails, log_odds

_SIGNS = {**A_B, "tie": 0}
STRENGTHS = {"slightly": 1.0, "clearly": 2.0}
# As MultiPref asked; the number is the place in the order.
CONFIDENCES = {"random-guess": 0.0, "somewhat-confident": 1.0, "fairly-confident": 2.0, "absolutely-confident": 3.0}
P_A = "p_a"
_OF_TIE = 0.0
ANNOTATIONS = ("normal_worker_annotations", "expert_worker_annotations")


def votes(record: Record, keys: RowFormat) -> PreferenceRow:
    """``{"pair_id", "prompt", "response_a", "response_b", "votes": [{"annotator": "w1", "vote": "a"|"b"|"tie"}, …]}``.

    ``gold``, ``a`` or ``b``, may stand beside them; a gold ``tie`` says as little about either response as none. Of a
    vote may be said what :mod:`nemo_rpo.data.layouts.details` reads, ``shown_first`` being ``a`` or ``b``.

    A soft verdict has ``p_a``, the probability that ``a`` is better, instead of ``vote`` or beside it: it is a vote for
    the likelier side, or a tie at ½, whose confidence is :func:`nemo_rpo.data.rows.log_odds` of its probability.
    """
    fields = Fields(record)
    cast = tuple(_cast(vote, keys) for vote in fields.objects("votes"))
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

    Each annotation has an ``evaluator`` (null where unknown) and an ``overall_pref``: ``A-is-clearly-better`` (strength
    2), ``A-is-slightly-better`` (1), ``Tie`` (0), …; and may have ``overall_confidence``, from ``random-guess`` (0) to
    ``absolutely-confident`` (3), ``time_spent`` in seconds, ``timestamp``.
    """
    fields = Fields(record)
    cast = []
    for name in ANNOTATIONS:
        if fields.values.get(name) is not None:
            cast += [_annotation(label, keys) for label in fields.objects(name)]
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


def _cast(vote: Fields, keys: RowFormat) -> Vote:
    details, p = vote_details(vote, A_B), share(vote, P_A)
    if p != p:
        return Vote(vote.annotator(keys), _vote(vote), details)
    if not math.isnan(details.confidence):
        raise vote.error(
            f"fields '{P_A}' and '{CONFIDENCE}' or '{PROBABILITY}' both say how sure the vote is: drop one"
        )
    likelier = (p > 0.5) - (p < 0.5)
    sign = likelier if vote.values.get("vote") is None and not vote.flag("tie") else _vote(vote)
    if sign * likelier < 0:
        raise vote.error(f"field '{vote.path}{P_A}' is {p:g}, and 'vote' says {vote.values['vote']}")
    return Vote(vote.annotator(keys), sign, details._replace(confidence=log_odds(max(p, 1 - p))) if sign else details)


def _vote(vote: Fields) -> int:
    tie = vote.flag("tie")
    if not tie or vote.values.get("vote") is not None:
        sign = _sign(vote, "vote")
        if tie and sign:
            raise vote.error(f"field '{vote.path}tie' says a tie, and 'vote' says {vote.values['vote']}")
        return sign
    return 0


def _annotation(label: Fields, keys: RowFormat) -> Vote:
    value = label.text("overall_pref")
    side, *rest = value.lower().split("-")
    if side not in _SIGNS:
        raise label.wrong_type("overall_pref", "'A-is-…-better', 'B-is-…-better' or 'Tie'", value)
    said = next((STRENGTHS[word] for word in rest if word in STRENGTHS), math.nan)
    details = VoteDetails(
        strength=said if _SIGNS[side] else _OF_TIE,
        confidence=_confidence(label),
        seconds=at_least_0(label, "time_spent"),
        time=when(label, "timestamp"),
    )
    return Vote(_evaluator(label, keys), _SIGNS[side], NOTHING_ELSE if details == NOTHING_ELSE else details)


def _confidence(label: Fields) -> float:
    said = label.values.get("overall_confidence")
    if said is None or said == "":
        return math.nan
    if said not in CONFIDENCES:
        raise label.wrong_type("overall_confidence", f"one of {', '.join(CONFIDENCES)}", said)
    return CONFIDENCES[said]


def _evaluator(label: Fields, keys: RowFormat) -> str | None:
    if keys.annotator_required:
        return label.annotator(keys)
    if "evaluator" not in label.values:  # a null is somebody unnamed; a field that is not there, another layout
        label.require("evaluator")
    return label.identity("evaluator", required=False)
