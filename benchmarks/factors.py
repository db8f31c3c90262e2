"""What labels reward: whether the intervals hold, and what the votes of UKPConvArg1 reward.

    python benchmarks/factors.py [--data FOLDER] [--worlds 400] [--write docs/what_labels_reward.md] [--figure OUT.svg]

Coverage: worlds of planted strengths; one label a pair, or five where the pair has something more that no property
tells (a normal effect, sd 1; the strengths that a fit can find are then those of a world of 200,000 pairs). FOLDER
holds the files of UKPConvArg1.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from markdown_table import replace_block, table
from ukp_pairs import read_ukp

from nemo_rpo.crowd.crowd_fit import fit_crowd
from nemo_rpo.crowd.factors.answer_features import FEATURES
from nemo_rpo.crowd.factors.driving import ALL, BELIEVED, DISTRUSTED, Drivers, drivers_of
from nemo_rpo.crowd.factors.linear_bt import covariance, fit_linear_bt, sigmoid
from nemo_rpo.crowd.factors.pair_texts import turns
from nemo_rpo.crowd.long_form import vote_table
from nemo_rpo.report.crowd.drivers_section import drivers_figure
from nemo_rpo.shares import Z

PLANTED = np.array([1.0, -0.5, 0.2, 0.0])
SIDES = {1: "a", -1: "b", 0: "tie"}


def world(rng: np.random.Generator, pairs: int, votes: int, effect: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Differences of the preferred answer, one row a label; and the pair of each."""
    x = rng.normal(size=(pairs, len(PLANTED)))
    odds = x @ PLANTED + effect * rng.normal(size=pairs)
    pair = np.repeat(np.arange(pairs), votes)
    says = np.where(rng.random(len(pair)) < sigmoid(odds[pair]), 1.0, -1.0)
    return x[pair] * says[:, None], np.ones(len(pair)), pair


def coverage(worlds: int, pairs: int, votes: int, effect: float) -> list[str]:
    truth = PLANTED
    if effect:
        truth = fit_linear_bt(*world(np.random.default_rng(10**6), 200_000, 1, effect)[:2]).theta
    inside = np.zeros(2)
    for seed in range(worlds):
        x, won, pair = world(np.random.default_rng(seed), pairs, votes, effect)
        theta = fit_linear_bt(x, won, ridge=1.0).theta
        for i, groups in enumerate((None, pair)):
            error = np.sqrt(np.diag(covariance(x, theta, won, ridge=1.0, groups=groups)))
            inside[i] += (np.abs(theta - truth) <= Z * error).mean()
    return [f"{share / worlds:.3f}" for share in inside]


def of_ukp(folder: Path) -> Drivers:
    """Strengths in the votes as they are, without gold labels."""
    ukp = read_ukp(folder)
    pair, worker, sign = zip(*ukp.votes, strict=True)
    columns = {"pair": [ukp.names[p] for p in pair], "annotator": list(worker), "vote": [SIDES[s] for s in sign]}
    read = vote_table(columns, {name: name for name in columns})
    place = {name: i for i, name in enumerate(ukp.names)}
    order = np.array([place[name] for name in read.pair_id])
    fit = fit_crowd(read)
    now, signed = fit.table, fit.table.sign != 0
    x = ukp.x[order] * turns(read, now)[:, None]
    oriented = x[now.pair[signed]] * now.sign[signed, None]
    return drivers_of(
        oriented, list(FEATURES), fit.right[signed], now.pair[signed], ukp.debate[order][now.pair[signed]]
    )


def ukp_table(found: Drivers) -> str:
    kinds = {kind: found.of(kind) for kind in (ALL, BELIEVED, DISTRUSTED)}
    rows = {}
    for name in kinds[ALL]:
        cells = []
        for of in kinds.values():
            factor = of[name]
            cells += [f"{factor.strength:+.2f} ({factor.low:+.2f} to {factor.high:+.2f})", f"{factor.prefers_more:.2f}"]
        rows[name] = cells
    heads = [head for kind, of in kinds.items() for head in (f"{kind} ({of['length'].count:,})", "prefer more")]
    return table("property", heads, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("NEMO_RPO_DATA", "../shared/data")) / "ukpconvarg1"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--worlds", type=int, default=400)
    parser.add_argument("--write", help="replace the blocks in a Markdown file")
    parser.add_argument("--figure", type=Path, help="draw the strengths in the votes as an SVG file")
    args = parser.parse_args()
    cases = {"200 pairs, 1 label each": (200, 1, 0.0), "1,000 pairs, 1 label each": (1000, 1, 0.0)}
    cases |= {"200 pairs, 5 labels, pair effects": (200, 5, 1.0)}
    held = table(
        "world",
        ("Fisher information", "labels of a pair together"),
        {n: coverage(args.worlds, *c) for n, c in cases.items()},
    )
    print(held, flush=True)
    drivers = of_ukp(args.data)
    ukp = ukp_table(drivers)
    print(ukp)
    if args.figure:
        args.figure.write_text(drivers_figure(drivers), encoding="utf-8")
    if args.write:
        replace_block(args.write, "factor intervals", held)
        replace_block(args.write, "factors of UKP", ukp)


if __name__ == "__main__":
    main()
