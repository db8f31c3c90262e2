"""What the probability beside a verdict is worth: judges who state one, calibrated and not, with it and without.

    python -m benchmarks.soft_verdicts [--seeds 5] [--write docs/loop.md]

Each of six judges sees z·m + noise of a pair whose truth is z = ±1 (m: his acuity), and states p = σ(c · log-odds of z
given that), c = 1 calibrated, 3 far too sure. Three judges a pair, 1,500 pairs. Prints the table of docs/loop.md.
"""

from __future__ import annotations

import argparse

import numpy as np

from benchmarks.markdown_table import replace_block, table
from nemo_rpo import estimate_reliability

PAIRS, VOTES = 1500, 3
ACUITY = (1.3, 1.0, 0.8, 0.6, 0.4, 0.1)


def draw(seed: int, sureness: tuple[float, ...]) -> tuple[list[dict], np.ndarray]:
    """Rows of votes with the probability that each states of its own side, and the truths ±1."""
    random = np.random.default_rng(seed)
    truth, rows = random.choice([-1, 1], PAIRS), []
    for pair in range(PAIRS):
        for k in random.choice(len(ACUITY), VOTES, replace=False):
            log_odds = 2 * ACUITY[k] * (truth[pair] * ACUITY[k] + random.normal())
            stated = 1 / (1 + np.exp(-sureness[k] * abs(log_odds)))
            rows.append(
                {"pair": pair, "annotator": f"j{k}", "vote": 1 if log_odds > 0 else -1, "probability": float(stated)}
            )
    return rows, truth


def judged(w: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Share of pairs whose likelier side is the truth (½ for a tie), and the log loss."""
    right = np.where(truth > 0, w, 1 - w).clip(1e-6, 1 - 1e-6)
    return float(((right > 0.5) + 0.5 * (right == 0.5)).mean()), float(-np.log(right).mean())


def measure(seed: int, sureness: tuple[float, ...]) -> dict[str, tuple[float, float]]:
    """Accuracy and log loss of each way to read the verdicts."""
    rows, truth = draw(seed, sureness)
    hard = [{name: row[name] for name in ("pair", "annotator", "vote")} for row in rows]
    mean = np.zeros(PAIRS)
    for row in rows:
        mean[row["pair"]] += (row["probability"] if row["vote"] > 0 else 1 - row["probability"]) / VOTES
    return {
        "majority": judged(np.bincount([r["pair"] for r in rows], [r["vote"] > 0 for r in rows]) / VOTES, truth),
        "mean of the stated p": judged(mean, truth),
        "label model, sides alone": judged(estimate_reliability(hard).pairs["first_better"], truth),
        "label model, with p": judged(estimate_reliability(rows).pairs["first_better"], truth),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    arguments = parser.parse_args()
    worlds = {"calibrated": (1.0,) * 6, "half of them far too sure": (1.0, 3.0) * 3}
    lines = {}
    for world, sureness in worlds.items():
        found = [measure(seed, sureness) for seed in range(arguments.seeds)]
        for way in found[0]:
            accuracy, loss = (np.array([of[way][i] for of in found]) for i in (0, 1))
            lines[f"{world}: {way}"] = [f"{x.mean():.3f} ± {x.std(ddof=1):.3f}" for x in (accuracy, loss)]
    text = table("judges: verdicts read as", ["pairs right", "log loss"], lines)
    print(text)
    if arguments.write:
        replace_block(arguments.write, "soft verdicts", text)


if __name__ == "__main__":
    main()
