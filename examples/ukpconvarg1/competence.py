"""Do the estimated reliabilities know what MACE knows, and who was inverted?

    python competence.py --data FOLDER --annotators RUN/annotators.csv --truth OUT/truth.json

The table (JSONL or CSV) has the fields ``id``, ``labels`` and ``eta``. Prints Spearman's rank correlation between eta
and MACE's competence over the workers with at least ``--min-votes`` labels, the inverted ones left out, and how well
eta separates inverted from honest workers: the AUC, the probability that a random honest worker has the higher eta (one
half: not at all).
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import numpy as np
from ukp import read_competence

from nemo_rpo.errors import DataError, RPOError


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    last = size.cumsum()
    return (last - (size - 1) / 2)[group]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation: Pearson's correlation of the ranks; NaN if one side is constant."""
    x, y = ranks(x) - (len(x) + 1) / 2, ranks(y) - (len(y) + 1) / 2
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def auc(low: np.ndarray, high: np.ndarray) -> float:
    """P(a value of ``high`` exceeds one of ``low``), ties counting half (Mann-Whitney); NaN if one is empty."""
    if not len(low) or not len(high):
        return float("nan")
    rank_sum = ranks(np.concatenate([low, high]))[len(low) :].sum()
    return float((rank_sum - len(high) * (len(high) + 1) / 2) / (len(low) * len(high)))


def read_annotators(path: Path) -> dict[str, tuple[int, float]]:
    """{id: (labels, eta)}.

    Raises:
        DataError: no such file, or a row without id, labels and eta.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the annotator table of a run with --annotators")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]
    for number, row in enumerate(rows, 1):
        missing = [field for field in ("id", "labels", "eta") if field not in row]
        if missing:
            raise DataError(f"{path}: row {number} has no field {missing[0]!r}; it has {', '.join(row)}")
    return {row["id"]: (int(row["labels"]), float(row["eta"])) for row in rows}


def compare(
    annotators: dict[str, tuple[int, float]], competence: dict[str, float], inverted: set[str], min_votes: int
) -> dict[str, float]:
    """The two figures and the number of workers behind each.

    Raises:
        DataError: an annotator is not a worker of the data set.
    """
    unknown = annotators.keys() - competence.keys()
    if unknown:
        raise DataError(f"{len(unknown)} annotators are not in workers.csv, one is {min(unknown)!r}")
    seen = {name: eta for name, (labels, eta) in annotators.items() if labels >= min_votes}
    honest = [name for name in seen if name not in inverted]
    eta_honest = np.array([seen[name] for name in honest])
    eta_inverted = np.array([eta for name, eta in seen.items() if name in inverted])
    return {
        "workers": len(honest),
        "inverted": len(eta_inverted),
        "spearman": spearman(eta_honest, np.array([competence[name] for name in honest])),
        "auc": auc(eta_inverted, eta_honest),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of UKPConvArg1")
    parser.add_argument("--annotators", type=Path, required=True, help="annotator table of a run, .jsonl or .csv")
    parser.add_argument("--truth", type=Path, help="truth.json of prepare.py, for the inverted workers")
    parser.add_argument("--min-votes", type=int, default=30)
    args = parser.parse_args(argv)
    try:
        inverted = set(json.loads(args.truth.read_text())["inverted_workers"]) if args.truth else set()
        figures = compare(read_annotators(args.annotators), read_competence(args.data), inverted, args.min_votes)
    except RPOError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 2
    print(f"rank correlation of eta with MACE's competence: {figures['spearman']:.3f} ({figures['workers']} workers)")
    if inverted:
        print(f"AUC of eta, honest above inverted: {figures['auc']:.3f} ({figures['inverted']} inverted workers)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
