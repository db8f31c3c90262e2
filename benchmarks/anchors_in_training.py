"""Judges of whom the average is worse than a coin, and a few pairs of known truth among the training pairs.

    python -m benchmarks.anchors_in_training [--seeds 5] [--write docs/loop.md]

Twelve judges right .95 to .15 of the time (mean .43), three votes a pair, 1,500 pairs, a linear policy that starts
cold, the default estimator with its label model; gold labels on the first 0, 20, 40 or 80 pairs. Prints the table of
docs/loop.md.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.markdown_table import replace_block, table
from nemo_rpo.em import EMSettings, Votes, build_estimator
from nemo_rpo.em.label_model import FlatVotes, VoteColumns
from nemo_rpo.em.label_model.of_run.training_crowd import Crowd

ETA = (0.95, 0.92, 0.88, 0.80, 0.40, 0.35, 0.30, 0.30, 0.25, 0.20, 0.20, 0.15)
PAIRS, VOTES, WIDTH, STEPS, BATCH = 1500, 3, 8, 70, 64


class World(NamedTuple):
    """``x`` [n, f] is what the policy sees of a pair, first over second; ``better`` [n] whether the first is better."""

    x: Tensor
    better: Tensor
    votes: Votes
    truth: Tensor


class Found(NamedTuple):
    """Shares of labels that posteriors get right and of fresh pairs that the policy does, and max |η̂ - η|."""

    labels: float
    policy: float
    error: float


def draw(seed: int) -> World:
    """Pairs and votes; the truth of the policy's features is the seed's too."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    truth = torch.randn(WIDTH, generator=generator)
    truth *= 4 / truth.norm()
    x = torch.randn(PAIRS, WIDTH, generator=generator)
    better = uniform(PAIRS) < torch.sigmoid(x @ truth)
    annotator = uniform(PAIRS, len(ETA)).argsort(-1)[:, :VOTES]
    right = uniform(PAIRS, VOTES) < torch.tensor(ETA)[annotator]
    return World(x, better, Votes(annotator, torch.where(right == better.unsqueeze(-1), 1, -1)), truth)


def learn(seed: int, anchors: int) -> Found:
    """Trains a policy on a world's votes, with gold labels on its first ``anchors`` pairs."""
    world = draw(seed)
    gold = torch.where(torch.arange(PAIRS) < anchors, torch.where(world.better, 1, -1), 0)
    crowd = Crowd(FlatVotes.of(world.votes), VoteColumns(), gold if anchors else None)
    em = build_estimator(
        EMSettings(),
        len(ETA),
        PAIRS,
        lambda block: Votes(*(of[block] for of in world.votes[:2])),
        crowd_of=lambda: crowd,
    )
    policy, valid = torch.zeros(WIDTH), torch.ones(BATCH, dtype=torch.bool)
    for step in range(STEPS):
        pair = torch.arange(step * BATCH, (step + 1) * BATCH) % PAIRS
        x, votes = world.x[pair], Votes(*(of[pair] for of in world.votes[:2]))
        delta = x @ policy
        w = em.posterior(delta, votes, pair)
        policy = policy - 0.5 * ((torch.sigmoid(delta) - w).unsqueeze(-1) * x).mean(0)
        em.observe(pair, delta, valid)
        em.exchange(lambda rows: rows)
        em.commit()
    em.settle()
    w = em.posterior(world.x @ policy, world.votes, torch.arange(PAIRS))
    fresh = torch.randn(5000, WIDTH, generator=torch.Generator().manual_seed(seed + 10_000))
    return Found(
        ((w > 0.5) == world.better).double().mean().item(),
        ((fresh @ policy > 0) == (fresh @ world.truth > 0)).double().mean().item(),
        (em.eta - torch.tensor(ETA)).abs().max().item(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = {}
    for anchors in (0, 20, 40, 80):
        found = torch.tensor([learn(seed, anchors) for seed in range(arguments.seeds)])
        mean, spread = found.mean(0), found.std(0)
        lines[str(anchors)] = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True)]
    text = table("gold pairs", ["labels right", "policy right", "largest error of η"], lines)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "anchors in training", text)


if __name__ == "__main__":
    main()
