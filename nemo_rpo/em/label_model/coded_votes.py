"""Votes as flat columns with their features. Shapes: P pairs, M signed votes, K annotators, d coefficients each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.votes import Votes
from nemo_rpo.errors import DataError

SKILL = "skill"
SLOT = "slot"
# Votes whose float64 intermediates are held at once.
_CHUNK = 1 << 18


@dataclass(frozen=True)
class VoteFeatures:
    """What is known of each vote, by name; tensors [P] (the same for all votes of a pair) or [P, V].

    Attributes:
        skill: φ, features that stay as they are when the pair is turned round: topic, stated confidence, time. They
            should be centred, so that an annotator's skill is the skill at the mean.
        leaning: ψ, features that change sign when the pair is turned round. ``slot`` is the order shown: +1 chosen was
            shown first, -1 rejected was, 0 not known. Any other (difference of lengths, …) should have a standard
            deviation of about 1.
    """

    skill: Mapping[str, Tensor] = field(default_factory=dict)
    leaning: Mapping[str, Tensor] = field(default_factory=dict)

    def names(self) -> list[str]:
        """The features' names: those of skill, then those of leaning."""
        return [*self.skill, *self.leaning]


class VoteTable(NamedTuple):
    """The signed votes of all pairs, sorted by pair.

    Attributes:
        pair, annotator: int64 [M].
        says_chosen: bool [M].
        design: float32 [M, d]; column 0 is 1, then the skill features, then the leaning features.
        weight: float32 [M], what the vote's log-likelihood counts for, everywhere (discount of a family).
        counted: float32 [M], what it counts for as evidence of its annotator, beside that (rankings).
        names: of the columns of ``design``.
        num_skill: how many of them multiply the truth.
        num_pairs, num_annotators: P and K.
    """

    pair: Tensor
    annotator: Tensor
    says_chosen: Tensor
    design: Tensor
    weight: Tensor
    counted: Tensor
    names: tuple[str, ...]
    num_skill: int
    num_pairs: int
    num_annotators: int

    def select(self, names: Sequence[str]) -> VoteTable:
        """The table with the skill and the named features only."""
        kept = [i for i, name in enumerate(self.names) if i == 0 or name in names]
        skill = sum(i < self.num_skill for i in kept)
        return self._replace(
            design=self.design[:, kept].contiguous(), names=tuple(self.names[i] for i in kept), num_skill=skill
        )

    def where(self, kept: Tensor) -> VoteTable:
        """The votes that a mask [M] keeps; pairs and annotators keep their numbers."""
        columns = (column[kept] for column in self[:6])
        return VoteTable(*columns, *self[6:])

    def sample(self, most: int) -> tuple[VoteTable, Tensor]:
        """Every n-th pair such that about ``most`` votes stay, pairs and annotators renumbered; and the pairs' numbers.

        The table itself where it is small enough.
        """
        stride = max(1, -(-len(self.pair) // most))
        kept = torch.arange(0, self.num_pairs, stride, device=self.pair.device)
        if stride == 1:
            return self, kept
        part = self.where(self.pair % stride == 0)
        present, annotator = torch.unique(part.annotator, return_inverse=True)
        pair = part.pair // stride
        return part._replace(pair=pair, annotator=annotator, num_pairs=len(kept), num_annotators=len(present)), kept

    def chunks(self) -> Iterator[VoteTable]:
        """The votes in pieces of bounded size."""
        for start in range(0, len(self.pair), _CHUNK):
            yield VoteTable(*(column[start : start + _CHUNK] for column in self[:6]), *self[6:])

    def per_annotator(self, values: Tensor) -> Tensor:
        """Sums of ``values`` [M] over the votes of each annotator, float64 [K]."""
        sums = torch.zeros(self.num_annotators, dtype=torch.float64, device=values.device)
        return sums.index_add_(0, self.annotator, values.double())

    def per_pair(self, values: Tensor) -> Tensor:
        """Sums of ``values`` [M] over the votes of each pair, float64 [P]."""
        sums = torch.zeros(self.num_pairs, dtype=torch.float64, device=values.device)
        return sums.index_add_(0, self.pair, values.double())

    def sign(self) -> Tensor:
        """+1 the vote is for chosen, -1 for rejected; float64 [M]."""
        return self.says_chosen.double() * 2 - 1


def vote_table(votes: Votes, num_annotators: int, features: VoteFeatures | None = None) -> VoteTable:
    """Flat columns of the signed votes; two votes of one annotator on one pair become one, see below.

    Somebody (a judge that was shown a pair in both orders) who says the same twice has cast one vote, whose ``slot`` is
    the mean of the two, 0; who says both has cast none.

    Raises:
        DataError: a feature whose shape is not that of the votes, that is not finite, or named twice.

    >>> votes = Votes(torch.tensor([[0, 0], [0, 0]]), torch.tensor([[1, 1], [1, -1]]))
    >>> table = vote_table(votes, 1, VoteFeatures(leaning={"slot": torch.tensor([[1.0, -1.0], [1.0, -1.0]])}))
    >>> table.pair, table.design
    (tensor([0]), tensor([[1., 0.]]))
    """
    features = features or VoteFeatures()
    names = features.names()
    for name in names:
        if names.count(name) > 1 or name == SKILL:
            raise DataError(f"the feature '{name}' is given twice")
    pair, column = (votes.sign != 0).nonzero().unbind(-1)
    sign = votes.sign[pair, column]
    rows = [torch.ones(len(pair), device=sign.device)]
    rows += [
        _column(name, values, votes, pair, column) for name, values in {**features.skill, **features.leaning}.items()
    ]
    counted = torch.ones_like(rows[0]) if votes.weight is None else votes.weight[pair].float()
    table = VoteTable(
        pair,
        votes.annotator[pair, column].long(),
        sign > 0,
        torch.stack(rows, -1),
        torch.ones_like(rows[0]),
        counted,
        (SKILL, *names),
        1 + len(features.skill),
        len(votes.sign),
        num_annotators,
    )
    return _one_vote_each(table)


def _column(name: str, values: Tensor, votes: Votes, pair: Tensor, column: Tensor) -> Tensor:
    if values.shape not in (votes.sign.shape, votes.sign.shape[:1]):
        expected = f"{list(votes.sign.shape)} or {list(votes.sign.shape[:1])}"
        raise DataError(f"the feature '{name}' has shape {list(values.shape)}; expected {expected}")
    taken = (values[pair] if values.dim() == 1 else values[pair, column]).float()
    if not taken.isfinite().all():
        raise DataError(f"the feature '{name}' has values that are not finite; give 0 where it is not known")
    return taken


def _one_vote_each(table: VoteTable) -> VoteTable:
    key = table.pair * table.num_annotators + table.annotator
    order = key.argsort(stable=True)
    kept, group, times = torch.unique_consecutive(key[order], return_inverse=True, return_counts=True)
    if len(kept) == len(key):
        return table
    table = table.where(order)

    def mean(values: Tensor) -> Tensor:
        sums = torch.zeros(len(kept), *values.shape[1:], device=values.device).index_add_(0, group, values.float())
        return sums / times.view(-1, *[1] * (values.dim() - 1))

    says = mean(table.says_chosen)
    first = times.cumsum(0) - times
    merged = table.where(first)._replace(says_chosen=says > 0.5, design=mean(table.design))
    return merged.where((says == 0) | (says == 1))
