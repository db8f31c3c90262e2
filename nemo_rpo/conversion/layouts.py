"""A merged pair as records of each layout that :mod:`nemo_rpo.data.formats` reads, and what a layout cannot hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from nemo_rpo.conversion.details import known, of_multipref
from nemo_rpo.conversion.merged import MergedPair
from nemo_rpo.conversion.pieces import (
    GOLD,
    TIES,
    UNLABELLED,
    UP_DOWN,
    WORDS,
    Fields,
    Writer,
    columns_a_b,
    gold_a_b,
    identified,
    named,
    of_topic,
    only_text,
)
from nemo_rpo.conversion.tools import argilla, crowd_kit, label_studio, vote_rows
from nemo_rpo.data.rows import Messages, Text, Vote
from nemo_rpo.errors import DataError

_SIDES = {1: "chosen", -1: "rejected"}


def votes(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a pair: ``prompt``, ``response_a``, ``response_b``, ``votes``; ``gold`` and ``topic`` where known."""
    cast = [{**named(vote), "vote": WORDS[vote.sign], **known(vote.details, WORDS)} for vote in pair.votes]
    yield {
        **identified(pair),
        "prompt": pair.prompt,
        "response_a": pair.first,
        "response_b": pair.second,
        "votes": cast,
        **gold_a_b(pair),
        **of_topic(pair),
        **columns_a_b(pair.columns),
        **pair.given,
    }


