"""Are the labels that training believes righter than those of an EM that knows no model?

    python labels.py --run RUN --train OUT/train.jsonl

Prints which share of the training pairs' gold labels is found by

    posterior        what the run ended with (posteriors.parquet)
    one_coin         the one-coin EM on the same votes, without a model
    one_coin_fitted  the same, under a prior fitted to the workers as ``estimator: buffer`` fits it
    majority         most votes
    anchors          the label model that is told the gold labels of 40 pairs, of the others

and on how many pairs the first is right where each EM without a model is wrong, and the reverse, with McNemar's test.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from nemo_rpo.em import BufferSettings, EMSettings, Votes, estimate, posterior
from nemo_rpo.em.fit.baselines import one_coin
from nemo_rpo.em.label_model import fit_label_model
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.reported import MODEL

BASELINES = ("one_coin", "one_coin_fitted")
ANCHORS = 40


class Labelled(NamedTuple):
    """Training pairs as a run left them.

    Attributes:
        votes: signed labels [P, V] of ``workers`` workers.
        w: posterior that chosen is better [P].
        gold: [P], +1 chosen, -1 rejected, 0 unknown, or of a pair that the run has not seen.
    """

    votes: Votes
    workers: int
    w: Tensor
    gold: np.ndarray


def label_accuracy(posteriors: Path, train: Path) -> dict[str, Any]:
    """Shares of gold labels found, by ``posterior``, each of :data:`BASELINES`, ``majority`` and ``anchors`` (an
    undecided pair is half found), the number of ``pairs`` with a gold label, and ``against`` each baseline the pairs
    (won, lost) by the posterior.
    """
    labelled = read_labelled(posteriors, train)
    right = {name: _right(w, labelled.gold) for name, w in _estimates(labelled).items()}
    ours = right["posterior"]
    against = {
        name: (int(((ours == 1) & (right[name] == 0)).sum()), int(((ours == 0) & (right[name] == 1)).sum()))
        for name in BASELINES
    }
    shares = {name: float(np.nanmean(found)) if len(found) else math.nan for name, found in right.items()}
    return {"pairs": len(ours), **shares, "against": against}


def mcnemar(won: int, lost: int) -> float:
    """Probability of a split at least as uneven, were both equally good (exact, two-sided).

    >>> round(mcnemar(2, 9), 4)
    0.0654
    """
    n = won + lost
    return min(1.0, sum(math.comb(n, k) for k in range(min(won, lost) + 1)) / 2 ** (n - 1)) if n else 1.0


def read_labelled(posteriors: Path, train: Path) -> Labelled:
    rows = pq.read_table(posteriors, columns=["pair_id", "annotator", "sign", "w_last"]).to_pylist()
    said, gold_side = read_votes(train)
    pairs, workers = (
        {name: i for i, name in enumerate(dict.fromkeys(row[column] for row in rows))}
        for column in ("pair_id", "annotator")
    )
    w, gold = torch.full((len(pairs),), math.nan), np.zeros(len(pairs))
    votes: list[list[tuple[int, int]]] = [[] for _ in pairs]
    for row in rows:
        i, sign, side = pairs[row["pair_id"]], row["sign"], gold_side.get(row["pair_id"])
        votes[i].append((workers[row["annotator"]], sign))
        if row["w_last"] is None:
            continue
        w[i] = row["w_last"] if sign > 0 else 1 - row["w_last"]
        if side in ("a", "b"):
            gold[i] = sign if said[row["pair_id"], row["annotator"]] == side else -sign
    width = max(map(len, votes))
    padded = torch.tensor([labels + [(0, 0)] * (width - len(labels)) for labels in votes])
    return Labelled(Votes(padded[..., 0], padded[..., 1]), len(workers), w, gold)


def read_votes(train: Path) -> tuple[dict[tuple[str, str], str], dict[str, str]]:
    """{(pair, annotator): vote} and {pair: gold} of a file in the ``votes`` layout."""
    with train.open(encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    said = {(pair["pair_id"], vote["annotator"]): vote["vote"] for pair in pairs for vote in pair["votes"]}
    return said, {pair["pair_id"]: pair["gold"] for pair in pairs if pair.get("gold")}


def _estimates(labelled: Labelled) -> dict[str, Tensor]:
    """P(chosen is better) [P] by the run, and by the baselines."""
    votes, workers, settings = labelled.votes, labelled.workers, EMSettings()
    # Margins of 0 have no scale to fit.
    fitting = EMSettings(buffer=BufferSettings(fit_temperature=False))
    silent = torch.zeros(len(labelled.w), dtype=torch.float64)
    start = torch.full((workers,), settings.eta_init, dtype=torch.float64)
    fitted = estimate(silent, votes, start, fitting).eta
    return {
        "posterior": labelled.w,
        "one_coin": one_coin(votes, workers, settings).w,
        "one_coin_fitted": posterior(silent, votes, fitted.logit()),
        "majority": votes.share(),
        "anchors": _with_anchors(labelled),
    }


def _with_anchors(labelled: Labelled) -> Tensor:
    """The label model's posteriors [P] with the gold labels of :data:`ANCHORS` random pairs; nan of those pairs."""
    gold = torch.from_numpy(labelled.gold)
    known = gold.nonzero().squeeze(-1)
    told = known[torch.randperm(len(known), generator=torch.Generator().manual_seed(0))[:ANCHORS]]
    anchors = torch.zeros_like(gold)
    anchors[told] = gold[told]
    settings = LabelModelSettings(bootstrap=0)
    fit = fit_label_model(labelled.votes, labelled.workers, gold=anchors, settings=settings)
    return fit.estimates[MODEL].index_fill(0, told, math.nan)


def _right(w: Tensor, gold: np.ndarray) -> np.ndarray:
    """Of the pairs with a gold label: 1 found, 0 not, ½ undecided."""
    known = gold != 0
    side = np.sign(w.numpy() - 0.5)[known] * gold[known]
    return (side + 1) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--train", type=Path, required=True)
    args = parser.parse_args()
    found = label_accuracy(args.run / "posteriors.parquet", args.train)
    print(f"posterior        {found['posterior']:.3f} of {found['pairs']:,}")
    print(f"majority         {found['majority']:.3f}\nanchors          {found['anchors']:.3f}")
    for name in BASELINES:
        won, lost = found["against"][name]
        print(
            f"{name:16s} {found[name]:.3f}: wrong where the posterior is right {won}, right where it is wrong {lost}, "
            f"p = {mcnemar(won, lost):.2g}"
        )


if __name__ == "__main__":
    main()
