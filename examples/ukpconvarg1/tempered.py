"""What the policy's word is worth beside the votes of a finished run of ``study.py``, and what gold says it is worth.

    python tempered.py RUN/posteriors.parquet train.jsonl

The label model is fitted anew to the recorded votes, with margins of first sight times a weight as the pairs' prior:
the weight that the margins' agreement with the votes suggests, that over the temperature T of the run's
``label_model.json``, and 0. Gold labels judge the posteriors, and are regressed on the margins.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from labels import read_labelled

from nemo_rpo.em import EMSettings, Votes
from nemo_rpo.em.fit.full_fit import estimate
from nemo_rpo.em.label_model import FlatVotes, VoteFeatures, fit_label_model
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.text_table import format_table


def first_margins(posteriors: Path) -> torch.Tensor:
    """Δ for chosen, float64 [P], in the order of :func:`labels.read_labelled`; 0 of pairs that the run has not seen."""
    rows = pq.read_table(posteriors, columns=["pair_id", "sign", "delta_first"]).to_pylist()
    found = {row["pair_id"]: row["sign"] * (row["delta_first"] or 0.0) for row in rows}
    return torch.tensor(list(found.values()), dtype=torch.float64)


def slope_on_gold(margin: np.ndarray, gold: np.ndarray) -> float:
    """b of P(gold prefers chosen) = σ(b Δ), by Newton's method."""
    there, b = (gold != 0) & (margin != 0), 0.0
    agrees = margin[there] * gold[there]
    for _ in range(50):
        p = 1 / (1 + np.exp(-b * agrees))
        b += (agrees * (1 - p)).sum() / (agrees**2 * p * (1 - p)).sum()
    return b


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("posteriors", type=Path)
    parser.add_argument("train", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    labelled, margin = read_labelled(arguments.posteriors, arguments.train), first_margins(arguments.posteriors)
    votes: Votes = labelled.votes
    start = torch.full((labelled.workers,), EMSettings().eta_init, dtype=torch.float64)
    weight = estimate(margin, votes, start, EMSettings(estimator="buffer")).temperature.weight
    temperature = json.loads((arguments.posteriors.parent / "label_model.json").read_text())["temperature"]
    pair, place = (votes.sign != 0).nonzero(as_tuple=True)
    flat = FlatVotes(pair, votes.annotator[pair, place], votes.sign[pair, place], len(votes.sign))
    gold, rows = labelled.gold, []
    for name, of_policy in (("as the votes suggest", weight), ("over T", weight / temperature), ("none", 0.0)):
        settings = replace(LabelModelSettings(), bootstrap=0)
        fit = fit_label_model(flat, labelled.workers, VoteFeatures(), None, None, margin * of_policy, settings)
        side = np.sign(fit.w.double().numpy() - 0.5)[gold != 0]
        found = np.where(side == 0, 0.5, side == gold[gold != 0]).mean()
        rows.append([name, f"{of_policy:.3f}", f"{found:.3f}"])
    print(format_table(["the policy's weight", "", "gold labels found"], rows))
    print(f"T = {temperature:.2f}; gold regressed on the margins: {slope_on_gold(margin.numpy(), gold):.3f}")


if __name__ == "__main__":
    main()
