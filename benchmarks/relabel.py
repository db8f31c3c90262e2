"""Labels bought where they are expected to say most, against labels bought at random.

    python benchmarks/relabel.py [--seeds 5] [--write docs/annotators.md]

A crowd labels 600 pairs three times each; then 60, 120 or 240 further labels are bought: as ``nemo-rpo annotators
--next`` chooses them, of random pairs and annotators, and of the most doubtful pairs by random annotators. The new
votes are drawn from the same annotators, and the label model is fitted again. *Found* is the share of bought labels
whose pair was labelled wrong before, *put right* the pairs that the model had wrong before and right after, less those
that it lost, by label bought. Means over seeds ± 1.96 standard errors.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from markdown_table import replace_block, table

from nemo_rpo.crowd.buying import next_labels
from nemo_rpo.crowd.crowd_fit import CrowdFit, fit_crowd
from nemo_rpo.crowd.long_form import vote_table

PAIRS, ANNOTATORS, VOTES = 600, 30, 3
BOUGHT = (60, 120, 240)
Choice = Callable[[CrowdFit, int, np.random.Generator], list[tuple[int, int]]]


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Care [K], truths [n], votes [n, K] of everybody on everything."""
    care = np.concatenate([rng.uniform(0.75, 0.95, ANNOTATORS - 8), rng.uniform(0.5, 0.65, 8)])
    truth = rng.random(PAIRS) < 0.5
    says = np.where(rng.random((PAIRS, ANNOTATORS)) < care, truth[:, None], ~truth[:, None])
    return care, truth, says


def fitted(cast: list[tuple[int, int]], says: np.ndarray) -> CrowdFit:
    """The label model of the votes ``cast`` (pair and annotator)."""
    pair, annotator = np.array(cast).T
    columns = {
        "pair": pair.tolist(),
        "annotator": [f"{k:02}" for k in annotator],
        "vote": says[pair, annotator].tolist(),
    }
    return fit_crowd(vote_table(columns, {name: name for name in columns}))


def by_information(fit: CrowdFit, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """What ``--next`` buys; annotators who are surely careless are not asked."""
    bought = next_labels(fit, number, ~(fit.high < 0.7))
    return [(int(label.pair_id), int(label.annotator)) for label in bought]


def at_random(fit: CrowdFit, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Random pairs, random annotators."""
    return _asked(rng.permutation(PAIRS)[:number], rng)


def most_doubtful(fit: CrowdFit, number: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The pairs nearest ½, random annotators."""
    doubtful = np.argsort(np.abs(fit.w - 0.5), kind="stable")[:number]
    return _asked(np.array([int(fit.table.pair_id[i]) for i in doubtful]), rng)


def _asked(pairs: np.ndarray, rng: np.random.Generator) -> list[tuple[int, int]]:
    return list(zip(pairs.tolist(), rng.integers(ANNOTATORS, size=len(pairs)).tolist(), strict=True))


CHOICES: dict[str, Choice] = {"--next": by_information, "random": at_random, "most doubtful, anybody": most_doubtful}


def right(fit: CrowdFit, truth: np.ndarray) -> np.ndarray:
    """Whether the model has each pair right, bool [n] by pair number."""
    found = np.zeros(PAIRS, dtype=bool)
    order = np.array([int(name) for name in fit.table.pair_id])
    found[order] = (fit.w > 0.5) == truth[order]
    return found


def measure(seed: int) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Found, put right and the share of right labels after, by choice and number."""
    rng = np.random.default_rng(seed)
    _, truth, says = draw(rng)
    cast = [(i, int(k)) for i in range(PAIRS) for k in rng.choice(ANNOTATORS, VOTES, replace=False)]
    fit = fitted(cast, says)
    before, rows = right(fit, truth), {}
    for name, choose in CHOICES.items():
        for number in BOUGHT:
            bought = choose(fit, number, rng)
            after = right(fitted(cast + [vote for vote in bought if vote not in set(cast)], says), truth)
            found = np.mean([not before[i] for i, _ in bought])
            rows[name, number] = float(found), float((after.sum() - before.sum()) / len(bought)), float(after.mean())
    return rows


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="replace the table in this file")
    args = parser.parse_args()
    runs = [measure(100 + seed) for seed in range(args.seeds)]
    rows = {}
    for number in BOUGHT:
        for name in CHOICES:
            values = np.array([run[name, number] for run in runs])
            error = 1.96 * values.std(0, ddof=1) / np.sqrt(len(values))
            cells = [f"{m:.3f} ± {e:.3f}" for m, e in zip(values.mean(0), error, strict=True)]
            rows[f"{number}, {name}"] = cells
    text = table("labels bought, chosen by", ["wrong pairs found a label", "put right a label", "right after"], rows)
    print(text)
    if args.write:
        replace_block(args.write, "relabel", text)


if __name__ == "__main__":
    main()
