"""Corrupted tables, and tables that strengths explain badly everywhere, which nobody has corrupted.

    python benchmarks/robust_tables.py turned|misfit|choosing [--seeds 20]

``turned``: strengths N(0, 1), 100 comparisons a pair, some pairs never compared, the outcomes of some pairs turned
around; Kendall's τ with the true order for the plain table and for the one without distrusted entries, corrupted
entries that are found, and honest ones that are accused (in how many tables).

``misfit``: 1,000 comparisons a pair, whose log-odds are a difference of strengths plus something of root mean square
*size*: a number of every pair's own; a rank-2 table of normal numbers (two tastes); the sine between places on a
circle; a smooth function of two places in a plane; a number for every two of four kinds of players. In how many tables
an entry is named though nothing was turned around, how many on average, and what is found where a tenth is turned.

``choosing``: the worlds on which the constants of nemo_rpo/ranking/second_opinion/explanations.py were chosen.
"""

from __future__ import annotations

import argparse

import numpy as np

from nemo_rpo.ranking import Comparisons, RankSettings
from nemo_rpo.ranking.pair_table import PairTable
from nemo_rpo.ranking.second_opinion.explanations import explain
from nemo_rpo.ranking.second_opinion.robust_table import SecondOpinion, second_opinion
from nemo_rpo.text_table import format_table

GAMES, MANY_GAMES = 100, 1000


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


def interaction(rng: np.random.Generator, kind: str, players: int) -> np.ndarray:
    """What strengths do not explain, skew-symmetric [N, N], of root mean square about 1."""
    if kind == "each pair":
        free = rng.normal(size=(players, players))
        return np.triu(free, 1) - np.triu(free, 1).T
    if kind == "rank 2":
        u, v = rng.normal(size=(2, players))
        return (np.outer(u, v) - np.outer(v, u)) / np.sqrt(2)
    if kind == "circle":
        angle = rng.uniform(0, 2 * np.pi, players)
        return np.sqrt(2) * np.sin(angle[:, None] - angle)
    if kind == "smooth":
        place, wave, phase = rng.normal(size=(players, 2)), rng.normal(size=(200, 2)), rng.uniform(0, 2 * np.pi, 200)
        features, free = np.cos(place @ wave.T + phase), rng.normal(size=(200, 200))
        return features @ (free - free.T) @ features.T * np.sqrt(2) / 200
    of, free = rng.integers(4, size=players), rng.normal(size=(4, 4))
    return (free - free.T)[of][:, of] / np.sqrt(2)


def named(seed: list[int], kind: str, players: int, games: int, size: float, turned: float) -> np.ndarray:
    """Honest entries named, turned ones named, turned ones; int [3]."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=players)
    odds = strength[:, None] - strength + size * interaction(rng, kind, players)
    low, high = np.triu_indices(players, 1)
    wrong = rng.permutation(len(low)) < round(turned * len(low))
    won = rng.binomial(games, 1 / (1 + np.exp(-odds[low, high])))
    won = np.where(wrong, games - won, won).astype(float)
    pairs = PairTable(low, high, won, games - won, np.zeros(len(low)), np.arange(len(low)))
    found = explain(low, high, *pairs.logits(), players, "strengths").corrupted
    return np.array([(found & ~wrong).sum(), (found & wrong).sum(), wrong.sum()])


def misfits(cases: list[tuple[str, int, int, float]], seeds: int, first: int) -> str:
    rows = []
    for kind, players, games, size in cases:
        honest, turned = (
            np.array([named([first, i, players], kind, players, games, size, share) for i in range(seeds)])
            for share in (0.0, 0.1)
        )
        rows.append([
            kind if size else "none", f"{players}", f"{games:,}", f"{size:g}", f"{(honest[:, 0] > 0).sum()} of {seeds}",
            f"{honest[:, 0].mean():.2f} of {players * (players - 1) // 2}",
            f"{turned[:, 1].sum():,} of {turned[:, 2].sum():,}", f"{(turned[:, 0] > 0).sum()} of {seeds}",
        ])  # fmt: skip
    header = ["misfit", "players", "comparisons", "size", "tables with a name", "entries", "found of a tenth turned"]
    return format_table([*header, "honest entry accused"], rows)


def turned_tables(seeds: int) -> str:
    rows = []
    for players in (6, 10, 20, 60):
        for missing, corrupted in ((0.0, 0.0), (0.0, 0.1), (0.0, 0.2), (0.5, 0.1)):
            taus, caught, there, false = [], 0, 0, [0, 0]
            for seed in range(seeds):
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
                *(f"{n} of {seeds}" for n in false),
            ])  # fmt: skip
    header = ["players", "missing", "turned", "plain", "strengths", "rank 2", "strengths - plain", "found"]
    return format_table([*header, "honest entry accused", "by rank 2"], rows)


KINDS = ("each pair", "rank 2", "circle", "smooth", "four kinds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("turned", "misfit", "choosing"))
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    if args.what == "turned":
        print(turned_tables(args.seeds))
    elif args.what == "misfit":
        cases = [("each pair", players, MANY_GAMES, 0.0) for players in (7, 12, 25)]
        cases += [(kind, 12, MANY_GAMES, size) for kind in KINDS for size in (0.25, 1.0)]
        cases += [(kind, players, MANY_GAMES, 0.4) for players in (7, 25) for kind in KINDS]
        print(misfits(cases, args.seeds, 9))
    else:
        cases = [(kind, players, MANY_GAMES, 0.5) for kind in KINDS for players in (6, 10, 20)]
        cases += [(kind, 10, GAMES, size) for kind in KINDS for size in (0.0, 0.3, 0.6)]
        print(misfits(cases, args.seeds, 2))


if __name__ == "__main__":
    main()
