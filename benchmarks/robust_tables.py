"""Corrupted tables: Kendall's τ with the true order for the plain table, and for the one without distrusted entries.

    python benchmarks/robust_tables.py [--seeds 20]

Strengths N(0, 1), 100 comparisons a pair, some pairs never compared, the outcomes of some pairs turned around. Beside:
corrupted entries that are found, and honest ones that are accused (in how many tables).
"""

from __future__ import annotations

import argparse

import numpy as np

from nemo_rpo.ranking import Comparisons, RankSettings
from nemo_rpo.ranking.second_opinion.robust_table import SecondOpinion, second_opinion
from nemo_rpo.text_table import format_table

GAMES = 100


def table(seed: int, players: int, missing: float, corrupted: float) -> tuple[Comparisons, np.ndarray, set]:
    """Comparisons, the strengths, and the pairs that were turned around."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=players)
    low, high = np.triu_indices(players, 1)
    kept = rng.random(len(low)) >= missing
    low, high = low[kept], high[kept]
    turned = rng.permutation(len(low)) < round(corrupted * len(low))
    won = rng.binomial(GAMES, 1 / (1 + np.exp(strength[high] - strength[low])))
    won = np.where(turned, GAMES - won, won)
    outcome = np.where(np.arange(GAMES) < won[:, None], 1, -1).astype(np.int8).ravel()
    names = [f"player {i:03d}" for i in range(players)]
    nobody = np.zeros(len(outcome), dtype=np.int64)
    comparisons = Comparisons(names, np.repeat(low, GAMES), np.repeat(high, GAMES), outcome, ["all"], nobody)
    return comparisons, strength, set(zip(low[turned].tolist(), high[turned].tolist(), strict=True))


def kendall(names: list[str], ranks: list[int], strength: np.ndarray) -> float:
    rank = dict(zip(names, ranks, strict=True))
    order = np.array([rank[f"player {i:03d}"] for i in range(len(strength))])
    i, j = np.triu_indices(len(strength), 1)
    return float(np.mean(np.sign(order[j] - order[i]) * np.sign(strength[i] - strength[j])))


def accused(found: SecondOpinion) -> set:
    return {(int(entry.a.split()[1]), int(entry.b.split()[1])) for entry in found.distrusted}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    rows = []
    for players in (6, 10, 20, 60):
        for missing, corrupted in ((0.0, 0.0), (0.0, 0.1), (0.0, 0.2), (0.5, 0.1)):
            taus, caught, there, false = [], 0, 0, [0, 0]
            for seed in range(args.seeds):
                comparisons, strength, turned = table(1000 + seed, players, missing, corrupted)
                settings = RankSettings(tolerance=1e-8)
                both = [second_opinion(comparisons, settings, how) for how in ("strengths", "rank2")]
                named = [kendall(both[0].players, both[0].plain_ranks, strength)]
                named += [kendall(found.players, found.ranks, strength) for found in both]
                taus.append(named)
                caught, there = caught + len(accused(both[0]) & turned), there + len(turned)
                false = [n + bool(accused(found) - turned) for n, found in zip(false, both, strict=True)]
            means = np.mean(taus, 0)
            better = np.array(taus)[:, 1] - np.array(taus)[:, 0]
            error = 1.96 * better.std(ddof=1) / np.sqrt(len(better))
            rows.append([
                f"{players}", f"{missing:.0%}", f"{corrupted:.0%}", *(f"{mean:.3f}" for mean in means),
                f"{better.mean():+.3f} ± {error:.3f}", f"{caught} of {there}" if there else "",
                *(f"{n} of {args.seeds}" for n in false),
            ])  # fmt: skip
    header = ["players", "missing", "turned", "plain", "strengths", "rank 2", "strengths - plain", "found"]
    print(format_table([*header, "tables with an honest entry accused", "by rank 2"], rows))


if __name__ == "__main__":
    main()
