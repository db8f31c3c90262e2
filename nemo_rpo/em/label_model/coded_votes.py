"""Votes as flat columns with their features. Shapes: P pairs, M signed votes, K annotators, d coefficients each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.votes import Votes
from nemo_rpo.errors import DataError

SKILL = "skill"
SLOT = "slot"
# Votes whose float64 intermediates are held at once.
_CHUNK = 1 << 14


class FlatVotes(NamedTuple):
    """Votes as flat columns, in any order: what a file holds, without padding.

    Attributes:
        pair, annotator: int64 [M].
        sign: [M], +1 for chosen, -1 for rejected, 0 a tie.
        num_pairs: P.
        weight: [P] or None, see :class:`nemo_rpo.em.Votes`.
    """

    pair: Tensor
    annotator: Tensor
    sign: Tensor
    num_pairs: int
    weight: Tensor | None = None

    @classmethod
    def of(cls, votes: Votes) -> FlatVotes:
        """The signed votes of padded ones, in order of the pairs.

        >>> FlatVotes.of(Votes(torch.tensor([[0, 1], [2, 0]]), torch.tensor([[1, -1], [1, 0]]))).annotator
        tensor([0, 1, 2])
        """
        pair, column = (votes.sign != 0).nonzero().unbind(-1)
        return cls(pair, votes.annotator[pair, column].long(), votes.sign[pair, column], len(votes.sign), votes.weight)


@dataclass(frozen=True)
class VoteFeatures:
    """What is known of each vote, by name; tensors [P] (the same for all votes of a pair) or [P, V], of
    :class:`FlatVotes` [M].

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


def _alone(_: Tensor) -> None:
    """A single process has the sum already."""


class VoteTable(NamedTuple):
    """The signed votes of all pairs, sorted by pair; of this rank's, where ranks hold different pairs.

    Attributes:
        pair, annotator: int64 [M].
        says_chosen: bool [M].
        design: float32 [M, d]; column 0 is 1, then the skill features, then the leaning features.
        weight: float32 [M], what the vote's log-likelihood counts for, everywhere (discount of a family).
        counted: float32 [M], what it counts for as evidence of its annotator, beside that (rankings).
        names: of the columns of ``design``.
        num_skill: how many of them multiply the truth.
        num_pairs, num_annotators: P and K.
        all_reduce: sums a tensor in place over the ranks that hold different pairs; every sum over annotators goes
            through it.
        known: float64 [2, K], right and wrong answers of each annotator beside these votes, the same on every rank.
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
    all_reduce: Callable[[Tensor], None] = _alone
    known: Tensor | None = None

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
        known = None if self.known is None else self.known[:, present]
        part = part._replace(pair=pair, annotator=annotator, num_pairs=len(kept), num_annotators=len(present))
        return part._replace(known=known), kept

    def chunks(self) -> Iterator[VoteTable]:
        """The votes in pieces of bounded size."""
        for start in range(0, len(self.pair), _CHUNK):
            yield VoteTable(*(column[start : start + _CHUNK] for column in self[:6]), *self[6:])

    def per_annotator(self, values: Tensor) -> Tensor:
        """Sums of ``values`` [M] over the votes of each annotator, float64 [K]. One all-reduce of 8 K bytes."""
        sums = torch.zeros(self.num_annotators, dtype=torch.float64, device=values.device)
        sums.index_add_(0, self.annotator, values.double())
        self.all_reduce(sums)
        return sums

    def total(self, *values: Tensor) -> Tensor:
        """The sum of each of the ``values`` over all ranks, float64. One all-reduce of 8 bytes a value."""
        sums = torch.stack([of.double().sum() for of in values])
        self.all_reduce(sums)
        return sums

    def per_pair(self, values: Tensor) -> Tensor:
        """Sums of ``values`` [M] over the votes of each pair, float64 [P]."""
        sums = torch.zeros(self.num_pairs, dtype=torch.float64, device=values.device)
        return sums.index_add_(0, self.pair, values.double())

    def sign(self) -> Tensor:
        """+1 the vote is for chosen, -1 for rejected; float64 [M]."""
        return self.says_chosen.double() * 2 - 1


def vote_table(votes: Votes | FlatVotes, num_annotators: int, features: VoteFeatures | None = None) -> VoteTable:
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
    named = {**features.skill, **features.leaning}
    if isinstance(votes, Votes):
        flat = FlatVotes.of(votes)
        pair, column = (votes.sign != 0).nonzero().unbind(-1)
        rows = [_column(name, values, votes, pair, column) for name, values in named.items()]
    else:
        flat, kept = _signed_by_pair(votes)
        rows = [_flat_column(name, values, votes)[kept] for name, values in named.items()]
    ones = torch.ones(len(flat.pair), device=flat.sign.device)
    table = VoteTable(
        flat.pair,
        flat.annotator,
        flat.sign > 0,
        torch.stack([ones, *rows], -1),
        ones,
        ones.clone() if flat.weight is None else flat.weight[flat.pair].float(),
        (SKILL, *names),
        1 + len(features.skill),
        flat.num_pairs,
        num_annotators,
    )
    return _one_vote_each(table)


def _signed_by_pair(votes: FlatVotes) -> tuple[FlatVotes, Tensor]:
    """The signed votes in order of the pairs, and their places among the given ones."""
    kept = (votes.sign != 0).nonzero().squeeze(-1)
    kept = kept[votes.pair[kept].argsort(stable=True)]
    columns = (votes.pair[kept].long(), votes.annotator[kept].long(), votes.sign[kept])
    return FlatVotes(*columns, votes.num_pairs, votes.weight), kept


def _column(name: str, values: Tensor, votes: Votes, pair: Tensor, column: Tensor) -> Tensor:
    if values.shape not in (votes.sign.shape, votes.sign.shape[:1]):
        expected = f"{list(votes.sign.shape)} or {list(votes.sign.shape[:1])}"
        raise DataError(f"the feature '{name}' has shape {list(values.shape)}; expected {expected}")
    return _finite(name, (values[pair] if values.dim() == 1 else values[pair, column]).float())


def _flat_column(name: str, values: Tensor, votes: FlatVotes) -> Tensor:
    if values.shape != votes.sign.shape:
        raise DataError(
            f"the feature '{name}' has shape {list(values.shape)}; expected {list(votes.sign.shape)}, one value a vote"
        )
    return _finite(name, values.float())


def _finite(name: str, values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise DataError(f"the feature '{name}' has values that are not finite; give 0 where it is not known")
    return values


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
