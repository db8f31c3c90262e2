"""Drift of annotators: power where it was planted, false alarms where it was not, and coverage of its intervals.

    python benchmarks/label_model_drift.py [--seeds 40] [--write docs/label_model.md]

Twenty annotators, 400 pairs, five votes a pair (100 labels an annotator), skills N(1.5, .5²) in logits at the middle of
the own sequence. The first quarter of the annotators loses ``slope`` logits from the first label to the last, evenly or
all at once in the middle. Printed: how often the test finds a drift of the crowd, how often the marginal likelihood
takes it for a feature of the fit, the share of drifting annotators and of the others who are named, and the coverage of
intervals of the change.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch
from markdown_table import replace_block, table

from nemo_rpo.em.label_model import FlatVotes, LabelModelSettings, VoteColumns, fit_label_model, vote_features
from nemo_rpo.em.label_model.drift import fit_drift
from nemo_rpo.em.label_model.features import sequence

ANNOTATORS, PAIRS, VOTES = 20, 400, 5


def measure(seed: int, slope: float, drifting: int, at_once: bool) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    annotator = torch.from_numpy(np.argsort(rng.random((PAIRS, ANNOTATORS)), 1)[:, :VOTES].ravel())
    pair = torch.arange(PAIRS).repeat_interleave(VOTES)
    when = torch.from_numpy(rng.random(PAIRS * VOTES))
    place = sequence(annotator, when) / 12**0.5  # from -1/2 to 1/2
    middle = torch.from_numpy(1.5 + 0.5 * rng.normal(size=ANNOTATORS))
    change = torch.where(torch.arange(ANNOTATORS) < drifting, -slope, 0.0)
    over = 0.5 * place.sign() if at_once else place
    skill = middle[annotator] + change[annotator] * over
    truth = torch.from_numpy(np.where(rng.random(PAIRS) < 0.5, 1.0, -1.0))[pair]
    sign = torch.where(torch.from_numpy(rng.random(len(pair))) < torch.sigmoid(skill), truth, -truth)
    votes = FlatVotes(pair, annotator, sign, PAIRS)
    settings = replace(LabelModelSettings(), bootstrap=0)
    features = vote_features(votes, VoteColumns(time=when))
    fit = fit_label_model(votes, ANNOTATORS, features, settings=settings)
    drift = fit_drift(votes, ANNOTATORS, features, fit, settings)
    found = {"crowd": float(drift.found), "evidence": float("sequence" in fit.leaning)}
    known = torch.sigmoid(middle + 0.5 * change) - torch.sigmoid(middle - 0.5 * change)
    inside = (drift.change_low <= known) & (known <= drift.change_high)
    found |= {"named wrongly": drift.surely[drifting:].double().mean().item()}
    found |= {"named": drift.surely[:drifting].double().mean().item() if drifting else 0.0}
    return found if at_once else found | {"change covered": inside.double().mean().item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start, rows = time.process_time(), {}
    for name, slope, drifting, at_once in (
        ("nobody drifts", 0.0, 0, False),
        ("a quarter, by 1.5", 1.5, 5, False),
        ("a quarter, by 2.5", 2.5, 5, False),
        ("a quarter, by 2.5 at once", 2.5, 5, True),
        ("everybody, by 0.7", 0.7, 20, False),
    ):
        found = [measure(seed, slope, drifting, at_once) for seed in range(arguments.seeds)]
        cells = []
        for column in ("crowd", "evidence", "named", "named wrongly", "change covered"):
            values = [row[column] for row in found if column in row]
            some = {"named": drifting, "named wrongly": drifting < ANNOTATORS}.get(column, True)
            cells.append(f"{np.mean(values):.2f}" if values and some else "–")
        rows[name] = cells
    heads = ("drift found", "a feature of the fit", "annotators named", "others named", "change covered")
    text = table("logits lost", heads, rows)
    print(f"{text}\n({time.process_time() - start:.0f} s of one core)")
    if arguments.write:
        replace_block(arguments.write, "drift", text)


if __name__ == "__main__":
    main()
