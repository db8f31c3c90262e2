"""Find the careless annotators of a file whose truth is known.

    python examples/annotators.py [--seed 0] [--out FOLDER]

Writes 3,000 pairs with the votes of 60 annotators of known care, in the state that such files are in: repeated pairs,
some with the responses swapped, ties, rows that cannot be read. Then runs ``nemo-rpo annotators`` on it and compares
its verdicts with the truth.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PAIRS, CAREFUL, CARELESS, FOLLOWERS = 3_000, 44, 12, 4
VOTES, REPEATED, TIES, FOLLOWS = 4, 0.15, 0.06, 0.7
DIRTY = ("{not json", "[]", '{"prompt": "p"}', '{"prompt": "p", "response_a": "x", "response_b": "y", "votes": [{}]}')


def write_crowd(out: Path, seed: int) -> dict[str, float]:
    """Writes ``votes.jsonl`` and ``gold.csv`` (60 pairs); returns P(label right) of each annotator.

    The careful are right .76 to .96 of the time, the careless .50 to .62; followers are as careful as the careful but
    say what was shown first seven times in ten, whatever the truth.
    """
    rng = np.random.default_rng(seed)
    care = np.concatenate([rng.uniform(0.76, 0.96, CAREFUL), rng.uniform(0.50, 0.62, CARELESS)])
    care = np.concatenate([care, rng.uniform(0.80, 0.95, FOLLOWERS)])
    names = [f"annotator {k + 1:02}" for k in rng.permutation(len(care))]
    truth = rng.choice(["a", "b"], PAIRS)
    lines, clock = [], 1.7e9
    shown = np.concatenate([np.arange(PAIRS), rng.choice(PAIRS, int(REPEATED * PAIRS))])
    for pair in shown:
        swapped = rng.random() < 0.5
        votes = []
        for k in rng.choice(len(care), VOTES, replace=False):
            first, clock = rng.choice(["a", "b"]), clock + 20
            says = truth[pair] if rng.random() < care[k] else "ab"[truth[pair] == "a"]
            if k >= CAREFUL + CARELESS and rng.random() < FOLLOWS:
                says = first
            says = "tie" if rng.random() < TIES else says
            seconds = round(float(rng.lognormal(2.2 if CAREFUL <= k < CAREFUL + CARELESS else 3.2, 0.5)), 1)
            vote = {"annotator": names[k], "vote": says, "shown_first": first, "seconds": seconds, "time": clock}
            votes.append(_swap(vote) if swapped else vote)
        responses = [f"Answer {side} to question {pair}." for side in "ab"]
        a, b = responses[::-1] if swapped else responses
        row = {"pair_id": f"q{pair}", "prompt": f"Question {pair}?", "response_a": a, "response_b": b, "votes": votes}
        lines.append(json.dumps(row))
    lines += list(DIRTY) * 5
    # The first row of a pair says which response is a; the file keeps its order, only the dirty rows come between.
    at = np.sort(rng.choice(len(shown), len(DIRTY) * 5, replace=False))
    clean, dirty = lines[: len(shown)], lines[len(shown) :]
    for place, line in zip(at[::-1].tolist(), dirty, strict=True):
        clean.insert(place, line)
    (out / "votes.jsonl").write_text("\n".join(clean) + "\n", encoding="utf-8")
    gold = [f"Answer {truth[pair]} to question {pair}." for pair in range(60)]
    first = {row["pair_id"]: row["response_a"] for row in map(json.loads, lines[: len(shown)][::-1])}
    said = ["a" if first[f"q{pair}"] == gold[pair] else "b" for pair in range(60)]
    rows = "".join(f"q{pair},{side}\n" for pair, side in enumerate(said))
    (out / "gold.csv").write_text(f"pair_id,gold\n{rows}", encoding="utf-8")
    right = np.where(np.arange(len(care)) >= CAREFUL + CARELESS, FOLLOWS / 2 + (1 - FOLLOWS) * care, care)
    return dict(zip(names, right.tolist(), strict=True))


def _swap(vote: dict) -> dict:
    turned = {"a": "b", "b": "a", "tie": "tie"}
    return vote | {"vote": turned[vote["vote"]], "shown_first": turned[vote["shown_first"]]}


def main() -> None:
    """Writes the crowd, judges it, compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the files in this folder")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = args.out or Path(scratch)
        out.mkdir(exist_ok=True)
        right = write_crowd(out, args.seed)
        begin = time.perf_counter()
        command = [sys.executable, "-m", "nemo_rpo.cli", "annotators", str(out / "votes.jsonl"), "--json"]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        seconds = time.perf_counter() - begin
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    careless = {name for name, share in right.items() if share < 0.7}
    verdict = {row["annotator"]: row["verdict"] for row in result["annotators"]}
    inside = [row["low"] <= right[row["annotator"]] <= row["high"] for row in result["annotators"]]
    print(f"{result['counts']['pairs']:,} pairs, {result['counts']['votes']:,} votes; rows left out:", end=" ")
    print(", ".join(f"{count} {kind}" for kind, count in result["rows_left_out"].items()))
    print(f"careless (right under .70 of the time): {len(careless)} of {len(right)}")
    for verdicts in (("retrain",), ("retrain", "watch")):
        found = {name for name, said in verdict.items() if said in verdicts}
        hits = len(found & careless)
        figures = f"precision {hits / max(1, len(found)):.3f}, recall {hits / len(careless):.3f}"
        print(f"{' or '.join(verdicts)}: {len(found)} annotators, {figures}")
    print(f"{seconds:.1f} s, {used.ru_utime + used.ru_stime:.1f} of them of a CPU")
    print(f"95 % intervals that hold the truth: {np.mean(inside):.3f}")


if __name__ == "__main__":
    main()
