"""A merged pair as label tools and platforms hold it, and what they cannot hold."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterator
from typing import Any

from nemo_rpo.conversion.details import known
from nemo_rpo.conversion.merged import MergedPair
from nemo_rpo.conversion.pieces import (
    GOLD,
    TIES,
    UNLABELLED,
    WORDS,
    Fields,
    columns_a_b,
    gold_a_b,
    identified,
    named,
    no_place,
    of_topic,
    only_text,
)
from nemo_rpo.data.layouts.public.argilla import PREFERENCE, RESPONSES, STATUS, SUBMITTED, USERS
from nemo_rpo.data.layouts.public.label_studio import UNKNOWN
from nemo_rpo.data.rows import Text, Vote, VoteDetails
from nemo_rpo.data.vote_details import UNKNOWN as UNKNOWNS

_LEFT_RIGHT = {1: "left", -1: "right", 0: "tie"}
_NUMBERS = ("strength", "confidence")


def vote_rows(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a label, ties too; a pair without one is a row without a vote."""
    for vote in pair.votes or (None,):
        said = {} if vote is None else {"vote": WORDS[vote.sign], **named(vote), **known(vote.details, WORDS)}
        texts = {"prompt": pair.prompt, "response_a": pair.first, "response_b": pair.second}
        about = {**gold_a_b(pair), **of_topic(pair), **columns_a_b(pair.columns), **pair.given}
        yield {**identified(pair), **texts, **said, **{k: v for k, v in about.items() if k not in said}}


def label_studio(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A task a pair, with an annotation a label, and one of ``ground_truth`` for gold."""
    annotations = [_annotation(vote, lost) for vote in pair.votes]
    if pair.gold is not None:
        annotations.append({"result": [_pairwise(pair.gold)], "ground_truth": True})
    _count_columns(pair, lost)
    yield {**task(pair.pair_id, pair.prompt, pair.first, pair.second, of_topic(pair)), "annotations": annotations}


def task(pair_id: str | None, prompt: Text, first: Text, second: Text, more: Fields) -> Fields:
    """Label Studio's task without annotations; ``more`` stands beside the texts."""
    identity = {} if pair_id is None else {"pair_id": pair_id}
    return {"data": {**identity, "prompt": prompt, "answer1": first, "answer2": second, **more}}


def argilla(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A flat record a pair, the answers to a label question ``preference``."""
    for vote in pair.votes:
        _count_details(vote.details, VoteDetails._fields, lost)
    lost[GOLD] += pair.gold is not None
    lost[no_place("topic")] += pair.topic is not None
    _count_columns(pair, lost)
    answers = [{1: "response_a", -1: "response_b", 0: "tie"}[vote.sign] for vote in pair.votes]
    yield {
        **({} if pair.pair_id is None else {"id": pair.pair_id}),
        "prompt": pair.prompt,
        "response_a": pair.first,
        "response_b": pair.second,
        f"{PREFERENCE}{RESPONSES}": answers,
        f"{PREFERENCE}{USERS}": [vote.annotator for vote in pair.votes],
        f"{PREFERENCE}{STATUS}": [SUBMITTED] * len(answers),
    }


def crowd_kit(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a signed label: worker, left, right, and as label the better text."""
    left, right = (only_text(pair, "crowd_kit", text) for text in (pair.first, pair.second))
    items = {1: left, -1: right} if left != right else _LEFT_RIGHT
    lost[UNLABELLED] += not pair.votes
    _count_columns(pair, lost)
    lost[no_place("topic")] += pair.topic is not None
    prompt = pair.prompt if isinstance(pair.prompt, str) else "\n".join(turn["content"] for turn in pair.prompt)
    gold = {} if pair.gold is None else {"gold": items[pair.gold]}
    for vote in pair.votes:
        lost[TIES] += not vote.sign
        if vote.sign:
            row = {**identified(pair), "worker": vote.annotator, "left": left, "right": right}
            yield {**row, "label": items[vote.sign], "prompt": prompt, **gold, **known(vote.details, _LEFT_RIGHT)}


def _annotation(vote: Vote, lost: Counter) -> Fields:
    details = vote.details
    _count_details(details, ("family",), lost)
    results = [_pairwise(vote.sign)]
    if details.shown_first != 1:  # the left one is, unless something else is said
        shown = WORDS[-1] if details.shown_first else UNKNOWN
        results.append({"from_name": "shown_first", "type": "choices", "value": {"choices": [shown]}})
    for name in _NUMBERS:
        if (value := getattr(details, name)) == value:
            results.append({"from_name": name, "type": "number", "value": {"number": value}})
    said: dict[str, Any] = {"result": results, "was_cancelled": False, "ground_truth": False}
    if vote.annotator is not None:
        is_number = vote.annotator.isdecimal() and str(int(vote.annotator)) == vote.annotator
        said["completed_by"] = int(vote.annotator) if is_number else vote.annotator
    if details.seconds == details.seconds:
        said["lead_time"] = details.seconds
    if details.time == details.time:
        when = datetime.datetime(1970, 1, 1) + datetime.timedelta(seconds=details.time)
        said["created_at"] = f"{when.isoformat()}Z"
    return said


def _pairwise(sign: int) -> Fields:
    name = {"from_name": "preference", "to_name": "answer1,answer2"}
    if sign == 0:
        return {**name, "type": "choices", "value": {"choices": [WORDS[0]]}}
    return {**name, "type": "pairwise", "value": {"selected": _LEFT_RIGHT[sign]}}


def _count_details(details: VoteDetails, names: tuple[str, ...], lost: Counter) -> None:
    for name in names:
        value = getattr(details, name)
        lost[no_place(name)] += value is not None and value == value and value != UNKNOWNS.get(name)


def _count_columns(pair: MergedPair, lost: Counter) -> None:
    for name in (*pair.columns, *pair.given):
        lost[no_place(name)] += 1
