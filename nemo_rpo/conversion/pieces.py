"""What the records of several layouts have in common, and what a layout cannot hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from nemo_rpo.conversion.merged import MergedPair
from nemo_rpo.data.rows import Text, Vote
from nemo_rpo.errors import DataError

Fields = dict[str, Any]
Writer = Callable[[MergedPair, Counter], Iterator[Fields]]

TIES = "ties (the layout names a winner)"
GOLD = "gold labels (the layout has no place for them)"
UNLABELLED = "pairs without a label (the layout has a row a label)"

WORDS = {1: "a", -1: "b", 0: "tie"}
UP_DOWN = {1: "up", -1: "down", 0: "tie"}  # of completions judged alone
_A_B_NAMES = {"chosen_reward": "reward_a", "rejected_reward": "reward_b"}


def identified(pair: MergedPair) -> Fields:
    """``pair_id``, where the pair has one."""
    return {} if pair.pair_id is None else {"pair_id": pair.pair_id}


def named(vote: Vote) -> Fields:
    """``annotator``, where the vote has one."""
    return {} if vote.annotator is None else {"annotator": vote.annotator}


def of_topic(pair: MergedPair) -> Fields:
    """``topic``, where it is known."""
    return {} if pair.topic is None else {"topic": pair.topic}


def gold_a_b(pair: MergedPair) -> Fields:
    """``gold`` as a or b, where it is known."""
    return {} if pair.gold is None else {"gold": WORDS[pair.gold]}


def columns_a_b(columns: dict[str, float]) -> Fields:
    """Side columns of a row whose responses are a and b."""
    return {_A_B_NAMES.get(name, name): value for name, value in columns.items()}


def no_place(name: str) -> str:
    """How a value that a layout cannot hold is counted."""
    return f"values of '{name}' (the layout has no place for them)"


def only_text(pair: MergedPair, layout: str, text: Text) -> str:
    """A text, or the only message of the assistant's; :class:`DataError` where it is more than that."""
    if isinstance(text, str):
        return text
    if len(text) == 1 and text[0]["role"] == "assistant":
        if more := sorted(text[0].keys() - {"role", "content"}):
            raise DataError(
                f"{pair.where}: layout {layout} holds texts, and an answer has {', '.join(more)}; convert to hf or "
                "nemo_rl instead"
            )
        return text[0]["content"]
    raise DataError(
        f"{pair.where}: layout {layout} holds one answer a side, and a side has {len(text)} messages; "
        "convert to hf or nemo_rl instead"
    )
