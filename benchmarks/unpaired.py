"""Thumbs up and down, some of them flipped: KTO and BCO as they are, and under the EM, with annotator ids and without.

    python benchmarks/unpaired.py [--seeds 8] [--first-seed 100] [--flips 0.2 0.3 0.4] [--write docs/losses.md]

The texts are those of the preference world (docs/preference_world.md): 6,000 completions, one of each of as many pairs
whose qualities differ by 2 or more, which is good if it is the better one. Twelve annotators give one label each, the
k-th of them wrong with a probability that goes evenly from .02 to twice the mean share of flips. Three epochs in
batches of 64 of the scorer of benchmarks/no_ids.py, at its rate and at a tenth of it. Printed is the share of 1,000
fresh pairs whose better response the policy prefers, mean ± two standard errors over seeds, and the mean difference to
the plain loss on the same labels.
"""

from __future__ import annotations

import argparse
import math
import sys

import numpy as np
import torch
from many_policies import ManyAdams
from markdown_table import replace_block, table
from no_ids import BATCH, EPOCHS, PAIRS, Scorers, World
from torch import Tensor

from nemo_rpo.em import BufferedReliability, EMSettings, MarginBuffer, PairStep, Votes
from nemo_rpo.losses import PairLogprobs, build_loss

BETA, RATES, ANNOTATORS, LEAST = 0.5, (1e-3, 1e-2), 12, 0.02
POINT = {"kto": "mismatched_kl", "bco": "mean_log_ratio"}


class Labels:
    """What the annotators say of completions, which are ``good`` bool [n] or not."""

    def __init__(self, seed: int, flips: float, good: Tensor) -> None:
        rng = np.random.default_rng([seed, round(100 * flips)])
        self.annotator = torch.from_numpy(rng.integers(0, ANNOTATORS, len(good)))
        wrong = (
            torch.linspace(LEAST, 2 * flips - LEAST, ANNOTATORS)[self.annotator] if flips else torch.zeros(len(good))
        )
        self.up = good ^ (torch.from_numpy(rng.random(len(good))) < wrong)


class Run:
    """One loss on one set of labels; ``ids``: the EM knows who said what, None: there is no EM."""

    def __init__(self, name: str, labels: Labels, ids: bool | None) -> None:
        self.name, self.up = name, labels.up
        self.who = labels.annotator if ids else torch.zeros_like(labels.annotator)
        settings, self.em = EMSettings(), None
        if ids is not None:
            votes = Votes.single(self.who)
            self.em = BufferedReliability(ANNOTATORS if ids else 1, settings, MarginBuffer(len(self.up)), votes)
        objective = "weighted" if ids is None else settings.objective_in_force
        loss = build_loss(name, beta=BETA)
        self.step = PairStep(loss, objective, preference_weight=1.0, sft_weight=0.0, average_sft=False)

    def loss(self, ratio: Tensor, rows: Tensor) -> Tensor:
        """Of the completions ``rows`` [b] with these log-ratios."""
        up, zero = self.up[rows], torch.zeros_like(ratio)
        z = ratio.detach().mean()
        point = z.clamp(min=0) if self.name == "kto" else z  # completions of other prompts: any of this world's
        length = up.long()
        x = PairLogprobs(
            torch.where(up, ratio, zero), torch.where(up, zero, ratio), zero, zero, length, 1 - length,
            pair_columns={POINT[self.name]: point.expand(len(rows))},
        )  # fmt: skip
        votes, valid = Votes.single(self.who[rows]), torch.ones(len(rows), dtype=torch.bool)
        found = self.step(x, votes, valid, self.em, rows if self.em else None)
        if self.em is not None:
            self.em.exchange(lambda own: own)
            self.em.commit()
        return found.objective.sum() / found.statistic.sum()


METHODS = {"{}": None, "RE-{}, no ids": False, "RE-{}, ids of {k} annotators": True}


def accuracies(seed: int, levels: list[float], rate: float) -> dict[tuple[str, float], float]:
    """Name and share of flips → accuracy on fresh pairs."""
    world, rng = World(seed, "sure", "scorer"), np.random.default_rng([seed, 7])
    good = torch.from_numpy(rng.random(PAIRS) < 0.5)
    texts = torch.where(good[:, None], world.better, world.worse)
    named = {}
    for flips in levels:
        labels = Labels(seed, flips, good)
        for name in POINT:
            for method, ids in METHODS.items():
                named[method.format(name.upper(), k=ANNOTATORS), flips] = Run(name, labels, ids)
    policy, reference = Scorers(len(named), seed), Scorers(1, seed)
    with torch.no_grad():
        frozen, before = reference.log_probs(texts)[0], [reference.log_probs(side) for side in world.fresh]
    steps = PAIRS // BATCH
    adams = ManyAdams(policy.weights, rate, warmup_steps=10, total=steps * EPOCHS)
    order = torch.Generator().manual_seed(seed)
    for step in range(steps * EPOCHS):
        if step % steps == 0:
            shuffled = torch.randperm(PAIRS, generator=order)
        rows = shuffled[(step % steps) * BATCH :][:BATCH]
        ratios = policy.log_probs(texts[rows]) - frozen[rows]
        adams.step(sum(run.loss(ratio, rows) for run, ratio in zip(named.values(), ratios, strict=True)))
    with torch.no_grad():
        after = [policy.log_probs(side) for side in world.fresh]
    margin = (after[0] - before[0]) - (after[1] - before[1])
    return dict(zip(named, (margin > 0).float().mean(-1).tolist(), strict=True))


def _mean(values: list[float], sign: str = "") -> str:
    return f"{np.mean(values):{sign}.3f} ± {2 * np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def study(rate: float, seeds: int, first: int, levels: list[float]) -> str:
    """The table of one rate in Markdown."""
    found = []
    for seed in range(first, first + seeds):
        found.append(accuracies(seed, levels, rate))
        print(f"rate {rate:g}, seed {seed} done", file=sys.stderr, flush=True)
    rows = {}
    for name in dict.fromkeys(name for name, _ in found[0]):
        plain = name.removeprefix("RE-").split(",")[0]
        rows[name] = []
        for flips in levels:
            cell = _mean([of[name, flips] for of in found])
            gain = _mean([of[name, flips] - of[plain, flips] for of in found], "+")
            rows[name].append(cell if name == plain else f"{cell} ({gain})")
    return table(f"rate {rate:g}, {seeds} seeds", [f"{flips:.0%} flipped" for flips in levels], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--flips", type=float, nargs="+", default=[0.0, 0.2, 0.3, 0.4])
    parser.add_argument("--write", metavar="FILE", help="puts the table into the block `unpaired` of this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    text = "\n\n".join(study(rate, args.seeds, args.first_seed, args.flips) for rate in RATES)
    print(text, flush=True)
    if args.write:
        replace_block(args.write, "unpaired", text)


if __name__ == "__main__":
    main()
