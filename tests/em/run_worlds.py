"""Crowds as a run sees them: pairs that a linear policy can tell apart, votes that may follow the order shown."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em import BufferedReliability, Collectives, EMSettings, Votes, build_estimator
from nemo_rpo.em.belief import Belief
from nemo_rpo.em.label_model import FlatVotes, VoteColumns
from nemo_rpo.em.label_model.of_run.training_crowd import Crowd


class World(NamedTuple):
    """Pairs in an order in which the first is better half of the time.

    Attributes:
        x: float32 [N, f], what a policy sees, first over second.
        better: bool [N], whether the first is.
        votes: [N, V]. shown: [N, V], ±1, whether the first was shown first.
        truth: float32 [f], the policy that has learnt everything.
        eta: float64 [K], share of its own votes that each annotator gets right.
    """

    x: Tensor
    better: Tensor
    votes: Votes
    shown: Tensor
    truth: Tensor
    eta: Tensor


def draw(
    annotators: int,
    pairs: int,
    votes_a_pair: int,
    followers: int = 0,
    share: float = 0.7,
    seed: int = 0,
    width: int = 8,
) -> World:
    """Annotators right .6 to .95 of the time; the first ``followers`` of them let the order shown decide that share of
    their votes."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    truth = torch.randn(width, generator=generator)
    truth *= 4 / truth.norm()
    x = torch.randn(pairs, width, generator=generator)
    better = uniform(pairs) < torch.sigmoid(x @ truth)
    annotator = uniform(pairs, annotators).argsort(-1)[:, :votes_a_pair]
    right = uniform(pairs, votes_a_pair) < (0.6 + 0.35 * uniform(annotators))[annotator]
    shown = torch.where(uniform(pairs, 1) < 0.5, 1, -1).expand_as(annotator)  # the same order for all
    sign = torch.where(right == better.unsqueeze(-1), 1, -1)
    sign = torch.where((annotator < followers) & (uniform(pairs, votes_a_pair) < share), shown, sign)
    agreed = (sign > 0) == better.unsqueeze(-1)
    cast = torch.zeros(2, annotators, dtype=torch.float64)
    cast.index_add_(1, annotator.flatten(), torch.stack((agreed, torch.ones_like(agreed))).double().flatten(1))
    return World(x, better, Votes(annotator, sign), shown, truth, cast[0] / cast[1])


def crowd_of(world: World, gold: Tensor | None = None, family: Tensor | None = None) -> Crowd:
    """What a file with the order shown says; with ``gold`` [N] and ``family`` [K]."""
    columns = VoteColumns(shown_first=world.shown.flatten())
    return Crowd(FlatVotes.of(world.votes), columns, gold, family)


def estimator(
    world: World,
    crowd: Crowd | None,
    settings: EMSettings | None = None,
    rank: int = 0,
    ranks: int = 1,
    collectives: Collectives | None = None,
    belief: Belief | None = None,
) -> BufferedReliability:
    """The buffer estimator of a rank."""
    return build_estimator(
        settings or EMSettings(),
        len(world.eta),
        len(world.x),
        lambda block: Votes(world.votes.annotator[block].int(), world.votes.sign[block].to(torch.int8)),
        rank,
        ranks,
        collectives,
        crowd_of=None if crowd is None else lambda: crowd,
        belief=belief,
    )


def learn(world: World, em: BufferedReliability, steps: int, size: int = 64, rate: float = 0.5) -> Tensor:
    """Trains a cold linear policy on the world's pairs, batch after batch; its weights."""
    policy, valid = torch.zeros(world.x.shape[-1]), torch.ones(size, dtype=torch.bool)
    for step in range(steps):
        pair = torch.arange(step * size, (step + 1) * size) % len(world.x)
        x, votes = world.x[pair], Votes(*(column[pair] for column in world.votes[:2]))
        delta = x @ policy
        w = em.posterior(delta, votes, pair)
        policy = policy - rate * ((torch.sigmoid(delta) - w).unsqueeze(-1) * x).mean(0)
        em.observe(pair, delta, valid)
        em.exchange(lambda rows: rows)
        em.commit()
    return policy
