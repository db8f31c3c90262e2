"""Crowds of two tastes with linear rewards, and the group estimator trained on them without an engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em import EMSettings, MarginBuffer, Votes
from nemo_rpo.em.groups import TasteReliability
from nemo_rpo.em.groups.start import random_start


@dataclass(frozen=True)
class Crowd:
    """Features ``x`` [n, d] of the pairs, their ``votes``, each annotator's ``taste`` [K], and what each taste prefers
    on fresh pairs: ``fresh`` [m, d], ``better`` [m, 2].
    """

    x: Tensor
    votes: Votes
    taste: Tensor
    fresh: Tensor
    better: Tensor


def crowd(
    annotators: int = 24, labels: int = 60, votes: int = 2, second: float = 0.4, eta: float = 0.9, seed: int = 0
) -> Crowd:
    """Two orthogonal tastes, the second of a share ``second`` of the annotators; ``votes`` annotators a pair."""
    generator = torch.Generator().manual_seed(seed)
    rewards, _ = torch.linalg.qr(torch.randn(16, 2, generator=generator))
    pairs = annotators * labels // votes
    taste = (torch.arange(annotators) >= round(annotators * (1 - second))).long()
    x, fresh = (torch.randn(n, 16, generator=generator) for n in (pairs, 2000))
    who = torch.stack([torch.randperm(annotators, generator=generator)[:votes] for _ in range(pairs)])
    prefers = torch.rand(pairs, 2, generator=generator) < (3 * x @ rewards).sigmoid()
    said = prefers[torch.arange(pairs).unsqueeze(1), taste[who]]
    right = torch.rand(pairs, votes, generator=generator) < eta
    return Crowd(x, Votes(who, torch.where(said == right, 1.0, -1.0)), taste, fresh, fresh @ rewards > 0)


def estimator(data: Crowd, groups: int = 2, seed: int = 0) -> TasteReliability:
    labels = torch.bincount(data.votes.annotator.flatten(), minlength=len(data.taste))
    start = random_start(len(data.taste), groups, seed)
    buffers = [MarginBuffer(len(data.x)) for _ in range(groups)]
    return TasteReliability(EMSettings(estimator="ema"), start, labels, buffers)


def train(data: Crowd, em: TasteReliability, epochs: int = 4, seed: int = 0) -> Tensor:
    """The heads [G, d] after ``epochs`` of mini-batches of 48 pairs."""
    heads = torch.zeros(em.groups, data.x.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([heads], lr=0.02)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for pairs in torch.randperm(len(data.x), generator=generator).split(48):
            delta, votes = data.x[pairs] @ heads.t(), data.votes.of(pairs, torch.device("cpu"))
            w, weight = em.group_posterior(delta.detach(), votes), em.pair_weight(votes)
            loss = -(weight * (w * F.logsigmoid(delta) + (1 - w) * F.logsigmoid(-delta))).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            em.accumulate_groups(pairs, delta.detach(), votes, torch.ones(len(pairs), dtype=torch.bool))
            em.commit()
    return heads.detach()