def multipref(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a pair, all labels among the normal workers'; the evaluator of a label without an annotator is null."""
    lost[GOLD] += pair.gold is not None
    labels = [{"evaluator": vote.annotator, **of_multipref(vote, lost)} for vote in pair.votes]
    yield {
        **({} if pair.pair_id is None else {"comparison_id": pair.pair_id}),
        "text": pair.prompt,
        "completion_a": pair.first,
        "completion_b": pair.second,
        "normal_worker_annotations": labels,
        "expert_worker_annotations": [],
        **of_topic(pair),
        **columns_a_b(pair.columns),
        **pair.given,
    }


def nemo_rl(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a label, messages throughout; a tie is two completions of rank 0."""
    for vote in _labels(pair, lost):
        better, worse = _sides(pair, vote)
        ranked = ((0, better), (0 if vote.sign == 0 else 1, worse))
        yield {
            **identified(pair),
            "context": _as_messages(pair.prompt, "user"),
            "completions": [{"rank": rank, "completion": _as_messages(text, "assistant")} for rank, text in ranked],
            **named(vote),
            **_said_of(pair, vote),
            **pair.given,
        }


def nemo_aligner(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a signed label; responses are strings, as NeMo-Aligner wants them."""
    for vote in _signed(pair, lost):
        chosen, rejected = (only_text(pair, "nemo_aligner", text) for text in _sides(pair, vote))
        yield {
            **identified(pair),
            "prompt": pair.prompt,
            "chosen_response": chosen,
            "rejected_response": rejected,
            **named(vote),
            **_said_of(pair, vote),
            **pair.given,
        }


def hf(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a signed label with its prompt spelt out; all strings, or all messages as TRL asks."""
    conversational = not all(isinstance(text, str) for text in (pair.prompt, pair.first, pair.second))
    for vote in _signed(pair, lost):
        prompt, (chosen, rejected) = pair.prompt, _sides(pair, vote)
        if conversational:
            prompt = _as_messages(prompt, "user")
            chosen, rejected = (_as_messages(text, "assistant") for text in (chosen, rejected))
        yield {
            **identified(pair),
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            **named(vote),
            **_said_of(pair, vote),
            **pair.given,
        }


def rankings(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a signed label: ``responses``, the better one first."""
    for vote in _signed(pair, lost):
        yield {
            **identified(pair),
            "prompt": pair.prompt,
            "responses": list(_sides(pair, vote)),
            **named(vote),
            **_said_of(pair, vote),
            **pair.given,
        }


def unpaired(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a signed label on a completion; of a pair two, the better completion a good one and the other a bad one."""
    for vote in _signed(pair, lost):
        good, bad = _sides(pair, vote)
        judged = ((good, True), (bad, False)) if not pair.alone else ((pair.first, vote.sign > 0),)
        gold = {} if pair.gold is None else {"gold": UP_DOWN[pair.gold]}
        if not pair.alone:
            lost[GOLD] += pair.gold is not None
            lost["votes with details beside them (they speak of two responses)"] += bool(known(vote.details, _SIDES))
            lost["side columns (they speak of two responses)"] += bool(pair.columns)
        for completion, label in judged:
            yield {
                **(identified(pair) if pair.alone else {}),
                "prompt": pair.prompt,
                "completion": completion,
                "label": label,
                **named(vote),
                **(known(vote.details, {}) | gold if pair.alone else {}),
                **of_topic(pair),
                **pair.given,
            }


def unpaired_votes(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a completion judged alone, with all its votes.

    Raises:
        DataError: a pair: whoever prefers one of two has not said that either is good.
    """
    if not pair.alone:
        raise DataError(
            f"{pair.where}: layout unpaired_votes holds completions judged alone, and this is a pair: convert to "
            "unpaired, which takes the better one for good and the other for bad"
        )
    cast = [{**named(vote), "vote": UP_DOWN[vote.sign], **known(vote.details, {})} for vote in pair.votes]
    gold = {} if pair.gold is None else {"gold": UP_DOWN[pair.gold]}
    yield {
        **identified(pair),
        "prompt": pair.prompt,
        "completion": pair.first,
        "votes": cast,
        **gold,
        **of_topic(pair),
        **pair.given,
    }


# The other layouts are those of data sets that were published once: they are read.
WRITERS: dict[str, Writer] = {
    "votes": votes,
    "multipref": multipref,
    "nemo_rl": nemo_rl,
    "rankings": rankings,
    "nemo_aligner": nemo_aligner,
    "hf": hf,
    "vote_rows": vote_rows,
    "label_studio": label_studio,
    "argilla": argilla,
    "crowd_kit": crowd_kit,
}
# Layouts of completions judged alone, which no layout of pairs holds.
WRITERS_OF_ALONE: dict[str, Writer] = {"unpaired": unpaired, "unpaired_votes": unpaired_votes}


def records_of(pair: MergedPair, to: str, lost: Counter) -> Iterator[Fields]:
    """The records of a pair in the layout ``to``; ``lost`` counts what that has no place for.

    Raises:
        DataError: a completion judged alone, in a layout of pairs.
    """
    if pair.alone and to not in WRITERS_OF_ALONE:
        raise DataError(
            f"{pair.where}: layout {to} holds pairs, and this is a completion judged alone: name "
            f"{' or '.join(WRITERS_OF_ALONE)} instead"
        )
    return (WRITERS | WRITERS_OF_ALONE)[to](pair, lost)


def _labels(pair: MergedPair, lost: Counter) -> list[Vote]:
    lost[UNLABELLED] += not pair.votes
    return pair.votes


def _signed(pair: MergedPair, lost: Counter) -> list[Vote]:
    signed = [vote for vote in _labels(pair, lost) if vote.sign]
    lost[TIES] += len(pair.votes) - len(signed)
    return signed


def _sides(pair: MergedPair, vote: Vote) -> tuple[Text, Text]:
    return (pair.second, pair.first) if vote.sign < 0 else (pair.first, pair.second)


def _said_of(pair: MergedPair, vote: Vote) -> Fields:
    """Side columns, topic, gold and details in a row whose ``chosen`` is what the vote prefers."""
    gold = {} if pair.gold is None else {"gold": _SIDES[pair.gold * (vote.sign or 1)]}
    details = vote.details.turned() if vote.sign < 0 else vote.details
    return {**pair.columns_for(vote.sign), **known(details, _SIDES), **gold, **of_topic(pair)}


def _as_messages(text: Text, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text
