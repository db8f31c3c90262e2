"""How many judgements an interval takes: planned ones against all pairs alike.

    python benchmarks/judgements.py [--seeds 20] [--interval 0.8]

Strengths N(0, spread²). Both ways begin with two judgements of every pair. The planned one has a fifth of what is still
missing judged at a time (at least 20 judgements), fits again and plans again, until no 95 % interval of a score against
the mean exceeds the wanted width; the other one has all pairs judged in turn until the same holds. At the end:
judgements, and how many intervals hold the truth.
"""

from __future__ import annotations

import argparse
from statistics import NormalDist

import numpy as np

from nemo_rpo.ranking import Comparisons, RankSettings, fit
from nemo_rpo.ranking.next_judgements import _known, next_judgements
from nemo_rpo.text_table import format_table

Z = NormalDist().inv_cdf(0.975)
SETTINGS = RankSettings(tolerance=1e-8)


class World:
    """Players with strengths, and the judgements of them so far."""

    def __init__(self, seed: int, players: int, spread: float) -> None:
        self._rng = np.random.default_rng(seed)
        self.strength = spread * self._rng.normal(size=players)
        self._first, self._second, self._won = (np.zeros(0, dtype=np.int64) for _ in range(3))
        low, high = np.triu_indices(players, 1)
        self.pairs = low, high
        self.judge(np.repeat(low, 2), np.repeat(high, 2))

    def judge(self, first: np.ndarray, second: np.ndarray) -> None:
        p = 1 / (1 + np.exp(self.strength[second] - self.strength[first]))
        self._first, self._second = np.r_[self._first, first], np.r_[self._second, second]
        self._won = np.r_[self._won, np.where(self._rng.random(len(p)) < p, 1, -1)]

    def comparisons(self) -> Comparisons:
        names = [f"{i:03d}" for i in range(len(self.strength))]
        nobody = np.zeros(len(self._won), dtype=np.int64)
        return Comparisons(names, self._first, self._second, self._won.astype(np.int8), ["all"], nobody)

    def state(self) -> tuple[int, float, float]:
        """Judgements, the widest interval, and the share of intervals that hold the truth."""
        comparisons = self.comparisons()
        score = fit(comparisons, SETTINGS).strengths.log_strength
        reach = Z * np.sqrt(np.diag(_known(comparisons, SETTINGS)[1]))
        apart = score - score.mean() - (self.strength - self.strength.mean())
        return len(comparisons), float(2 * reach.max()), float((np.abs(apart) <= reach).mean())


def planned(world: World, width: float) -> tuple[int, float]:
    while (state := world.state())[1] > width:
        plan = next_judgements(world.comparisons(), SETTINGS, width)
        names = np.array([(int(pair.a), int(pair.b)) for pair in plan.pairs for _ in range(pair.judgements)])
        part = names[world._rng.permutation(len(names))[: max(20, len(names) // 5)]]
        world.judge(part[:, 0], part[:, 1])
    return state[0], state[2]


def round_robin(world: World, width: float) -> tuple[int, float]:
    while (state := world.state())[1] > width:
        world.judge(*world.pairs)
    return state[0], state[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--interval", type=float, default=0.8)
    args = parser.parse_args()
    rows = []
    for players in (5, 10, 20):
        for spread in (0.5, 1.0, 2.0):
            found = []
            for seed in range(args.seeds):
                worlds = (World(500 + seed, players, spread) for _ in range(2))
                found.append([*planned(next(worlds), args.interval), *round_robin(next(worlds), args.interval)])
            ours, ours_hold, theirs, theirs_hold = np.array(found).T
            saved = 1 - ours / theirs
            error = 1.96 * saved.std(ddof=1) / np.sqrt(len(saved))
            rows.append([
                f"{players}", f"{spread:g}", f"{ours.mean():,.0f}", f"{theirs.mean():,.0f}",
                f"{saved.mean():.0%} ± {error:.0%}", f"{(ours < theirs).sum()} of {len(saved)}",
                f"{ours_hold.mean():.3f}", f"{theirs_hold.mean():.3f}",
            ])  # fmt: skip
    header = ["players", "spread", "planned", "all pairs alike", "saved", "fewer", "planned: intervals hold", "alike"]
    print(format_table(header, rows))


if __name__ == "__main__":
    main()
