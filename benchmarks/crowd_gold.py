"""Labels of crowds against gold answers: the one-coin EM of this package beside majority and crowd-kit.

    python benchmarks/crowd_gold.py [--data FOLDER] [--write docs/estimators.md]

FOLDER holds <set>_label.csv and <set>_truth.csv of each set. Labels only, no policy; printed is the share of gold
answers found. Needs crowd-kit (pip install 'nemo-rpo[crowd]'); without it its two columns stay empty.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import torch
from markdown_table import replace_block, table

from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.fit.baselines import crowd_kit_frame, dawid_skene, majority, one_coin
from nemo_rpo.errors import MissingExtraError

HEADS = ("majority", "one-coin EM", "with class prior", "crowd-kit one-coin", "crowd-kit Dawid-Skene")
SETS = ("rte", "sp", "product", "d_sentiment", "bluebird")


def read_crowd(folder: Path, name: str) -> tuple[Votes, int, torch.Tensor]:
    """Votes [items, V] (+1 class 1, -1 class 0), number of workers, and gold [items] (1, 0, or -1 where unknown)."""
    items: dict[str, int] = {}
    workers: dict[str, int] = {}
    labels: list[list[tuple[int, int]]] = []
    with open(folder / f"{name}_label.csv", newline="") as file:
        for row in csv.DictReader(file):
            item = items.setdefault(row["item"], len(items))
            if item == len(labels):
                labels.append([])
            labels[item].append((workers.setdefault(row["worker"], len(workers)), 1 if row["label"] == "1" else -1))
    width = max(map(len, labels))
    padded = torch.tensor([votes + [(0, 0)] * (width - len(votes)) for votes in labels])
    gold = torch.full((len(items),), -1)
    with open(folder / f"{name}_truth.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["item"] in items:
                gold[items[row["item"]]] = int(row["truth"])
    return Votes(padded[..., 0], padded[..., 1]), len(workers), gold


def accuracy(w: torch.Tensor, gold: torch.Tensor) -> float:
    """Share of gold items answered right; a posterior of exactly ½ is half an answer."""
    known = gold >= 0
    right = torch.where(gold[known] == 1, w[known], 1 - w[known])
    return torch.where(right == 0.5, 0.5, (right > 0.5).double()).mean().item()


def crowd_kit_one_coin(votes: Votes) -> torch.Tensor:
    """crowd-kit's one-coin Dawid-Skene: probability of class 1 [items]."""
    frame = crowd_kit_frame(votes)
    from crowdkit.aggregation import OneCoinDawidSkene

    probabilities = OneCoinDawidSkene(n_iter=100).fit_predict_proba(frame).sort_index()
    return torch.tensor(probabilities[True].fillna(0.0).to_numpy())


def compare(folder: Path, name: str) -> list[str]:
    votes, workers, gold = read_crowd(folder, name)
    settings = EMSettings()
    found = [
        accuracy(majority(votes, workers).w, gold),
        accuracy(one_coin(votes, workers, settings).w, gold),
        accuracy(one_coin(votes, workers, settings, learn_share=True).w, gold),
    ]
    try:
        found += [accuracy(crowd_kit_one_coin(votes), gold), accuracy(dawid_skene(votes, workers).w, gold)]
    except MissingExtraError:
        pass
    return [f"{share:.3f}" for share in found] + ["–"] * (len(HEADS) - len(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("NEMO_RPO_DATA", "../shared/data")) / "crowd_gold"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    arguments = parser.parse_args()
    text = table("set", HEADS, {name: compare(arguments.data, name) for name in SETS})
    print(text)
    if arguments.write:
        replace_block(arguments.write, "crowds with gold", text)


if __name__ == "__main__":
    main()
