"""Time of a Bradley-Terry fit and of its intervals at the size of a large arena.

    python benchmarks/ranking_scale.py [--comparisons 1000000] [--players 10000] [--ties 0.1]

Strengths N(0, 1), opponents drawn at random. Prints the seconds for each step, and how well the strengths come back.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from nemo_rpo.ranking import Comparisons, RankSettings, Schedule, bradley_terry, leaderboard
from nemo_rpo.ranking.fitting import plain_results


def draw(comparisons: int, players: int, ties: float) -> tuple[Comparisons, np.ndarray]:
    rng = np.random.default_rng(0)
    strength = rng.normal(size=players)
    first = rng.integers(players, size=comparisons)
    second = (first + rng.integers(1, players, size=comparisons)) % players
    first_wins = rng.random(comparisons) < 1 / (1 + np.exp(strength[second] - strength[first]))
    outcome = np.where(rng.random(comparisons) < ties, 0, np.where(first_wins, 1, -1)).astype(np.int8)
    names = [f"player {i:06d}" for i in range(players)]
    return Comparisons(names, first, second, outcome, ["all"], np.zeros(comparisons, dtype=np.int64)), strength


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1_000_000)
    parser.add_argument("--players", type=int, default=10_000)
    parser.add_argument("--ties", type=float, default=0.1, help="share of ties")
    args = parser.parse_args()
    comparisons, truth = draw(args.comparisons, args.players, args.ties)
    settings = RankSettings()
    began = time.perf_counter()
    schedule = Schedule(comparisons.first, comparisons.second, args.players)
    scheduled = time.perf_counter()
    found = bradley_terry(schedule, plain_results(comparisons, schedule, settings), settings)
    done = time.perf_counter()
    print(f"{args.comparisons:,} comparisons of {args.players:,} players, {args.ties:.0%} ties")
    print(f"schedule ({len(schedule.classes)} classes)  {scheduled - began:6.2f} s")
    print(f"fit ({found.iterations} iterations)       {done - scheduled:6.2f} s")
    print(f"together                  {done - began:6.2f} s")
    cpu = time.process_time()
    leaderboard(comparisons, settings)
    print(f"leaderboard with {settings.bootstrap} resamples {time.process_time() - cpu:6.2f} s of a CPU")
    print(f"correlation with the true strengths {np.corrcoef(found.log_strength, truth)[0, 1]:.4f}")


if __name__ == "__main__":
    main()
