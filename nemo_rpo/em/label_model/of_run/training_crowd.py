"""All votes of the training data with what is known of them, and a sample of them that every rank draws alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import FlatVotes, VoteTable
from nemo_rpo.em.label_model.features import VoteColumns

# Anchored pairs are taken into the sample beside every n-th pair, up to this many: they are few and say most.
_MOST_ANCHORS = 5_000
_OF_VOTES = ("shown_first", "strength", "confidence", "seconds", "time", "lengths", "topic")


class Crowd(NamedTuple):
    """All that the training data say of votes and pairs; the same on every rank. N pairs, M votes, K annotators.

    Attributes:
        votes: of all pairs, [M]; annotators by index.
        columns: what is known of them beside.
        gold: [N], +1 chosen is better, -1 rejected is, 0 not known; None without any.
        family: int64 [K], declared family of each annotator, -1 for none; None without any.
        chosen_first: [N], ±1, whether chosen or rejected comes first in an order that does not depend on what was said
            of the pair; None where chosen does. Whether the order shown was random is asked in that order.
    """

    votes: FlatVotes
    columns: VoteColumns = VoteColumns()
    gold: Tensor | None = None
    family: Tensor | None = None
    chosen_first: Tensor | None = None

    @classmethod
    def of(cls, votes: FlatVotes, known: Mapping[str, Tensor], topics: list[str]) -> Crowd:
        """From the columns of a token cache or a host's votes, under their names there; further ones are ignored."""
        columns = {name: known[name] for name in _OF_VOTES if name in known}
        if "topic" in columns:
            columns["topic"] = columns["topic"].long()
        family = known.get("family")
        return cls(
            votes._replace(weight=known.get("weight")),
            VoteColumns(**columns, topic_names=topics),
            known.get("gold"),
            None if family is None else family.long(),
            known.get("chosen_first"),
        )


class Sample(NamedTuple):
    """Some pairs, renumbered from 0, turned to an order that does not depend on their votes.

    Attributes:
        table: their votes, with all features.
        pairs: int64 [p], their indices in the data.
        turn: float64 [p], -1 where chosen and rejected are exchanged here, else +1.
        gold: float64 [p], in the order here.
    """

    table: VoteTable
    pairs: Tensor
    turn: Tensor
    gold: Tensor


def draw_sample(whole: VoteTable, gold: Tensor, chosen_first: Tensor | None, most: int) -> Sample:
    """Every n-th pair and anchored ones, of about ``most`` votes. The same data give the same sample.

    Args:
        whole: the votes of all pairs.
        gold, chosen_first: [N], see :class:`Crowd`.
    """
    stride = max(1, -(-len(whole.pair) // most))
    taken = torch.zeros(whole.num_pairs, dtype=torch.bool)
    taken[::stride] = True
    taken[gold.nonzero().squeeze(-1)[:_MOST_ANCHORS]] = True
    pairs = taken.nonzero().squeeze(-1)
    turn = torch.ones(len(pairs)) if chosen_first is None else chosen_first[pairs].float()
    part = whole.where(taken[whole.pair])
    pair = (taken.cumsum(0) - 1)[part.pair]
    of_vote = turn[pair]
    design = part.design.clone()
    design[:, part.num_skill :] *= of_vote.unsqueeze(-1)
    table = part._replace(pair=pair, num_pairs=len(pairs), design=design, says_chosen=part.says_chosen == (of_vote > 0))
    return Sample(table, pairs, turn.double(), gold[pairs].double() * turn)
