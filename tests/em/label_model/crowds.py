"""Small simulated crowds, for the label model's tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em import Votes


class Crowd(NamedTuple):
    """Votes [P, V] with their truth: ``better`` bool [P], ``eta`` [K], ``slot`` [P, V]."""

    votes: Votes
    better: Tensor
    eta: Tensor
    slot: Tensor


def make(
    eta: Tensor | list[float],
    pairs: int,
    votes_per_pair: int,
    seed: int = 0,
    follows: float = 0.0,
    family: int = 0,
    correlation: float = 0.0,
) -> Crowd:
    """Votes right with probability η; a share ``follows`` of them says what was shown first; errors of the first
    ``family`` annotators correlate by ``correlation``."""
    generator = torch.Generator().manual_seed(seed)
    eta = torch.as_tensor(eta, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    annotator = uniform(pairs, len(eta)).argsort(-1)[:, :votes_per_pair]
    better = uniform(pairs, 1) < 0.5
    shared = (annotator < family) & (uniform(*annotator.shape) < correlation**0.5)
    right = torch.where(shared, uniform(pairs, 1), uniform(*annotator.shape)) < eta[annotator]
    slot = torch.where(uniform(pairs, 1) < 0.5, 1.0, -1.0).expand_as(annotator)
    sign = torch.where(right == better, 1.0, -1.0)
    sign = torch.where(uniform(*annotator.shape) < follows, slot.double(), sign.double())
    return Crowd(Votes(annotator, sign), better.squeeze(-1), eta, slot)


def accuracy(w: Tensor, better: Tensor) -> float:
    """Share of truths found; ½ counts as half."""
    return torch.where(w == 0.5, 0.5, ((w > 0.5) == better).double()).mean().item()


def spread_of_skills(count: int, seed: int, mean: float = 1.2, spread: float = 0.7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.sigmoid(mean + spread * torch.randn(count, generator=generator, dtype=torch.float64))
