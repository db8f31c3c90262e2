"""Time of a Bradley-Terry fit and of its intervals at the size of a large arena.

    python benchmarks/ranking_scale.py [--comparisons 1000000] [--players 10000] [--ties 0.1] [--judges 100]

Strengths N(0, 1), opponents drawn at random. Prints the seconds for each step, and how well the strengths come back.
With ``--judges``, as many of them, right with probability .6 to .95, and the leaderboard that weighs what they say.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from nemo_rpo.ranking import Comparisons, RankSettings, Schedule, bradley_terry, leaderboard
from nemo_rpo.ranking.fitting import plain_results


def draw(comparisons: int, players: int, ties: float, judges: int) -> tuple[Comparisons, np.ndarray]:
    rng = np.random.default_rng(0)
    strength = rng.normal(size=players)
    first = rng.integers(players, size=comparisons)
    second = (first + rng.integers(1, players, size=comparisons)) % players
    first_wins = rng.random(comparisons) < 1 / (1 + np.exp(strength[second] - strength[first]))
    outcome = np.where(rng.random(comparisons) < ties, 0, np.where(first_wins, 1, -1)).astype(np.int8)
    names = [f"player {i:06d}" for i in range(players)]
    if not judges:
        return Comparisons(names, first, second, outcome, ["all"], np.zeros(comparisons, dtype=np.int64)), strength
    care, judge = rng.uniform(0.6, 0.95, judges), rng.integers(judges, size=comparisons)
    said = np.where(rng.random(comparisons) < care[judge], outcome, -outcome).astype(np.int8)
    return Comparisons(names, first, second, said, [f"judge {k:04d}" for k in range(judges)], judge), strength


def board(comparisons: Comparisons, settings: RankSettings) -> None:
    cpu = time.process_time()
    leaderboard(comparisons, settings)
    print(f"leaderboard with {settings.bootstrap} resamples {time.process_time() - cpu:6.2f} s of a CPU")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparisons", type=int, default=1_000_000)
    parser.add_argument("--players", type=int, default=10_000)
    parser.add_argument("--ties", type=float, default=0.1, help="share of ties")
    parser.add_argument("--judges", type=int, default=0, help="who say it; 0: nobody by name, and nobody errs")
    args = parser.parse_args()
    comparisons, truth = draw(args.comparisons, args.players, args.ties, args.judges)
    settings = RankSettings(crowd_bt=args.judges > 0)
    if args.judges:
        return board(comparisons, settings)
    began = time.perf_counter()
    schedule = Schedule(comparisons.first, comparisons.second, args.players)
    scheduled = time.perf_counter()
    found = bradley_terry(schedule, plain_results(comparisons, schedule, settings), settings)
    done = time.perf_counter()
    print(f"{args.comparisons:,} comparisons of {args.players:,} players, {args.ties:.0%} ties")
    print(f"schedule ({len(schedule.classes)} classes)  {scheduled - began:6.2f} s")
    print(f"fit ({found.iterations} iterations)       {done - scheduled:6.2f} s")
    print(f"together                  {done - began:6.2f} s")
    board(comparisons, settings)
    print(f"correlation with the true strengths {np.corrcoef(found.log_strength, truth)[0, 1]:.4f}")


if __name__ == "__main__":
    main()
