"""Pairs on which a policy contradicts everybody who judged (Pareto's axiom), or the majority.

A policy that follows the people it was trained for reverses few of either. Two labels that agree may both be wrong: the
share of reversed pairs is to fall as more agree, and what is left among many who agree is the policy's fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nemo_rpo.evaluation.scores import Scores
from nemo_rpo.shares import share
from nemo_rpo.text_table import format_table

_LEAST = 2  # labels that can be unanimous
_MANY = 5  # labels from which on pairs stand in one row
_LISTED, _SHOWN = 100, 20


@dataclass(frozen=True)
class Reversals:
    """Pairs of one kind (``votes`` says which): how many, of which the policy reverses ``reversed``; their share
    ``value`` with Wilson's 95 % interval. Δ = 0 reverses nothing.
    """

    votes: str
    pairs: int
    reversed: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class PolicyAudit:
    """Attributes:
    rows: unanimous pairs by their number of labels, all of them, and all pairs that have a majority.
    unanimous_reversed: their number. reversed_unanimous: the hundred of the largest margin.
    """

    rows: list[Reversals]
    unanimous_reversed: int
    reversed_unanimous: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)

    def text(self) -> Iterator[str]:
        """For a terminal."""
        if not self.rows:
            yield "audit: no pair has a majority among two labels or more"
            return
        rows = [
            [row.votes, f"{row.pairs:,}", f"{row.reversed:,}", f"{row.value:.3f}", f"{row.low:.3f} to {row.high:.3f}"]
            for row in self.rows
        ]
        yield format_table(["audit: pairs on which", "pairs", "reversed", "share", "95 % interval"], rows)
        worst = self.reversed_unanimous[:_SHOWN]
        if worst:
            more = self.unanimous_reversed - len(worst)
            rows = [[row["pair_id"], f"{row['labels']:,}", f"{row['margin']:.3f}"] for row in worst]
            table = format_table(["unanimous and reversed", "labels", "by Δ"], rows)
            yield table + (f"\n… {more:,} more" if more else "")


def audit(scores: Scores) -> PolicyAudit:
    """Of the labels as they were recorded; pairs with one label say nothing and are left out."""
    names, first, pair = np.unique(scores.pair_id.astype(str), return_index=True, return_inverse=True)
    labels = np.bincount(pair)
    balance = np.bincount(pair, scores.sign).astype(np.int64)
    delta = scores.delta[first]
    several = labels >= _LEAST
    unanimous = several & (np.abs(balance) == labels)
    wrong = balance * delta < 0
    rows = []
    for count in range(_LEAST, _MANY):
        rows.append(_row(f"all {count} labels agree", unanimous & (labels == count), wrong))
    rows.append(_row(f"all of {_MANY} labels or more agree", unanimous & (labels >= _MANY), wrong))
    rows.append(_row("all agree", unanimous, wrong))
    rows.append(_row("a majority", several & (balance != 0), wrong))
    worst = np.flatnonzero(unanimous & wrong)
    worst = worst[np.argsort(-np.abs(delta[worst]), kind="stable")]
    listed = [
        {"pair_id": str(names[i]), "labels": int(labels[i]), "margin": float(abs(delta[i]))} for i in worst[:_LISTED]
    ]
    return PolicyAudit([row for row in rows if row.pairs], len(worst), listed)


def _row(votes: str, which: np.ndarray, wrong: np.ndarray) -> Reversals:
    found = share(float((which & wrong).sum()), int(which.sum()))
    return Reversals(votes, found.n, int(found.hits), found.value, found.low, found.high)
