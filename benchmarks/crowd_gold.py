"""Labels of crowds against gold answers: the one-coin EM of this package beside majority and crowd-kit.

    python benchmarks/crowd_gold.py [folder with <set>_label.csv and <set>_truth.csv]

Labels only, no policy. Needs crowd-kit (pip install 'nemo-rpo[crowd]'); without it its two columns stay empty.
"""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import torch

from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.baselines import crowd_kit_frame, dawid_skene, majority, one_coin
from nemo_rpo.errors import MissingExtraError

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


def compare(folder: Path, name: str) -> str:
    votes, workers, gold = read_crowd(folder, name)
    settings = EMSettings()
    columns = [
        accuracy(majority(votes, workers).w, gold),
        accuracy(one_coin(votes, workers, settings).w, gold),
        accuracy(one_coin(votes, workers, settings, learn_share=True).w, gold),
    ]
    try:
        columns += [accuracy(crowd_kit_one_coin(votes), gold), accuracy(dawid_skene(votes, workers).w, gold)]
    except MissingExtraError:
        columns += [float("nan"), float("nan")]
    return f"{name:12s}" + "".join(f"{column:12.3f}" for column in columns)


def main() -> None:
    default = Path(os.environ.get("NEMO_RPO_DATA", "../shared/data")) / "crowd_gold"
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    heads = ("majority", "one-coin", "+ prior", "ck 1-coin", "ck DS")
    print(" " * 12 + "".join(f"{head:>12s}" for head in heads))
    for name in SETS:
        print(compare(folder, name), flush=True)


if __name__ == "__main__":
    main()
