"""Worlds with known truth, for the EM's tests."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em import Votes


class World(NamedTuple):
    """Pairs whose margins are calibrated: P(chosen is better) = σ(delta). ``right`` says whether each vote is."""

    delta: Tensor
    votes: Votes
    right: Tensor


def make_world(eta: list[float], pairs: int, votes_per_pair: int = 1, spread: float = 1.5, seed: int = 0) -> World:
    generator = torch.Generator().manual_seed(seed)
    reliability = torch.tensor(eta, dtype=torch.float64)
    delta = torch.randn(pairs, generator=generator, dtype=torch.float64) * spread
    better = torch.rand(pairs, 1, generator=generator, dtype=torch.float64) < torch.sigmoid(delta).unsqueeze(-1)
    annotator = torch.rand(pairs, len(eta), generator=generator).argsort(-1)[:, :votes_per_pair]
    right = torch.rand(annotator.shape, generator=generator, dtype=torch.float64) < reliability[annotator]
    sign = torch.where(right == better, 1.0, -1.0)
    return World(delta, Votes(annotator, sign), right)
