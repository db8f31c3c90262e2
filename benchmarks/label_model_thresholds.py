"""Random crowds whose errors hang together, for choosing when the label model gives way to the majority.

    python benchmarks/label_model_thresholds.py [--worlds 160] [--seed 50000] [--save FILE] [--write FILE]

Worlds other than those of ``label_model.py``: 8 to 24 judges, mean logit skill .3 to 1.3, spread .3 to .8, 250 to 800
pairs, of which every judge votes on a half or all; a family of 3 judges to all of them (one world in four: none), drawn
at random, weakest or strongest, whose errors correlate by ρ in {.1, .2, .3, .45, .6, .8}.

Printed: for thresholds (spread of z, alone and by that of independent crowds; correlation of errors), the share of
worlds where what is reported is more than .01 below the majority, the mean gain over it, and how often the majority is
reported; and how often worlds are warned of.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from crowd_gold import accuracy
from label_model import World
from markdown_table import replace_block, table

from nemo_rpo.em import Votes
from nemo_rpo.em.label_model import LabelModelSettings, fit_label_model

# Ratio of the spread of z to that of independent crowds, spread, mean correlation of errors.
THRESHOLDS = (
    *((ratio, 1.15, 0.01) for ratio in (1.2, 1.3, 1.45, 1.6, 1.8)),
    *((1.45, spread, 0.01) for spread in (0.0, 1.3)),
    *((1.45, 1.15, correlation) for correlation in (0.004, 0.016)),
)


def draw(seed: int) -> tuple[World, dict[str, float]]:
    """A world and its description; ``rho`` 0 where judges err apart."""
    rng = np.random.default_rng(seed)
    judges, pairs = int(rng.integers(8, 25)), int(rng.integers(250, 801))
    eta = 1 / (1 + np.exp(-(rng.uniform(0.3, 1.3) + rng.uniform(0.3, 0.8) * rng.normal(size=judges))))
    size = int(rng.integers(3, judges + 1)) if rng.random() < 0.75 else 0
    rho = float(rng.choice([0.1, 0.2, 0.3, 0.45, 0.6, 0.8])) if size else 0.0
    kind = int(rng.integers(3))
    eta = eta if kind == 0 else np.sort(eta)[:: 1 if kind == 1 else -1]
    votes = judges if rng.random() < 0.5 else max(3, judges // 2)
    annotator = np.argsort(rng.random((pairs, judges)), 1)[:, :votes]
    truth = np.where(rng.random((pairs, 1)) < 0.5, 1, -1)
    shared = (annotator < size) & (rng.random(annotator.shape) < np.sqrt(rho))
    draws = np.where(shared, rng.random((pairs, 1)), rng.random(annotator.shape))
    sign = np.where(draws < eta[annotator], truth, -truth)
    world = World(
        Votes(torch.from_numpy(annotator), torch.from_numpy(sign)),
        judges,
        torch.from_numpy((truth[:, 0] > 0).astype(int)),
        None,
        torch.from_numpy(eta.copy()),
    )
    return world, {"judges": judges, "pairs": pairs, "votes": votes, "family": size, "rho": rho, "kind": kind}


def measure(seed: int, settings: LabelModelSettings) -> dict[str, float]:
    world, row = draw(seed)
    fit = fit_label_model(world.votes, world.annotators, settings=settings)
    found = fit.dependence
    low, high = fit.eta_interval.unbind(-1)
    row |= {
        "seed": seed,
        "spread": found.observed.spread,
        "spread_apart": found.expected.spread,
        "spread_error": found.error.spread,
        "largest": found.observed.largest,
        "block": found.observed.block,
        "block_apart": found.expected.block,
        "block_error": found.error.block,
        "correlation": found.observed.correlation,
        "correlation_apart": found.expected.correlation,
        "correlation_error": found.error.correlation,
        "apart": float(found.apart),
        "together": float(found.together),
        "model": accuracy(fit.estimates["label model"], world.gold),
        "majority": accuracy(fit.estimates["majority"], world.gold),
        "covered": ((low <= world.eta) & (world.eta <= high)).double().mean().item(),
        "width": (high - low).mean().item(),
        "upside_down": float(any(warned.guard == "upside_down" for warned in fit.warnings)),
        "below_half": float((world.eta < 0.5).double().mean()),
    }
    return row


def thresholds(rows: list[dict[str, float]]) -> str:
    """What thresholds would do; only worlds with shared errors, but for the last column."""
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    shared = columns["rho"] > 0
    lines = {}
    for ratio, spread, correlation in THRESHOLDS:
        gives_way = (
            (columns["spread"] > np.maximum(ratio * columns["spread_apart"], spread))
            & (columns["apart"] > 0)
            & (columns["correlation"] > correlation)
        )
        gain = np.where(gives_way, 0.0, columns["model"] - columns["majority"])
        lines[f"{ratio}, {spread}, {correlation}"] = [
            f"{(gain[shared] < -0.01).mean():.3f}",
            f"{gain[shared].min():+.3f}",
            f"{gain[shared].mean():+.4f}",
            f"{gives_way[shared].mean():.2f}",
            f"{gives_way[~shared].mean():.2f}",
        ]
    heads = ("below by more than .01", "worst", "mean gain", "majority reported", "of them that err apart")
    return table("ratio, spread, correlation", heads, lines)


def power(rows: list[dict[str, float]]) -> str:
    """Share of worlds that are warned of, by ρ and size of the family; and whether reliabilities lie in their intervals
    where nothing is warned of.
    """
    found = np.array([max(row["apart"], row["together"]) for row in rows])
    rho, covered = (np.array([row[name] for row in rows]) for name in ("rho", "covered"))
    share = np.array([row["family"] / row["judges"] for row in rows])
    sizes = ((0.0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.01))
    lines = {}
    for value in np.unique(rho):
        here = rho == value
        silent = here & (found == 0)
        lines[f"{value:.2f}"] = [
            _warned(found, here),
            *("–" if value == 0 else _warned(found, here & (low <= share) & (share < high)) for low, high in sizes),
            f"{covered[here].mean():.2f}",
            f"{covered[silent].mean():.2f}" if silent.any() else "–",
        ]
    strong = rho >= 0.3
    by_size = (_warned(found, strong & (low <= share) & (share < high)) for low, high in sizes)
    lines["0.30 and more"] = [_warned(found, strong), *by_size, f"{covered[strong].mean():.2f}", "–"]
    parts = ("under a third of the judges", "to two thirds", "more")
    return table("ρ", ("warned", *parts, "η covered, model kept", "of those not warned of"), lines)


def _warned(found: np.ndarray, here: np.ndarray) -> str:
    return f"{found[here].mean():.2f} of {here.sum()}" if here.any() else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=160)
    parser.add_argument("--seed", type=int, default=50_000)
    parser.add_argument("--save", help="CSV of every world; a run goes on from it")
    parser.add_argument("--write", help="replace the blocks in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # The model is always kept, so that both estimates of every world are seen.
    settings = replace(LabelModelSettings(), outweighing_spread=1e9)
    rows = []
    if arguments.save and Path(arguments.save).exists():
        with open(arguments.save, newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    done = {int(row["seed"]) for row in rows}
    for seed in range(arguments.seed, arguments.seed + arguments.worlds):
        if seed in done:
            continue
        rows.append(measure(seed, settings))
        if arguments.save:
            with open(arguments.save, "w", newline="") as file:
                writer = csv.DictWriter(file, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)
    for name, text in (("thresholds", thresholds(rows)), ("random worlds", power(rows))):
        print(f"{text}\n")
        if arguments.write:
            replace_block(arguments.write, name, text)


if __name__ == "__main__":
    main()
