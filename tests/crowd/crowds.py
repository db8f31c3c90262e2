"""Crowds of known care, as rows of the layout ``votes``."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

CARE = [0.95, 0.92, 0.9, 0.88, 0.86, 0.9, 0.5, 0.55]


def rows(seed: int = 0, pairs: int = 250, votes: int = 4, care=CARE, follows: dict[int, float] | None = None):
    """Rows, and the truth (``a`` or ``b``) by pair id; ``follows`` says how often one says what stood first."""
    rng = np.random.default_rng(seed)
    found, truth = [], {}
    for i in range(pairs):
        better = "ab"[rng.integers(2)]
        truth[f"q{i}"] = better
        cast = []
        for k in rng.choice(len(care), votes, replace=False).tolist():
            says = better if rng.random() < care[k] else "ba"["ab".index(better)]
            first = "ab"[rng.integers(2)]
            if rng.random() < (follows or {}).get(k, 0):
                says = first
            cast.append({"annotator": f"w{k}", "vote": says, "shown_first": first})
        texts = {"response_a": f"a of {i}", "response_b": f"b of {i}"}
        found.append({"pair_id": f"q{i}", "prompt": f"question {i}", **texts, "votes": cast})
    return found, truth


def write(path: Path, lines: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    return path


def long_form(lines: list[dict]) -> list[dict]:
    """A row a vote."""
    return [{"pair": row["pair_id"], **vote} for row in lines for vote in row["votes"]]


def read_csv(path: Path) -> list[dict]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, lines: list[dict]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, lines[0])
        writer.writeheader()
        writer.writerows(lines)
    return path
