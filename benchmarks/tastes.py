"""A reward model with one output a group of taste beside the plain one, on simulated crowds with linear rewards.

    python benchmarks/tastes.py [--seeds 10] [--write docs/losses.md]

Two tastes with orthogonal (or, ``alike``, correlated) rewards, annotators who are right nine times in ten by their own
taste. Both models are trained by the package's losses and EM on the same labels in the same order; accuracy is on
fresh pairs against what the annotators of each taste truly prefer, judged by the head of the group that most of them
belong to. ARI compares the groups with the truth. ``nearly empty``: a group with less than a tenth of the annotators.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from markdown_table import replace_block, table
from torch import Tensor

from nemo_rpo.em import EMSettings, MarginBuffer, PairStep, Votes
from nemo_rpo.em.groups import TasteReliability
from nemo_rpo.em.groups.start import start_of
from nemo_rpo.em.label_model import FlatVotes
from nemo_rpo.losses import PairLogprobs, build_loss

DIMENSIONS, BATCH, EPOCHS, LR, ETA, FRESH = 16, 48, 4, 0.02, 0.9, 2000
EMPTY = 0.1


@dataclass(frozen=True)
class World:
    """``annotators`` with ``labels`` each, ``votes`` a pair; the second taste has a share ``second`` of them, and its
    reward the cosine ``alike`` with the first.
    """

    annotators: int
    labels: int
    votes: int
    second: float
    alike: float = 0.0


WORLDS = {
    "24 annotators, 60 labels, 2 a pair": World(24, 60, 2, 0.4),
    "60 annotators, 40 labels, 3 a pair": World(60, 40, 3, 0.3),
    "60 annotators, 40 labels, 1 a pair": World(60, 40, 1, 0.4),
    "60 annotators, 40 labels, 3 a pair, tastes alike (.6)": World(60, 40, 3, 0.4, 0.6),
    "60 annotators, 40 labels, 3 a pair, tastes opposed (-.9)": World(60, 40, 3, 0.4, -0.9),
    "200 annotators, 10 labels, 3 a pair": World(200, 10, 3, 0.4),
    "60 annotators, 40 labels, 3 a pair, one taste": World(60, 40, 3, 0.0),
}


@dataclass(frozen=True)
class Crowd:
    """Features [n, d], votes, each annotator's taste [K], fresh features [m, d] and what each taste prefers [m, 2]."""

    x: Tensor
    votes: Votes
    taste: Tensor
    fresh: Tensor
    better: Tensor


def draw(world: World, seed: int) -> Crowd:
    generator = torch.Generator().manual_seed(seed)
    one, other = torch.linalg.qr(torch.randn(DIMENSIONS, 2, generator=generator)).Q.t()
    rewards = 3 * torch.stack((one, world.alike * one + (1 - world.alike**2) ** 0.5 * other), 1)
    pairs = world.annotators * world.labels // world.votes
    taste = (torch.arange(world.annotators) >= round(world.annotators * (1 - world.second))).long()
    x, fresh = (torch.randn(n, DIMENSIONS, generator=generator) for n in (pairs, FRESH))
    who = torch.stack([torch.randperm(world.annotators, generator=generator)[: world.votes] for _ in range(pairs)])
    prefers = (torch.rand(pairs, 2, generator=generator) < (x @ rewards).sigmoid())[
        torch.arange(pairs)[:, None], taste[who]
    ]
    right = torch.rand(pairs, world.votes, generator=generator) < ETA
    return Crowd(x, Votes(who, torch.where(prefers == right, 1.0, -1.0)), taste, fresh, fresh @ rewards > 0)


