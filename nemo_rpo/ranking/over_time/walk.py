r"""Strengths that walk: the most probable strengths of all states, and how probable a scale of the walk is.

With d = s_i - s_j in a slice, u = exp(d/2), v = exp(-d/2), D = u + v + 2ν as in :mod:`nemo_rpo.ranking.strengths`::

    log P = Σ_cells [ (w_i - w_j) d/2 - n log D + t log 2ν ]  -  Σ_steps [ (s' - s)² / (2 g τ²) + ½ log(2π g τ²) ]
            - Σ_states c_a (log(1 + e^s) + log(1 + e^-s))

The prior of c wins and c losses against strength 1 is spread evenly over a player's states, so that τ → 0 is the static
table. All of it is concave in (s, log ν), and Newton's method finds the one mode. Laplace's approximation gives the
evidence for τ. Only differences within a slice are observed: what all players have in common stays where it is.

Shapes: m states, c cells, k steps.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np

from nemo_rpo.ranking.over_time.chains import Chains, scipy_parts
from nemo_rpo.ranking.over_time.over_time_settings import OverTimeSettings
from nemo_rpo.ranking.over_time.states import States

logger = logging.getLogger(__name__)

_HALVINGS, _NEWTON_STEPS = 30, 100
_TIE_START = 0.5
_RESIDUAL = 1e-3  # of a Newton step: a step more now and then costs less than steps to the last digit


class Mode(NamedTuple):
    """Attributes: strengths s [m]; log ν (-inf where ties are not modelled); log-posterior there; H of s there."""

    strength: np.ndarray
    log_nu: float
    log_posterior: float
    curvature: Chains


class Walk:
    """The posterior of strengths under a walk.

    Args:
        half_ties: count a tie as half a win for each, in place of modelling it.
        prior: c, above 0.
    """

    def __init__(self, states: States, prior: float, half_ties: bool, settings: OverTimeSettings) -> None:
        self.states, self.settings = states, settings
        counts = states.counts
        self._games, self._balance = counts.sum(1), (counts[:, 0] - counts[:, 1]) / 2
        self._tied = counts[:, 2] * (not half_ties)
        self._models_ties = bool(self._tied.any())
        played = np.bincount(states.player)
        self._prior = prior / played[states.player]
        _, sparse, _ = scipy_parts()
        m, c = len(states), len(states.low)
        ends = np.concatenate([states.low, states.high]), np.concatenate([states.high, states.low])
        pattern = sparse.coo_array((np.arange(2 * c), ends), shape=(m, m)).tocsr()
        self._order, self._pattern = pattern.data % c, pattern
        rng = np.random.default_rng(settings.seed)
        self._probes = rng.choice((-1.0, 1.0), size=(settings.probes, m)) if m > settings.exact_states else None

    def mode(self, scale: float, start: Mode | None = None, tolerance: float | None = None) -> Mode:
        """The mode for a walk of standard deviation ``scale`` > 0 a slice, by Newton's method, from a mode near it to
        the settings' tolerance or another.
        """
        tolerance = self.settings.tolerance if tolerance is None else tolerance
        s = np.zeros(len(self.states)) if start is None else start.strength
        log_nu = (np.log(_TIE_START) if start is None else start.log_nu) if self._models_ties else -np.inf
        value = self._log_posterior(s, log_nu, scale)
        for _ in range(_NEWTON_STEPS):
            step, of_nu, gain = self._newton(s, log_nu, scale)
            length = 1.0
            for _ in range(_HALVINGS):
                moved = s + length * step, log_nu + length * of_nu
                risen = self._log_posterior(*moved, scale)
                if risen >= value + 1e-4 * length * gain - 1e-9 * abs(value):
                    break
                length /= 2
            s, log_nu, value = *moved, risen
            if length * max(np.abs(step).max(initial=0), abs(of_nu)) < tolerance:
                break
        else:
            logger.warning("the strengths over time stopped while still moving")
        return Mode(s, float(log_nu), value, self._curvature(s, log_nu, scale)[0])

    def evidence(self, scale: float, mode: Mode) -> float:
        """log P(outcomes | τ) by Laplace's approximation."""
        m, chains = len(self.states), mode.curvature
        if self._probes is None:
            log_determinant = float(np.linalg.slogdet(chains.dense())[1])
        else:
            log_determinant = chains.log_determinant(self._probes, self.settings.lanczos_steps)
        return mode.log_posterior + 0.5 * (m * np.log(2 * np.pi) - log_determinant)

    def noise(self, mode: Mode, scale: float, rng: np.random.Generator) -> np.ndarray:
        """A draw from N(0, H), float64 [m], H being the curvature at the mode."""
        states = self.states
        by_cell = np.sqrt(self._terms(mode.strength, mode.log_nu)[1]) * rng.standard_normal(len(states.low))
        won = 1 / (1 + np.exp(-mode.strength))
        found = np.sqrt(2 * self._prior * won * (1 - won)) * rng.standard_normal(len(states))
        found += self._spread(by_cell)
        by_step = rng.standard_normal(len(states.step)) / (scale * np.sqrt(states.gap))
        found[states.step + 1] += by_step
        found[states.step] -= by_step
        return found

    def _terms(self, s: np.ndarray, log_nu: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Of every cell: slope and curvature in d, slope and curvature in log ν, and what is mixed of both."""
        half = 0.5 * (s[self.states.low] - s[self.states.high])
        u, v, tie = np.exp(half), np.exp(-half), 2 * np.exp(log_nu)
        total = u + v + tie
        signed, decided, tied = (u - v) / (2 * total), (u + v) / (4 * total), tie / total
        n = self._games
        slope, curvature = self._balance - n * signed, n * (decided - signed**2)
        return slope, curvature, self._tied - n * tied, n * tied * (1 - tied), -n * signed * tied

    def _log_posterior(self, s: np.ndarray, log_nu: float, scale: float) -> float:
        states = self.states
        d = s[states.low] - s[states.high]
        total = np.logaddexp(np.logaddexp(d / 2, -d / 2), np.log(2) + log_nu)
        found = float(self._balance @ d - self._games @ total)
        if self._models_ties:
            found += float(self._tied.sum()) * (np.log(2) + log_nu)
        found -= float(self._prior @ (np.logaddexp(0, s) + np.logaddexp(0, -s)))
        variance = states.gap * scale**2
        moved = s[states.step + 1] - s[states.step]
        return found - 0.5 * float((moved**2 / variance + np.log(2 * np.pi * variance)).sum())

    def _curvature(self, s: np.ndarray, log_nu: float, scale: float) -> tuple[Chains, tuple[np.ndarray, ...]]:
        states, terms = self.states, self._terms(s, log_nu)
        kappa, won = terms[1], 1 / (1 + np.exp(-s))
        m = len(states)
        diagonal = 2 * self._prior * won * (1 - won)
        diagonal += np.bincount(states.low, kappa, m) + np.bincount(states.high, kappa, m)
        stiff = 1 / (states.gap * scale**2)
        diagonal[states.step] += stiff
        diagonal[states.step + 1] += stiff
        beside = np.zeros(m - 1)
        beside[states.step] = -stiff
        coupling = self._pattern.astype(np.float64)
        coupling.data[:] = -kappa[self._order]
        return Chains(diagonal, beside, coupling), terms

    def _newton(self, s: np.ndarray, log_nu: float, scale: float) -> tuple[np.ndarray, float, float]:
        """A step of s and log ν, and what it would gain were the posterior quadratic (times two)."""
        states = self.states
        chains, (slope, _, of_nu, in_nu, mixed) = self._curvature(s, log_nu, scale)
        gradient = self._spread(slope) + self._prior * (1 - 2 / (1 + np.exp(-s)))
        pull = (s[states.step + 1] - s[states.step]) / (states.gap * scale**2)
        gradient[states.step] += pull
        gradient[states.step + 1] -= pull
        step, step_nu = chains.solve(gradient, _RESIDUAL), 0.0
        if self._models_ties:
            border = self._spread(mixed)
            across = chains.solve(border, _RESIDUAL)
            step_nu = (of_nu.sum() - border @ step) / max(in_nu.sum() - border @ across, 1e-6)
            step = step - step_nu * across
        return step, float(step_nu), float(gradient @ step + of_nu.sum() * step_nu)

    def _spread(self, by_cell: np.ndarray) -> np.ndarray:
        m = len(self.states)
        return np.bincount(self.states.low, by_cell, m) - np.bincount(self.states.high, by_cell, m)
