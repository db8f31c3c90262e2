"""Noise or taste: how often is the right number of groups chosen, and are their annotators found?

    python benchmarks/label_model_tastes.py [--seeds 20] [--only two one] [--write docs/label_model.md]

Forty annotators, skills N(2, .5²) in logits, every annotator with the same number of labels, pairs voted on by the same
number of annotators. *two*: 60 % and 40 % of the annotators have a taste of their own (truths that are independent, or
that part on a quarter of the pairs); printed is the adjusted Rand index of the groups, beside that of somebody who
knows all truths and skills, which is as much as so many labels can say. *one*: one taste, with noise of every kind;
printed is how often one group is chosen.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
import torch
from markdown_table import replace_block, table

from nemo_rpo.em import Votes
from nemo_rpo.em.label_model import VoteFeatures
from nemo_rpo.em.taste import fit_tastes

ANNOTATORS = 40


class World(NamedTuple):
    votes: Votes
    group: np.ndarray
    slot: torch.Tensor
    best: np.ndarray  # groups by somebody who knows truths and skills


def draw(
    seed: int,
    labels: int,
    votes: int,
    shares: tuple[float, ...] = (0.6, 0.4),
    part: float = 0.5,
    skill: tuple[float, float] = (2.0, 0.5),
    adversaries: float = 0.0,
    follows: float = 0.0,
) -> World:
    """Tastes agree on 1 - ``part`` of the pairs. A share ``adversaries`` is right as often as their skill says wrong;
    half of the annotators say what was shown first with probability ``follows``."""
    rng = np.random.default_rng(seed)
    pairs = ANNOTATORS * labels // votes
    group = rng.choice(len(shares), ANNOTATORS, p=shares)
    eta = 1 / (1 + np.exp(-(skill[0] + skill[1] * rng.normal(size=ANNOTATORS))))
    eta = np.where(rng.random(ANNOTATORS) < adversaries, 1 - eta, eta)
    base = np.where(rng.random((pairs, 1)) < 0.5, 1, -1)
    # Of two tastes each keeps the base but for a share, so that they part on ``part`` of the pairs.
    turned = rng.random((pairs, len(shares))) < (1 - np.sqrt(max(0.0, 1 - 2 * part))) / 2
    truth = np.where(turned & (len(shares) > 1), -base, base)
    annotator = np.concatenate([rng.permutation(ANNOTATORS) for _ in range(labels)])[: pairs * votes]
    annotator = annotator.reshape(pairs, votes)
    right = rng.random(annotator.shape) < eta[annotator]
    own = np.take_along_axis(truth, group[annotator], 1)
    sign = np.where(right, own, -own)
    slot = np.where(rng.random((pairs, 1)) < 0.5, 1, -1) * np.ones_like(annotator)
    following = (annotator < ANNOTATORS // 2) & (rng.random(annotator.shape) < follows)
    sign = np.where(following, slot, sign)
    log_odds = np.log(eta / (1 - eta))[annotator]
    says = np.zeros((ANNOTATORS, len(shares)))
    for g, share in enumerate(shares):
        np.add.at(says[:, g], annotator, 0.5 * sign * truth[:, [g]] * log_odds)
        says[:, g] += np.log(share)
    return World(
        Votes(torch.from_numpy(annotator), torch.from_numpy(sign)),
        group,
        torch.from_numpy(slot).float(),
        says.argmax(1),
    )


def adjusted_rand_index(one: np.ndarray, other: np.ndarray) -> float:
    table_of = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(table_of, (one, other), 1)
    twos = [(n * (n - 1) / 2).sum() for n in (table_of, table_of.sum(1), table_of.sum(0))]
    expected, most = twos[1] * twos[2] / (len(one) * (len(one) - 1) / 2), (twos[1] + twos[2]) / 2
    return 1.0 if most == expected else (twos[0] - expected) / (most - expected)


def two(seeds: int) -> str:
    rows = {}
    for labels, votes, part in ((10, 20, 0.5), (20, 10, 0.5), (20, 20, 0.5), (40, 10, 0.25)):
        found, best, groups = [], [], []
        for seed in range(seeds):
            world = draw(seed, labels, votes, part=part)
            fit = fit_tastes(world.votes, ANNOTATORS, max_groups=3)
            groups.append(fit.groups)
            found.append(adjusted_rand_index(world.group, fit.membership.argmax(1).numpy()))
            best.append(adjusted_rand_index(world.group, world.best))
        groups = np.array(groups)
        rows[f"{labels} labels, {votes} a pair, part on {part:.0%}"] = [
            *(f"{(groups == k).mean():.2f}" for k in (1, 2, 3)),
            f"{np.mean(found):.2f}", f"{np.median(found):.2f}", f"{np.mean(best):.2f}",
        ]  # fmt: skip
    heads = ("one group", "two", "three", "ARI, mean", "ARI, median", "ARI, truths and skills known")
    return table("two tastes", heads, rows)


def one(seeds: int) -> str:
    kinds = {
        "like care, 10 labels, 20 a pair": {"labels": 10, "votes": 20},
        "like care, 10 labels, 10 a pair": {"labels": 10, "votes": 10},
        "like care, 40 labels, 5 a pair": {"labels": 40, "votes": 5},
        "care N(1, 1.2²)": {"labels": 20, "votes": 5, "skill": (1.0, 1.2)},
        "30 % adversaries": {"labels": 20, "votes": 5, "adversaries": 0.3},
        "half follow position 70 %": {"labels": 20, "votes": 5, "follows": 0.7},
    }
    rows = {}
    for name, kind in kinds.items():
        groups, gains = [], []
        for seed in range(1000, 1000 + seeds):
            world = draw(seed, shares=(1.0,), **kind)
            features = VoteFeatures(leaning={"slot": world.slot}) if "follows" in kind else None
            fit = fit_tastes(world.votes, ANNOTATORS, features=features)
            groups.append(fit.groups)
            gains.append(fit.tried[1].gain)
        rows[name] = [f"{(np.array(groups) == 1).mean():.2f}", f"{np.mean(gains):+.1f}", f"{np.max(gains):+.1f}"]
    return table("one taste", ("one group chosen", "mean gain of two, nats", "largest"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parts = {"two tastes": two, "one taste": one}
    parser.add_argument("--only", nargs="*", choices=("two", "one"), default=("two", "one"))
    parser.add_argument("--write", help="replace the blocks in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, part in parts.items():
        if name.split()[0] not in arguments.only:
            continue
        start = time.process_time()
        text = part(arguments.seeds)
        print(f"{text}\n({name}: {time.process_time() - start:.0f} s of one core)\n", flush=True)
        if arguments.write:
            replace_block(arguments.write, name, text)


if __name__ == "__main__":
    main()
