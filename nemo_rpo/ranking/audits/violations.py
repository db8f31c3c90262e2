"""Pairs on which scores contradict those who judged: unanimous ones (Pareto's axiom) and majorities.

Shapes: N players, E pairs that met.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_rpo.ranking.pair_table import PairTable

LEAST = 2  # comparisons that can be unanimous


@dataclass(frozen=True)
class Violation:
    """A pair whose scores say the opposite: ``winner`` won ``wins`` of ``comparisons``, and its score is ``behind``
    that of ``loser``. p_value: of so large a majority where both are as good (sign test, ties left out).
    """

    winner: str
    loser: str
    wins: int
    comparisons: int
    behind: float
    p_value: float


@dataclass(frozen=True)
class Violations:
    """Attributes: unanimous, majorities: pairs that have one. reversed_unanimous, reversed_majorities: the clearest
    first; the latter hold the former.
    """

    unanimous: int
    majorities: int
    reversed_unanimous: list[Violation]
    reversed_majorities: list[Violation]


def violations(table: PairTable, players: list[str], scores: np.ndarray) -> Violations:
    """Of scores [N]; equal scores reverse nobody."""
    gap = scores[table.low] - scores[table.high]
    majority, unanimous = np.sign(table.won - table.lost), unanimous_pairs(table)
    wrong = majority * np.sign(gap) < 0
    found = []
    for e in np.flatnonzero(wrong):
        ends = (table.low[e], table.high[e]) if majority[e] > 0 else (table.high[e], table.low[e])
        wins, losses = int(max(table.won[e], table.lost[e])), int(min(table.won[e], table.lost[e]))
        behind, p_value = float(abs(gap[e])), _sign_test(wins, losses)
        found.append((unanimous[e], Violation(*(players[i] for i in ends), wins, int(table.games[e]), behind, p_value)))
    found.sort(key=lambda row: (row[1].p_value, -row[1].behind))
    return Violations(
        int(unanimous.sum()),
        int((majority != 0).sum()),
        [row for alone, row in found if alone],
        [row for _, row in found],
    )


def unanimous_pairs(table: PairTable) -> np.ndarray:
    """Pairs of two comparisons or more that one player won all of, bool [E]."""
    return (table.games >= LEAST) & (np.maximum(table.won, table.lost) == table.games)


def _sign_test(wins: int, losses: int) -> float:
    """Two-sided."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(losses, wins + losses, 0.5)))
