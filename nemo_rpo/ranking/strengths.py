"""Strengths of players from wins, losses and ties: Newman's iteration for the Bradley-Terry and Davidson models."""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from nemo_rpo.ranking.ranking_settings import RankSettings
from nemo_rpo.ranking.schedule import Results, Schedule

logger = logging.getLogger(__name__)

_TIE_START = 0.5  # of ν; the fixed point does not depend on it


class Strengths(NamedTuple):
    """Attributes: log_strength s [N]; ν of Davidson's ties (0 without any); iterations taken; whether it converged."""

    log_strength: np.ndarray
    tie_strength: float
    iterations: int
    converged: bool


def bradley_terry(
    schedule: Schedule, results: Results, settings: RankSettings, start: Strengths | None = None
) -> Strengths:
    r"""The most probable strengths π = exp(s) given the results.

    With D = π_i + π_j + 2ν √(π_i π_j)::

        P(i beats j) = π_i / D,     P(tie) = 2ν √(π_i π_j) / D

    Without ties ν = 0, the Bradley-Terry model. With a_ij the wins of i over j plus half their ties, and
    g_ij = (π_j + ν √(π_i π_j)) / D, the credit that i should lack against j, one player after another::

        π_i ← π_i · (Σ_j a_ij g_ij + c (1 - σ(s_i))) / (Σ_j a_ji (1 - g_ij) + c σ(s_i))
        ν   ← Σ_{i<j} t_ij (π_i + π_j) / D  /  (2 Σ_{i<j} (w_ij + w_ji) √(π_i π_j) / D)

    For ν = c = 0 the first line is π_i ← Σ_j w_ij π_j/(π_i+π_j) / Σ_j w_ji/(π_i+π_j). A fixed point is a stationary
    point of the likelihood, or with c = ``settings.prior`` > 0 of the posterior under c wins and c losses against a
    player of strength 1. Without a prior the scale is free, and the mean of s is set to 0.

    Source: M. E. J. Newman, "Efficient computation of rankings from pairwise comparisons", JMLR 24 (2023); ties as in
    R. R. Davidson, "On extending the Bradley-Terry model to accommodate ties", JASA 65 (1970).

    Args:
        schedule, results: the games; with ``settings.prior`` 0, :meth:`Schedule.check_connected` has passed them.
        start: where to begin; all players equal by default.
    """
    s = np.zeros(schedule.players) if start is None else start.log_strength
    nu = (_TIE_START if start is None else start.tie_strength) if results.ties.any() else 0.0
    for iteration in range(1, settings.max_iterations + 1):
        before, nu_before = s, nu
        s, nu = one_round(s, nu, schedule, results, settings.prior)
        moved = max(np.abs(s - before).max(initial=0.0), abs(nu - nu_before) / (1 + nu))
        if moved < settings.tolerance:
            return Strengths(s, nu, iteration, True)
    logger.warning(
        "the ranking stopped after %d iterations with strengths still moving by %.1e", settings.max_iterations, moved
    )
    return Strengths(s, nu, settings.max_iterations, False)


def one_round(s: np.ndarray, nu: float, schedule: Schedule, results: Results, prior: float) -> tuple[np.ndarray, float]:
    """One update of every player and of ν, which is 0 without ties."""
    s = s.copy()
    ties = bool(results.ties.any())
    _visit_all(s, nu if ties else 0.0, schedule, results, prior)
    _level(s, prior)
    return s, _tie_strength(s, nu, schedule, results) if ties else 0.0


def _visit_all(s: np.ndarray, nu: float, schedule: Schedule, results: Results, prior: float) -> None:
    """One update of every player, in place."""
    for games, players, begins in schedule.classes:
        mine = s[players]
        half = 0.5 * (s[schedule.here[games]] - s[schedule.there[games]])
        up, down = np.exp(half), np.exp(-half)
        lacking = (down + nu) / (up + down + 2 * nu)
        at_one = 1 / (1 + np.exp(-mine))  # what the imagined player of strength 1 should lose against these
        gained = np.add.reduceat(results.credit[games] * lacking, begins) + prior * (1 - at_one)
        given = np.add.reduceat(results.against[games] * (1 - lacking), begins) + prior * at_one
        s[players] = mine + np.log(gained) - np.log(given)


def _level(s: np.ndarray, prior: float) -> None:
    """Moves all players together, in place, to where the posterior is highest; without a prior to mean 0.

    Games say nothing about the common level, and one player after another would creep towards what the prior says.
    """
    s -= s.mean()
    # By convention so far; under the prior Σ σ(s + level) = N/2, a concave problem in one number.
    for _ in range(50 if prior else 0):
        won = 1 / (1 + np.exp(-s))
        step = (0.5 - won).sum() / (won * (1 - won)).sum()
        s += np.clip(step, -1, 1)
        if abs(step) < 1e-14:
            break


def _tie_strength(s: np.ndarray, nu: float, schedule: Schedule, results: Results) -> float:
    half = 0.5 * (s[schedule.here] - s[schedule.there])
    decided = np.exp(half) + np.exp(-half)
    # Every pair is here twice: ties in both directions, wins once in each.
    ties = 0.5 * (results.ties * decided / (decided + 2 * nu)).sum()
    wins = ((results.credit - results.ties / 2) / (decided + 2 * nu)).sum()
    return float(ties / (2 * wins))
