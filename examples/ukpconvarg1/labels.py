"""Are the labels that training believes righter than those of an EM that knows no model?

    python labels.py --run RUN --train OUT/train.jsonl

Share of the gold labels of the training pairs that are found by the posteriors a run ended with
(``posteriors.parquet``), and by the one-coin EM on the same votes alone.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.baselines import one_coin


def label_accuracy(posteriors: Path, train: Path) -> dict[str, float]:
    """``posterior`` and ``one_coin``: shares of gold labels found; an undecided pair is half found."""
    rows = pq.read_table(posteriors, columns=["pair_id", "annotator", "sign", "w_last"]).to_pylist()
    said, gold = read_votes(train)
    pairs, workers = ({name: i for i, name in enumerate(dict.fromkeys(column))} for column in _columns(rows))
    first_is_better = np.full(len(pairs), np.nan)
    votes: list[list[tuple[int, int]]] = [[] for _ in pairs]
    for row in rows:
        i, vote = pairs[row["pair_id"]], said[row["pair_id"], row["annotator"]]
        first_is_better[i] = row["w_last"] if vote == "a" else 1 - row["w_last"]
        votes[i].append((workers[row["annotator"]], 1 if vote == "a" else -1))
    width = max(map(len, votes))
    padded = torch.tensor([labels + [(0, 0)] * (width - len(labels)) for labels in votes])
    found = one_coin(Votes(padded[..., 0], padded[..., 1]), len(workers), EMSettings()).w.numpy()
    truth = np.array([{"a": 1.0, "b": 0.0}.get(gold.get(name), np.nan) for name in pairs])
    return {"posterior": _share(first_is_better, truth), "one_coin": _share(found, truth)}


def read_votes(train: Path) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """{(pair, annotator): vote} and {pair: gold} of a file in the ``votes`` layout."""
    with train.open(encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    said = {(pair["pair_id"], vote["annotator"]): vote["vote"] for pair in pairs for vote in pair["votes"]}
    return said, {pair["pair_id"]: pair["gold"] for pair in pairs if pair.get("gold")}


def _columns(rows: list[dict]) -> tuple[list[str], list[str]]:
    return [row["pair_id"] for row in rows], [row["annotator"] for row in rows]


def _share(first_is_better: np.ndarray, truth: np.ndarray) -> float:
    known = ~np.isnan(truth)
    guess = np.where(first_is_better == 0.5, 0.5, first_is_better > 0.5)[known]
    return float(np.mean(np.where(truth[known] == 1, guess, 1 - guess)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    args = parser.parse_args()
    for name, share in label_accuracy(args.run / "posteriors.parquet", args.train).items():
        print(f"{name:10s} {share:.3f}")


if __name__ == "__main__":
    main()
