"""Who said what about each pair. Shapes: P pairs, V votes of one pair (padded to the widest), K annotators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Votes whose float64 intermediates are held at once; a full pass over 10⁷ of them then needs megabytes beside the data.
_CHUNK_VOTES = 1 << 18
# 28 binary places hold a posterior to 4e-9, and leave float64 room for 2²⁵ of them per annotator.
_GRID = 2.0**28


class Votes(NamedTuple):
    """The labels of a batch of pairs, several annotators a pair.

    Attributes:
        annotator: int64 [P, V], index in [0, K) of the annotator of each vote; any valid index where ``sign`` is 0.
        sign: [P, V], +1 the annotator agrees that chosen is better, -1 they said that rejected is better, 0 a tie or
            padding. A 0 is no evidence: it moves neither the posterior of the pair nor the reliability of the
            annotator.
        weight: [P], what each label of a pair counts for as evidence of its annotator's reliability; None: 1. A ranking
            of K responses is one label on K(K-1)/2 pairs, each of which has the inverse of that number. The posterior
            of a pair does not depend on it.
    """

    annotator: Tensor
    sign: Tensor
    weight: Tensor | None = None

    @classmethod
    def single(cls, annotator: Tensor) -> Votes:
        """One label a pair, chosen being what the annotator preferred: ``annotator`` int64 [P].

        >>> Votes.single(torch.tensor([4, 0])).sign
        tensor([[1.],
                [1.]])
        """
        column = annotator.unsqueeze(-1)
        return cls(column, torch.ones_like(column, dtype=torch.float32))

    @classmethod
    def all_of(cls, parts: Sequence[Votes]) -> Votes:
        """Those of several batches of pairs, at least one; either all or none have weights."""
        annotator, sign, weight = zip(*parts, strict=True)
        return cls(torch.cat(annotator), torch.cat(sign), None if weight[0] is None else torch.cat(weight))

    def share(self) -> Tensor:
        """Share of the signed votes that say chosen, float32 [P]: the soft label of plain DPO on grouped pairs.

        A pair without a signed vote gives ½, the soft label that prefers neither.

        >>> Votes(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[1, 1, -1], [0, 0, 0]])).share()
        tensor([0.6667, 0.5000])
        """
        sign = self.sign.float()
        cast = sign.abs().sum(-1)
        return torch.where(cast > 0, 0.5 + 0.5 * sign.sum(-1) / cast.clamp(min=1), 0.5)

    def better(self) -> Tensor:
        """Which response most signed votes prefer, float32 [P]: +1 chosen, −1 rejected, 0 as many for either.

        >>> Votes(torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[1, -1, -1], [1, -1, 0]])).better()
        tensor([-1.,  0.])
        """
        return torch.sign(self.sign.float().sum(-1))

    def counted(self, values: Tensor) -> Tensor:
        """``values`` of pairs or of their labels, [P, …], times what each counts for.

        >>> votes = Votes(torch.tensor([[0], [0]]), torch.ones(2, 1), weight=torch.tensor([1.0, 0.5]))
        >>> votes.counted(torch.tensor([3.0, 2.0]))
        tensor([3., 1.])
        """
        if self.weight is None:
            return values
        return values * self.weight.to(values.dtype).view(-1, *[1] * (values.dim() - 1))

    def of(self, pairs: Tensor, device: torch.device) -> Votes:
        """Those of some ``pairs`` (an index or a mask), on ``device``."""
        columns = (None if column is None else column[pairs.to(column.device)].to(device) for column in self)
        return Votes(*columns)

    def has_evidence(self) -> Tensor:
        """Whether a pair has at least one signed vote, bool [P]."""
        return (self.sign != 0).any(-1)


def with_finite_margin(delta: Tensor, votes: Votes) -> tuple[Tensor, Votes]:
    """The pairs whose margin is a finite number: NaN and infinities say that a forward pass failed, not who is right.

    Waits for the device. Where all margins are finite nothing is copied.

    >>> delta, votes = torch.tensor([0.5, -torch.inf, torch.nan]), Votes.single(torch.tensor([0, 1, 2]))
    >>> with_finite_margin(delta, votes)[1].annotator
    tensor([[0]])
    """
    finite = delta.isfinite()
    if finite.all():
        return delta, votes
    return delta[finite], votes.of(finite, delta.device)


def chunks(delta: Tensor, votes: Votes) -> Iterator[tuple[Tensor, Votes]]:
    """The pairs in bounded pieces: margins [p] widened to float64, votes [p, V] with ids widened to int64."""
    pairs = max(1, _CHUNK_VOTES // max(1, votes.sign.shape[-1]))
    for start in range(0, len(delta), pairs):
        piece = slice(start, start + pairs)
        weight = None if votes.weight is None else votes.weight[piece]
        yield delta[piece].double(), Votes(votes.annotator[piece].long(), votes.sign[piece], weight)


def exactly_summable(probability: Tensor) -> Tensor:
    """Rounds float64 probabilities to multiples of 2⁻²⁸, of which float64 adds 2²⁵ (33 million) without rounding.

    The order of micro-batches, ranks, shards and GPU atomics then has no influence on the sum, so reliabilities repeat
    bit for bit from run to run, and are the same under every layout that gives the same posteriors.
    """
    return (probability * _GRID).round() / _GRID