def train(data: Crowd, groups: int, seed: int) -> tuple[TasteReliability, Tensor]:
    """The estimator and the heads [G, d]."""
    pairs, annotators = len(data.x), len(data.taste)
    flat = FlatVotes(
        torch.arange(pairs).repeat_interleave(data.votes.sign.shape[1]),
        data.votes.annotator.flatten(),
        data.votes.sign.flatten(),
        num_pairs=pairs,
    )
    start = start_of(flat, annotators, groups, seed).log_odds if groups > 1 else torch.zeros(annotators, 1)
    labels = torch.bincount(data.votes.annotator.flatten(), minlength=annotators)
    em = TasteReliability(EMSettings(estimator="ema"), start, labels, [MarginBuffer(pairs) for _ in range(groups)])
    heads = torch.zeros(groups, DIMENSIONS, requires_grad=True)
    optimizer = torch.optim.Adam([heads], lr=LR)
    # One group through the plain step would share its posterior in the same way; `pal` of one group is `bt`.
    step = PairStep(build_loss("pal", groups=groups) if groups > 1 else build_loss("bt"), "induced", 1.0, 0.0, False)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(EPOCHS):
        for batch in torch.randperm(pairs, generator=generator).split(BATCH):
            scores = data.x[batch] @ heads.t()
            votes = data.votes.of(batch, torch.device("cpu"))
            columns = {"scores": (scores, torch.zeros_like(scores))}
            if groups == 1:
                columns = {"score": (scores[:, 0], torch.zeros(len(batch)))}
            x = PairLogprobs(None, None, response_columns=columns, pair_columns={"group_weight": em.pair_weight(votes)})
            everyone = torch.ones(len(batch), dtype=torch.bool)
            loss = step(x, votes, everyone, em, batch).objective.mean()
            if groups == 1:
                em.accumulate_groups(batch, scores.detach(), votes, everyone)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            em.exchange(lambda rows: rows), em.commit()
    return em, heads.detach()


def judge(world: World, seed: int) -> dict[str, float]:
    data = draw(world, seed)
    (em, heads), (_, head) = train(data, 2, seed), train(data, 1, seed)
    group = em.weight.argmax(-1)
    for_all = ((data.fresh @ head.t() > 0) == data.better).float().mean(0)
    found = {"plain, first": for_all[0], "plain, second": for_all[1]}
    for taste, name in enumerate(("first", "second")):
        members = group[data.taste == taste]
        own = heads[members.mode().values] if len(members) else heads[group.mode().values]
        found[f"pal, {name}"] = ((data.fresh @ own > 0) == data.better[:, taste]).float().mean()
    found["ARI"] = adjusted_rand_index(group, data.taste)
    found["empty"] = float(em.share.min() < EMPTY)
    return {name: float(value) for name, value in found.items()}


def adjusted_rand_index(one: Tensor, other: Tensor) -> float:
    """1 where two divisions are the same, 0 on average where they have nothing to do with each other."""
    cells = F.one_hot(one, 2).t().double() @ F.one_hot(other, 2).double()

    def pairs(n: Tensor) -> float:
        return (n * (n - 1) / 2).sum().item()

    rows, columns, both = pairs(cells.sum(1)), pairs(cells.sum(0)), pairs(cells)
    expected = rows * columns / pairs(torch.tensor([len(one)]))
    most = (rows + columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--write", metavar="DOC", help="document whose block 'tastes' takes the table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    heads = ["plain, first taste", "pal, first", "plain, second taste", "pal, second", "ARI", "a group nearly empty"]
    rows = {}
    for title, world in WORLDS.items():
        found = [judge(world, 100 + seed) for seed in range(args.seeds)]
        names = ("plain, first", "pal, first", "plain, second", "pal, second", "ARI")
        cells = [_mean([each[name] for each in found]) for name in names]
        if not world.second:
            cells[2:5] = ["–"] * 3
        rows[title] = [*cells, f"{sum(each['empty'] for each in found):.0f} of {len(found)}"]
        print(title, rows[title], file=sys.stderr, flush=True)
    text = f"Mean of {args.seeds} crowds ± two standard errors.\n\n{table('', heads, rows)}"
    print(text)
    if args.write:
        replace_block(str(Path(args.write)), "tastes", text)


def _mean(values: list[float]) -> str:
    error = 2 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {error:.3f}"


if __name__ == "__main__":
    main()
