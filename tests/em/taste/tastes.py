"""Small crowds with one taste or several, for the tests of taste."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em import Votes


class Tastes(NamedTuple):
    """Votes with their truth: ``group`` [K], ``better`` bool [P, k], ``slot`` [P, V]."""

    votes: Votes
    group: Tensor
    better: Tensor
    slot: Tensor


def make(
    shares: list[int],
    labels: int,
    votes: int,
    seed: int = 0,
    eta: float = 0.9,
    adversaries: int = 0,
    careless: int = 0,
    follows: float = 0.0,
) -> Tastes:
    """``shares`` annotators of every taste, each with ``labels`` labels, ``votes`` annotators a pair; tastes are
    independent. The first ``adversaries`` are right with 1 - η, the next ``careless`` are coins; half of the annotators
    say what was shown first with probability ``follows``."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    group = torch.arange(len(shares)).repeat_interleave(torch.tensor(shares))
    count = len(group)
    group = group[uniform(count).argsort()]
    pairs = count * labels // votes
    # Rounds of everybody in random order, cut into pairs.
    annotator = torch.cat([uniform(count).argsort() for _ in range(labels)])[: pairs * votes].view(pairs, votes)
    better = uniform(pairs, len(shares)) < 0.5
    skill = torch.full((count,), eta, dtype=torch.float64)
    skill[:adversaries], skill[adversaries : adversaries + careless] = 1 - eta, 0.5
    right = uniform(pairs, votes) < skill[annotator]
    sign = torch.where(right == better.gather(1, group[annotator]), 1.0, -1.0)
    slot = torch.where(uniform(pairs, 1) < 0.5, 1.0, -1.0).expand_as(annotator)
    following = (uniform(pairs, votes) < follows) & (annotator < count // 2)
    return Tastes(Votes(annotator, torch.where(following, slot, sign)), group, better, slot)


def adjusted_rand_index(one: Tensor, other: Tensor) -> float:
    """Agreement of two divisions, 1 the same, 0 chance.

    >>> adjusted_rand_index(torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0]))
    1.0
    """

    def twos(n: Tensor) -> float:
        return (n.double() * (n.double() - 1) / 2).sum().item()

    both = twos(torch.bincount(one * (int(other.max()) + 1) + other))
    rows, columns = twos(torch.bincount(one)), twos(torch.bincount(other))
    expected = rows * columns / twos(torch.tensor([len(one)]))
    most = (rows + columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)
