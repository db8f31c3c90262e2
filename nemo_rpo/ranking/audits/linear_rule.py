r"""Scores that are linear in features, r_i = x_i · θ, and a rule that keeps the axioms where the likeliest break them.

Not every order of players has a θ. Maximum likelihood may then rank b above a although everybody prefers a (Pareto's
axiom), and against the majorities although a θ that follows all of them exists (majority consistency): it trades one
pair's log-likelihood for another's. *Leximax Copeland subject to Pareto* keeps both. First comes, of the players who can
be first under a θ that respects every unanimous pair, the one who beats most others by majority; then the second
likewise, given the first; and so on. Each question is a linear program.

Source: L. Ge et al., "Axioms for AI alignment from human feedback", NeurIPS 2024.

Shapes: N players, f features, E pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nemo_rpo.errors import ConfigError, DataError
from nemo_rpo.ranking.audits.violations import unanimous_pairs
from nemo_rpo.ranking.pair_table import PairTable

_MOST = 200  # players: about N²/2 linear programs
_LEAST = 1e-9  # margin of a program that counts as a strict inequality
_NEWTON = 100


class LinearRule(NamedTuple):
    """Attributes: order int64 [N], best first; weights θ [f] that rank so, with the widest margin; whether every
    unanimous pair is kept (False only where no θ keeps them all, and then none was asked for).
    """

    order: np.ndarray
    weights: np.ndarray
    pareto: bool


def linear_strengths(table: PairTable, features: np.ndarray, prior: float) -> np.ndarray:
    """θ [f] of Bradley-Terry scores x·θ under the leaderboard's prior of c wins and c losses; a tie is half a win.

    Raises:
        DataError: with ``prior`` 0, likelihood without a maximum.
    """
    difference = features[table.low] - features[table.high]
    won, games = table.won + table.ties / 2, table.games
    design = np.concatenate([difference, features])
    hits = np.r_[won, np.full(len(features), prior)]
    trials = np.r_[games, np.full(len(features), 2 * prior)]
    theta, value = np.zeros(features.shape[1]), -np.inf
    for _ in range(_NEWTON):
        z = design @ theta
        p = 1 / (1 + np.exp(-z))
        curvature = (design * (trials * p * (1 - p))[:, None]).T @ design
        step = np.linalg.lstsq(curvature, design.T @ (hits - trials * p), rcond=None)[0]
        length = 1.0
        while length > 1e-9:
            z = design @ (theta + length * step)
            risen = float(hits @ z - trials @ np.logaddexp(0, z))
            if risen >= value:
                break
            length /= 2
        theta, value = theta + length * step, risen
        if length * np.abs(step).max() < 1e-10 * (1 + np.abs(theta).max()):
            return theta
        if np.abs(design @ theta).max() > 50:
            break
    raise DataError("the features separate winners from losers, and no weights are likeliest; give a prior, --prior 1")


def leximax_copeland(table: PairTable, features: np.ndarray) -> LinearRule:
    """Raises :class:`ConfigError` for too many players."""
    players = len(features)
    if players > _MOST:
        raise ConfigError(f"the linear rule takes up to {_MOST} players, and there are {players}: leave some out")
    programs = _Programs(features)
    margin, unanimous = table.won - table.lost, unanimous_pairs(table)
    won = np.bincount(table.low[margin > 0], minlength=players) + np.bincount(table.high[margin < 0], minlength=players)
    level = np.bincount(table.low[margin == 0], minlength=players)
    level += np.bincount(table.high[margin == 0], minlength=players)
    copeland = won + level / 2
    swap = margin[unanimous] < 0
    above = np.where(swap, table.high[unanimous], table.low[unanimous])
    below = np.where(swap, table.low[unanimous], table.high[unanimous])
    agreed = list(zip(above.tolist(), below.tolist(), strict=True))
    pareto = programs.solve(agreed) is not None
    kept = agreed if pareto else []
    order: list[int] = []
    left = sorted(range(players), key=lambda i: (-copeland[i], i))
    while left:
        for candidate in left:
            rest = [(candidate, other) for other in left if other != candidate]
            if programs.solve([*kept, *rest]) is not None:
                break
        kept += rest
        order.append(candidate)
        left.remove(candidate)
    weights = programs.solve(kept)
    return LinearRule(np.array(order), weights if weights is not None else np.zeros(features.shape[1]), pareto)


class _Programs:
    """Is there a θ that ranks each of the given players above another? The one of widest margin, else ``None``."""

    def __init__(self, features: np.ndarray) -> None:
        spread = features.std(0)
        self._scale = np.where(spread > 0, spread, 1.0)
        self._features = (features - features.mean(0)) / self._scale

    def solve(self, above: list[tuple[int, int]]) -> np.ndarray | None:
        from scipy.optimize import linprog

        size = self._features.shape[1]
        first, second = (np.array([pair[i] for pair in above], dtype=np.int64) for i in (0, 1))
        rows = self._features[first] - self._features[second]
        length = np.linalg.norm(rows, axis=1)
        told_apart = length > 1e-12  # the same features have the same score, whatever θ is
        rows = rows[told_apart] / length[told_apart, None]
        if not len(rows):
            return np.zeros(size)
        # Maximise t with rows · θ ≥ t and |θ| ≤ 1.
        found = linprog(
            np.r_[np.zeros(size), -1.0],
            A_ub=np.c_[-rows, np.ones(len(rows))],
            b_ub=np.zeros(len(rows)),
            bounds=[(-1, 1)] * size + [(None, 1)],
        )
        if found.status != 0 or found.x[-1] <= _LEAST:
            return None
        return found.x[:-1] / self._scale
