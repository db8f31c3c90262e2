"""A merged pair as records of each layout that :mod:`nemo_rpo.data.formats` reads, and what a layout cannot hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from nemo_rpo.conversion.details import known, of_multipref
from nemo_rpo.conversion.merged import MergedPair
from nemo_rpo.data.rows import Messages, Text, Vote
from nemo_rpo.errors import DataError

Fields = dict[str, Any]
Writer = Callable[[MergedPair, Counter], Iterator[Fields]]

TIES = "ties (the layout names a winner)"
GOLD = "gold labels (the layout has no place for them)"
UNLABELLED = "pairs without a label (the layout has a row a label)"

_WORDS = {1: "a", -1: "b", 0: "tie"}
_SIDES = {1: "chosen", -1: "rejected"}
_A_B_NAMES = {"chosen_reward": "reward_a", "rejected_reward": "reward_b"}


def votes(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a pair: ``prompt``, ``response_a``, ``response_b``, ``votes``; ``gold`` and ``topic`` where known."""
    cast = [{**_named(vote), "vote": _WORDS[vote.sign], **known(vote.details, _WORDS)} for vote in pair.votes]
    gold = {} if pair.gold is None else {"gold": _WORDS[pair.gold]}
    yield {
        **_identified(pair),
        "prompt": pair.prompt,
        "response_a": pair.first,
        "response_b": pair.second,
        "votes": cast,
        **gold,
        **_of_topic(pair),
        **_a_b(pair.columns),
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
        **_of_topic(pair),
        **_a_b(pair.columns),
        **pair.given,
    }


def nemo_rl(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a label, messages throughout; a tie is two completions of rank 0."""
    for vote in _labels(pair, lost):
        better, worse = _sides(pair, vote)
        ranked = ((0, better), (0 if vote.sign == 0 else 1, worse))
        yield {
            **_identified(pair),
            "context": _as_messages(pair.prompt, "user"),
            "completions": [{"rank": rank, "completion": _as_messages(text, "assistant")} for rank, text in ranked],
            **_named(vote),
            **_said_of(pair, vote),
            **pair.given,
        }


def nemo_aligner(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a signed label; responses are strings, as NeMo-Aligner wants them."""
    for vote in _signed(pair, lost):
        chosen, rejected = (_as_string(pair, text) for text in _sides(pair, vote))
        yield {
            **_identified(pair),
            "prompt": pair.prompt,
            "chosen_response": chosen,
            "rejected_response": rejected,
            **_named(vote),
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
            **_identified(pair),
            "prompt": prompt,
            "chosen": chosen,
            "rejected": rejected,
            **_named(vote),
            **_said_of(pair, vote),
            **pair.given,
        }


def rankings(pair: MergedPair, lost: Counter) -> Iterator[Fields]:
    """A row a signed label: ``responses``, the better one first."""
    for vote in _signed(pair, lost):
        yield {
            **_identified(pair),
            "prompt": pair.prompt,
            "responses": list(_sides(pair, vote)),
            **_named(vote),
            **_said_of(pair, vote),
            **pair.given,
        }


WRITERS: dict[str, Writer] = {
    "votes": votes,
    "multipref": multipref,
    "nemo_rl": nemo_rl,
    "rankings": rankings,
    "nemo_aligner": nemo_aligner,
    "hf": hf,
}


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
    return {**pair.columns_for(vote.sign), **known(details, _SIDES), **gold, **_of_topic(pair)}


def _of_topic(pair: MergedPair) -> Fields:
    return {} if pair.topic is None else {"topic": pair.topic}


def _identified(pair: MergedPair) -> Fields:
    return {} if pair.pair_id is None else {"pair_id": pair.pair_id}


def _named(vote: Vote) -> Fields:
    return {} if vote.annotator is None else {"annotator": vote.annotator}


def _a_b(columns: dict[str, float]) -> Fields:
    return {_A_B_NAMES.get(name, name): value for name, value in columns.items()}


def _as_messages(text: Text, role: str) -> Messages:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _as_string(pair: MergedPair, text: Text) -> str:
    if isinstance(text, str):
        return text
    if len(text) == 1 and text[0]["role"] == "assistant":
        if more := sorted(text[0].keys() - {"role", "content"}):
            raise DataError(
                f"{pair.where}: layout nemo_aligner holds texts, and an answer has {', '.join(more)}; convert to hf or "
                "nemo_rl instead"
            )
        return text[0]["content"]
    raise DataError(
        f"{pair.where}: layout nemo_aligner holds one answer a side, and a side has {len(text)} messages; "
        "convert to hf or nemo_rl instead"
    )
