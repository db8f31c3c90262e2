"""Strengths over time at the size of a large arena, and on small worlds with a known answer.

    python benchmarks/ranks_over_time.py scale [--comparisons 1000000] [--players 10000] [--slices 1000]
    python benchmarks/ranks_over_time.py worlds [--seeds 40]

``scale`` prints the seconds of a core. ``worlds``: 8 players, 30 slices, 3,000 comparisons; the walk of the world, the
walk that is found, how often the log Bayes factor passes 3, how many of the 95 % intervals hold the true strength
against the field, how often "better" or "worse" is said and is right, and the error against that of the static table.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from nemo_rpo.ranking import Comparisons, RankSettings, fit
from nemo_rpo.ranking.over_time.history import History, ranks_over_time
from nemo_rpo.ranking.over_time.over_time_settings import OverTimeSettings
from nemo_rpo.text_table import format_table

PLAYERS, SLICES, GAMES = 8, 30, 3000


def world(seed: int, walk: float, players: int, slices: int, games: int) -> tuple[Comparisons, np.ndarray]:
    """Comparisons, and the strengths [players, slices] behind them."""
    rng = np.random.default_rng(seed)
    steps = walk * rng.normal(size=(players, slices))
    steps[:, 0] = rng.normal(size=players)
    strength = np.cumsum(steps, 1)
    at, first = rng.integers(slices, size=games), rng.integers(players, size=games)
    second = (first + rng.integers(1, players, size=games)) % players
    won = rng.random(games) < 1 / (1 + np.exp(strength[second, at] - strength[first, at]))
    names, outcome = [f"player {i:06d}" for i in range(players)], np.where(won, 1, -1).astype(np.int8)
    nobody = np.zeros(games, dtype=np.int64)
    return Comparisons(names, first, second, outcome, ["all"], nobody, time=at + 0.5), strength


def followed(history: History, strength: np.ndarray) -> tuple[list[bool], list[tuple[str, float]], float]:
    """Whether intervals hold the truth; what is said of each player's change, and the true one; root mean square error
    in the last slice. All against the field's mean."""
    truth = strength - strength.mean(0)
    found, ends = np.empty_like(truth), history.begin + (np.arange(truth.shape[1]) + 0.5) * history.width
    for player in history.players:
        found[int(player.player.split()[1])] = np.interp(ends, player.time, player.strength)
    field = found.mean(0)
    inside, said = [], []
    for player in history.players:
        at = np.round((np.array(player.time) - history.begin) / history.width - 0.5).astype(int)
        true = truth[int(player.player.split()[1]), at]
        low, high = (np.array(x) - field[at] for x in (player.strength_low, player.strength_high))
        inside += list((low <= true) & (true <= high))
        said.append((player.moved, true[-1] - true[0]))
    error = found[:, -1] - field[-1] - truth[:, -1]
    return inside, said, float(np.sqrt((error**2).mean()))


def worlds(seeds: int) -> None:
    rows = []
    for walk in (0.0, 0.02, 0.05, 0.1, 0.2):
        scales, alarms, inside, said, errors, static = [], [], [], [], [], []
        for seed in range(seeds):
            comparisons, strength = world(seed, walk, PLAYERS, SLICES, GAMES)
            history = ranks_over_time(comparisons, RankSettings(), OverTimeSettings(width="1"))
            one = followed(history, strength)
            scales.append(history.walk)
            alarms.append(history.evidence > 3)
            inside += one[0]
            said += one[1] if history.evidence > 3 else [("", change) for _, change in one[1]]
            errors.append(one[2])
            still = fit(comparisons, RankSettings()).strengths.log_strength
            truth = strength[:, -1] - strength[:, -1].mean()
            static.append(float(np.sqrt(((still - still.mean() - truth) ** 2).mean())))
        spoken = [(word == "better") == (change > 0) for word, change in said if word]
        low, middle, high = np.quantile(scales, (0.1, 0.5, 0.9))
        rows.append([
            f"{walk:g}", f"{middle:.3f} ({low:.3f} to {high:.3f})", f"{sum(alarms)} of {seeds}",
            f"{np.mean(inside):.3f}", f"{len(spoken)} of {len(said)}", f"{np.mean(spoken):.3f}" if spoken else "",
            f"{np.mean(errors):.3f}", f"{np.mean(static):.3f}",
        ])  # fmt: skip
    header = [
        "walk",
        "found (10 % to 90 %)",
        "factor > 3",
        "intervals",
        "said to move",
        "right",
        "error",
        "static",
    ]
    print(format_table(header, rows))


def scale(games: int, players: int, slices: int) -> None:
    comparisons, strength = world(0, 0.05, players, slices, games)
    for walk in (0.05, None):
        cpu, began = time.process_time(), time.perf_counter()
        history = ranks_over_time(comparisons, RankSettings(), OverTimeSettings(width="1", walk=walk))
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        what = "walk of .05 given" if walk else f"walk found ({history.walk:.4f}, factor {history.evidence:,.0f})"
        now = {int(player.player.split()[1]): player for player in history.players}
        scores, truth = [player.score for player in now.values()], [strength[i, -1] for i in now]
        inside = [player.low <= strength[i, -1] <= player.high for i, player in now.items()]
        states = sum(len(player.time) for player in history.players)
        print(
            f"{games:,} comparisons, {players:,} players, {slices:,} slices, {states:,} states: {seconds:.1f} s, "
            f"{cpu:.1f} s of a CPU, {what}; correlation with the last strengths {np.corrcoef(scores, truth)[0, 1]:.3f}, "
            f"intervals hold {np.mean(inside):.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scale", "worlds"))
    parser.add_argument("--comparisons", type=int, default=1_000_000)
    parser.add_argument("--players", type=int, default=10_000)
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=40)
    args = parser.parse_args()
    if args.what == "scale":
        scale(args.comparisons, args.players, args.slices)
    else:
        worlds(args.seeds)


if __name__ == "__main__":
    main()
