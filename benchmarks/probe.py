"""Which layer of a frozen model knows, and whether its margins help the EM before training: UKPConvArg1, stories260K.

    python benchmarks/probe.py layers [--data FOLDER] [--write docs/what_labels_reward.md]
    python benchmarks/probe.py em [--seeds 4] [--data FOLDER] [--write docs/what_labels_reward.md]

The probe learns from what votes alone say, debate by debate, and is judged by the authors' gold labels, which nobody is
shown. ``layers``: all votes; accuracy with a 95 % interval from 1,000 bootstrap samples of debates. ``em``: 3,000 pairs
a seed with one or three of their signed votes, those of a random 0, 20 or 40 % of the *workers* inverted; the label
model alone, with the margins of the best layer, and with margins fitted to cheap properties of answers in the same way.
FOLDER holds ukpconvarg1 and stories260k.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from markdown_table import replace_block, table
from ukp_pairs import UKP, read_ukp

from nemo_rpo.crowd.crowd_fit import CrowdFit, fit_crowd
from nemo_rpo.crowd.factors.factor_settings import Kind
from nemo_rpo.crowd.factors.held_out import foretell
from nemo_rpo.crowd.long_form import vote_table
from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.evaluation.probe.hidden_states import HiddenStates
from nemo_rpo.evaluation.probe.probe_settings import ProbeSettings, State
from nemo_rpo.evaluation.probe.probing import probe_layers

SIDES = {1: "a", -1: "b"}
MARGINS = ("votes alone", "cheap properties", "probe")
FEWEST = 20  # labels of a worker whose reliability is judged


def crowd(ukp: UKP, votes: list[tuple[int, str, int]]) -> tuple[VoteTable, np.ndarray]:
    """The table of signed votes, and the place of each of its pairs in ``ukp``."""
    pair, worker, sign = zip(*votes, strict=True)
    columns = {"pair": [ukp.names[p] for p in pair], "annotator": list(worker), "vote": [SIDES[s] for s in sign]}
    read = vote_table(columns, {name: name for name in columns})
    place = {name: i for i, name in enumerate(ukp.names)}
    return read, np.array([place[name] for name in read.pair_id])


def truth_by_votes(read: VoteTable, fit: CrowdFit) -> np.ndarray:
    """w relative to the table as it was read."""
    return np.where(read.content_turned != fit.table.content_turned, 1 - fit.w, fit.w)


def right(odds: np.ndarray, gold: np.ndarray) -> np.ndarray:
    return np.where(odds == 0, 0.5, np.sign(odds) == gold)


def layers(ukp: UKP, folder: Path) -> str:
    read, of = crowd(ukp, [vote for vote in ukp.votes if vote[2]])
    truth, gold, debate = truth_by_votes(read, fit_crowd(read)), ukp.gold[of], ukp.debate[of]
    known = np.ones(len(truth), dtype=bool)
    rows: dict[str, list[str]] = {}
    heads = []
    cases: list[tuple[State, Kind]] = [("mean", "logistic"), ("mean", "lda"), ("last", "logistic")]
    for state, kind in cases:
        settings = ProbeSettings(state=state, kind=kind)
        states = HiddenStates(folder, settings)
        of_answer = states.of(ukp.answers)
        differences = (layer[ukp.sides[of, 0]] - layer[ukp.sides[of, 1]] for layer in of_answer)
        probe = probe_layers(differences, states.layers, truth, known, debate, settings)
        heads.append(f"{state} state, {kind}")
        for score in probe.layers:
            cell = interval(right(score.foretold.log_odds, gold)[gold != 0], debate[gold != 0])
            rows.setdefault(f"layer {score.layer}", []).append(cell)
    x = ukp.x[of]
    cheap = foretell(x, truth, debate).log_odds
    rows["cheap properties"] = [interval(right(cheap, gold)[gold != 0], debate[gold != 0]), "", ""]
    rows["the longer wins"] = [interval(right(x[:, 0], gold)[gold != 0], debate[gold != 0]), "", ""]
    return table("", heads, rows)


def interval(values: np.ndarray, debate: np.ndarray) -> str:
    rng = np.random.default_rng(0)
    size = debate.max() + 1
    sums, counts = np.bincount(debate, values, size), np.bincount(debate, minlength=size)
    drawn = rng.integers(size, size=(1000, size))
    low, high = np.quantile(sums[drawn].sum(1) / counts[drawn].sum(1), (0.025, 0.975))
    return f"{values.mean():.3f} ({low:.3f}–{high:.3f})"


def em(ukp: UKP, folder: Path, seeds: int, votes: int) -> str:
    settings = ProbeSettings()
    states = HiddenStates(folder, settings)
    of_answer = states.of(ukp.answers)
    by_pair: dict[int, list[tuple[int, str, int]]] = {}
    for vote in ukp.votes:
        if vote[2]:
            by_pair.setdefault(vote[0], []).append(vote)
    rows: dict[str, list[str]] = {}
    for inverted in (0.0, 0.2, 0.4):
        found = np.array([
            world(ukp, of_answer, states.layers, by_pair, votes, inverted, seed, settings) for seed in range(seeds)
        ])[:, :, : None if inverted else -1]  # fmt: skip
        mean, spread = np.nanmean(found, 0), np.nanstd(found, 0, ddof=1)
        for j, name in enumerate(MARGINS):
            cells = [f"{m:.3f} ± {s:.3f}" for m, s in zip(mean[j], spread[j], strict=True)] + ["–"] * (inverted == 0)
            rows[f"{votes} a pair, {inverted:.0%} inverted: {name}"] = cells
            print(f"{votes} a pair, {inverted:.0%} inverted: {name}", *cells, flush=True)
    return table(
        "votes", ("gold labels found", "Brier score", "error of reliability", "workers told apart (AUC)"), rows
    )


def world(ukp, of_answer, numbers, by_pair, votes, inverted, seed, settings) -> list[list[float]]:
    """By kind of margins: labels found, Brier score, error of reliabilities, AUC of inverted and honest workers."""
    rng = np.random.default_rng(seed)
    pairs = rng.choice([p for p, of in by_pair.items() if len(of) >= 3], 3000, replace=False)
    cast = [by_pair[p][i] for p in pairs.tolist() for i in rng.permutation(len(by_pair[p]))[:votes]]
    workers = sorted({worker for _, worker, _ in cast})
    turned = set(rng.permutation(workers)[: round(inverted * len(workers))].tolist())
    read, of = crowd(ukp, [(p, worker, -sign if worker in turned else sign) for p, worker, sign in cast])
    gold, debate = ukp.gold[of], ukp.debate[of]
    alone = fit_crowd(read)
    truth = truth_by_votes(read, alone)
    known = np.ones(len(truth), dtype=bool)
    differences = (layer[ukp.sides[of, 0]] - layer[ukp.sides[of, 1]] for layer in of_answer)
    probe = probe_layers(differences, numbers, truth, known, debate, settings)
    cheap = probe_layers([ukp.x[of]], [0], truth, known, debate, settings)
    fits = [alone, fit_crowd(read, margin=cheap.margin), fit_crowd(read, margin=probe.margin)]
    return [judged(read, fit, gold, turned) for fit in fits]


def judged(read: VoteTable, fit: CrowdFit, gold: np.ndarray, turned: set[str]) -> list[float]:
    w = truth_by_votes(read, fit)
    known = gold != 0
    brier = float(np.square(w - (gold > 0))[known].mean())
    labels = float(right(w - 0.5, gold)[known].mean())
    said = known[read.pair]
    agree = (read.sign == gold[read.pair])[said]
    workers = len(read.annotators)
    count = np.bincount(read.annotator[said], minlength=workers)
    share = np.bincount(read.annotator[said], agree, workers) / np.maximum(count, 1)
    many = count >= FEWEST
    error = float(np.abs(fit.eta - share)[many].mean())
    bad = np.array([name in turned for name in read.annotators.ids])
    pairs = fit.eta[many & ~bad][:, None] - fit.eta[many & bad][None]
    auc = float(np.where(pairs == 0, 0.5, pairs > 0).mean()) if pairs.size else float("nan")
    return [labels, brier, error, auc]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("layers", "em"))
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("NEMO_RPO_DATA", "../shared/data")))
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--votes", type=int, nargs="+", default=[1, 3], help="signed votes a pair")
    parser.add_argument("--write", help="replace the block in a Markdown file")
    args = parser.parse_args()
    ukp, model = read_ukp(args.data / "ukpconvarg1"), args.data / "stories260k" / "hf"
    blocks = {"probe by layer": layers(ukp, model)} if args.what == "layers" else {}
    for votes in args.votes if args.what == "em" else ():
        blocks[f"probe in the EM, {votes} a pair"] = em(ukp, model, args.seeds, votes)
    for name, text in blocks.items():
        print(text)
        if args.write:
            replace_block(args.write, name, text)


if __name__ == "__main__":
    main()
