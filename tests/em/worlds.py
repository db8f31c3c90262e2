"""Worlds with known truth, for the EM's tests."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
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


class Crowd(NamedTuple):
    """A population of annotators, most with few labels, on pairs with calibrated margins."""

    delta: Tensor
    votes: Votes
    eta: Tensor
    better: Tensor


def make_crowd(
    annotators: int,
    labels: int,
    votes_per_pair: int,
    population: tuple[float, float],
    spread: float = 2.0,
    seed: int = 0,
) -> Crowd:
    """Reliabilities from Beta(``population``), log-normal activity, margins N(0, ``spread``²), labels by the model."""
    rng = np.random.default_rng(seed)
    eta = rng.beta(*population, size=annotators)
    activity = np.exp(1.3 * rng.normal(size=annotators))
    pairs = labels // votes_per_pair
    # The largest of exponential races: distinct annotators of a pair, chosen by activity.
    races = rng.exponential(size=(pairs, annotators)) / activity
    annotator = np.argsort(races, axis=1)[:, :votes_per_pair]
    delta = spread * rng.normal(size=pairs)
    better = rng.random(pairs) < 1 / (1 + np.exp(-delta))
    right = rng.random(annotator.shape) < eta[annotator]
    sign = np.where(right == better[:, None], 1.0, -1.0)
    votes = Votes(torch.from_numpy(annotator), torch.from_numpy(sign))
    return Crowd(torch.from_numpy(delta), votes, torch.from_numpy(eta), torch.from_numpy(better))
