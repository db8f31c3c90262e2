"""A cheap judge from few judged pairs, beside the rule that the longer answer wins: UKPConvArg1.

    python benchmarks/surrogate.py [--data FOLDER] [--seeds 40] [--write docs/what_labels_reward.md]

Each seed halves the debates. n pairs drawn from one half, judged by the gold label, train the surrogate (its ridge is
chosen by pairs of further debates, as the judge does it); the gold pairs of the other half test it and the rule. Means
over the seeds; the interval of the difference is that of the mean over seeds, paired.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
from markdown_table import replace_block, table
from ukp_pairs import UKP, read_ukp

from nemo_rpo.crowd.factors.answer_features import FEATURES
from nemo_rpo.crowd.factors.held_out import foretell
from nemo_rpo.report.rendering.plots import BLUE, drawing
from nemo_rpo.shares import Z

SIZES = (20, 50, 100, 200, 500, 2000)
LENGTH = list(FEATURES).index("length")


def one(ukp: UKP, seed: int) -> np.ndarray:
    """Accuracy on the other debates: of the rule, then of a surrogate for each size."""
    rng = np.random.default_rng(seed)
    debates = rng.permutation(ukp.debate.max() + 1)
    trains = np.isin(ukp.debate, debates[: len(debates) // 2])
    judged, test = np.flatnonzero(trains & (ukp.gold != 0)), np.flatnonzero(~trains & (ukp.gold != 0))
    drawn = rng.permutation(judged)
    found = [_right(ukp.x[test, LENGTH], ukp.gold[test])]
    for size in SIZES:
        part = drawn[:size]
        fit = foretell(ukp.x[part], (ukp.gold[part] > 0).astype(float), ukp.debate[part])
        found.append(_right(fit.of(ukp.x[test]), ukp.gold[test]))
    return np.array(found)


def _right(odds: np.ndarray, gold: np.ndarray) -> float:
    return float(np.where(odds == 0, 0.5, np.sign(odds) == gold).mean())


def figure(found: np.ndarray) -> str:
    mean, spread = found.mean(0), found.std(0, ddof=1)
    with drawing(5.2, 3.0) as (_, axes, drawn):
        axes.errorbar(
            SIZES, mean[1:], spread[1:], fmt="o-", color=BLUE, markersize=5, label="surrogate (± sd over seeds)"
        )
        axes.axhline(mean[0], color="black", linestyle="--", linewidth=0.9, label="the longer wins")
        axes.set_xscale("log")
        axes.set_xticks(SIZES, [f"{size:,}" for size in SIZES])
        axes.minorticks_off()
        axes.set_xlabel("judged pairs")
        axes.set_ylabel("accuracy on other debates")
        axes.legend(loc="lower right", fontsize=8)
    return drawn[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("NEMO_RPO_DATA", "../shared/data")) / "ukpconvarg1"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--write", help="replace the block in a Markdown file")
    parser.add_argument("--figure", type=Path, help="draw the same as an SVG file")
    args = parser.parse_args()
    ukp = read_ukp(args.data)
    found = np.array([one(ukp, seed) for seed in range(args.seeds)])
    rows = {"the longer wins": [f"{found[:, 0].mean():.3f} ± {found[:, 0].std(ddof=1):.3f}", "–"]}
    for i, size in enumerate(SIZES, start=1):
        apart = found[:, i] - found[:, 0]
        error = Z * apart.std(ddof=1) / np.sqrt(args.seeds)
        mean, spread = found[:, i].mean(), found[:, i].std(ddof=1)
        rows[f"surrogate, {size:,} judged"] = [f"{mean:.3f} ± {spread:.3f}", f"{apart.mean():+.3f} ± {error:.3f}"]
    text = table("judge", ("accuracy ± sd over seeds", "beyond the rule (95 %)"), rows)
    print(text)
    if args.figure:
        args.figure.write_text(figure(found))
    if args.write:
        replace_block(args.write, "surrogate", text)


if __name__ == "__main__":
    main()
