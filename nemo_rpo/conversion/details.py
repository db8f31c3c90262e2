"""What is known of a vote, in the fields of each layout."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Mapping
from typing import Any

from nemo_rpo.conversion.pieces import no_place
from nemo_rpo.data.layouts.voted import CONFIDENCES, STRENGTHS
from nemo_rpo.data.rows import NOTHING_ELSE, Vote, VoteDetails

_WORD_OF_STRENGTH = {strength: word for word, strength in STRENGTHS.items()}
_WORD_OF_CONFIDENCE = {confidence: word for word, confidence in CONFIDENCES.items()}
# Where nobody said how strongly: what readers of MultiPref count as one full vote.
_STRENGTH = "clearly"


def known(details: VoteDetails, words: Mapping[int, str]) -> dict[str, Any]:
    """The details that are known, under their own names; ``words`` are what the layout calls the two responses."""
    if details is NOTHING_ELSE:
        return {}
    found = {name: value for name, value in details._asdict().items() if value is not None and value == value}
    shown = found.pop("shown_first")
    return {"shown_first": words[shown], **found} if shown else found


def of_multipref(vote: Vote, lost: Counter) -> dict[str, Any]:
    """``overall_pref`` and what else MultiPref's annotations say; counts what they cannot."""
    details = vote.details
    strength = _WORD_OF_STRENGTH.get(details.strength)
    if details.strength == details.strength and strength is None and (vote.sign or details.strength):
        lost["strengths of votes (multipref knows 1 and 2)"] += 1
    side = {1: "A", -1: "B", 0: ""}[vote.sign]
    said = {"overall_pref": f"{side}-is-{strength or _STRENGTH}-better" if side else "Tie"}
    if details.confidence in _WORD_OF_CONFIDENCE:
        said["overall_confidence"] = _WORD_OF_CONFIDENCE[details.confidence]
    elif details.confidence == details.confidence:
        lost["confidences of votes (multipref knows 0 to 3)"] += 1
    if details.seconds == details.seconds:
        said["time_spent"] = details.seconds
    if details.time == details.time:
        said["timestamp"] = timestamp(details.time)
    for name in ("shown_first", "family"):
        lost[no_place(name)] += bool(getattr(details, name))
    return said


def timestamp(time: float) -> str:
    """Date and time of UTC, to the microsecond."""
    return (datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=time)).isoformat(" ")
