"""Judges who lean to what they are shown first: one order, both orders, both collapsed.

    python benchmarks/judges.py [--seeds 10] [--first-seed 100] [--write docs/judging.md]

Six judges look at 2,000 pairs. Their accuracies are .9, .85, .8, .7, .6 and .55; with probability π (0, .1, .2, .3, .4,
.4, dealt at random) a judge says "first" whatever is there. *One opinion*: shown the other order, a judge still has the
same opinion, as language models do. *Fresh*: he forms it anew. Every row goes through the package's own drawing of
orders, collapse and label model, but for these: *majority* of one verdict each, *order not told* (the label model
without the order shown), and *two rows* (both verdicts stand in the votes file: the label model collapses them itself).

Right: share of pairs on the side of whose posterior the truth is. Errors: the largest over the six judges, of accuracy
(α + β)/2 and of position bias δ. Means over seeds ± standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from markdown_table import replace_block, table

from nemo_rpo.data.rows import Vote, VoteDetails
from nemo_rpo.judging.belief import believe
from nemo_rpo.judging.collecting import Judged
from nemo_rpo.judging.habits import habits_of
from nemo_rpo.judging.judged_pairs import JudgedPair
from nemo_rpo.judging.orders import shown
from nemo_rpo.judging.verdicts import Verdict

PAIRS = 2000
ACCURACY = np.array([0.9, 0.85, 0.8, 0.7, 0.6, 0.55])
POSITION = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.4])


class World:
    """Pairs with a truth, and judges."""

    def __init__(self, seed: int, fresh: bool) -> None:
        self.rng = np.random.default_rng(seed)
        self.position = self.rng.permutation(POSITION)
        self.truth = self.rng.random(PAIRS) < 0.5  # a is better
        self.pairs = [JudgedPair(f"p{i}", "q", f"a{i}", f"b{i}") for i in range(PAIRS)]
        self.seed, self.fresh = seed, fresh

    def judged(self, k: int, orders: str) -> Judged:
        """What judge ``k`` says of all pairs."""
        opinion, verdicts = self._opinion(k), []
        for item in shown(self.pairs, f"j{k}", orders, self.seed):
            i = int(item.pair[1:])
            if self.fresh and item.shown_first == "b":
                opinion[i] = (self.rng.random() < ACCURACY[k]) == self.truth[i]
            first = self.rng.random() < self.position[k] or opinion[i] == (item.shown_first == "a")
            verdicts.append(Verdict(item.pair, f"j{k}", item.shown_first, "first" if first else "second"))
        return Judged(f"j{k}", None, orders, verdicts)

    def _opinion(self, k: int) -> np.ndarray:
        return (self.rng.random(PAIRS) < ACCURACY[k]) == self.truth

    def errors(self, habits: Sequence) -> tuple[float, float]:
        """Largest errors of accuracy and position bias."""
        alpha, beta = self.position + (1 - self.position) * ACCURACY, (1 - self.position) * ACCURACY
        accuracy = [
            abs((h.alpha.value + h.beta.value) / 2 - t) for h, t in zip(habits, (alpha + beta) / 2, strict=True)
        ]
        return max(accuracy), max(abs(h.delta - t) for h, t in zip(habits, (alpha - beta) / 2, strict=True))


def figures(world: World, p_a: dict[str, float], habits: Sequence = ()) -> list[float]:
    """Right, log loss, error of accuracy, error of position bias."""
    w = np.array([p_a.get(pair.pair_id, 0.5) for pair in world.pairs])
    right = np.where(w == 0.5, 0.5, (w > 0.5) == world.truth).mean()
    loss = -np.log(np.where(world.truth, w, 1 - w).clip(1e-12)).mean()
    return [right, loss, *(world.errors(habits) if habits else (np.nan, np.nan))]


def one_world(seed: int, fresh: bool) -> dict[str, list[float]]:
    """The figures of every way."""
    world, rows = World(seed, fresh), {}
    one = [world.judged(k, "one") for k in range(6)]
    share = {pair.pair_id: [] for pair in world.pairs}
    for judged in one:
        for verdict in judged.verdicts:
            share[verdict.pair].append(verdict.sign)
    rows["one order: majority"] = figures(world, {p: 1 / (1 + np.exp(-float(sum(s)))) for p, s in share.items()})
    rows["one order: order not told"] = figures(world, believe(_with_votes(world, one), []).p_a)
    found = believe(world.pairs, one)
    rows["one order"] = figures(world, found.p_a, found.habits)
    both = [world.judged(k, "both") for k in range(6)]
    twice = believe(_with_votes(world, both, slots=True), [])
    rows["both orders: two rows"] = figures(world, twice.p_a, [habits_of(judged, twice.p_a) for judged in both])
    found = believe(world.pairs, both)
    rows["both orders: collapsed"] = figures(world, found.p_a, found.habits)
    return rows


def _with_votes(world: World, judged: Sequence[Judged], slots: bool = False) -> list[JudgedPair]:
    """Every verdict as a vote of its own, with the order shown or without."""
    votes: dict[str, list[Vote]] = {}
    for one in judged:
        for verdict in one.verdicts:
            first = {"a": 1, "b": -1}[verdict.shown_first] if slots else 0
            votes.setdefault(verdict.pair, []).append(Vote(one.name, verdict.sign, VoteDetails(shown_first=first)))
    return [replace(pair, votes=tuple(votes[pair.pair_id])) for pair in world.pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=100)
    parser.add_argument("--write", metavar="MD", help="document whose block 'judges' is replaced")
    args = parser.parse_args()
    rows = {}
    for fresh in (False, True):
        runs = [one_world(args.first_seed + seed, fresh) for seed in range(args.seeds)]
        for name in runs[0]:
            values = np.array([run[name] for run in runs])
            mean, error = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(runs))
            cells = [f"{m:.3f} ± {e:.3f}" if m == m else "–" for m, e in zip(mean, error, strict=True)]
            rows[f"{name}, {'fresh' if fresh else 'one opinion'}"] = cells
            print(name, fresh, *cells, flush=True)
    text = table("", ["right", "log loss", "error of accuracy", "error of δ"], rows)
    print(text)
    if args.write:
        replace_block(args.write, "judges", text)


if __name__ == "__main__":
    main()
