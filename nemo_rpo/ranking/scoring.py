"""Fisher scoring: the most probable parameters of reweighted comparisons, whole or in one step. See ``likelihood``.

Shapes: n comparisons, c cells, m parameters, B resamples.
"""

from __future__ import annotations

import numpy as np

from nemo_rpo.ranking.likelihood import Likelihood, Terms

_HALVINGS = 12
_LEAST_GAIN = 1e-12  # nats, twice what a step is expected to gain
BATCH = 8  # resamples solved for at once; float32 [entries, 8] is held
_RESIDUAL = 1e-2  # of one step, relative: a bootstrap of 200 knows its quantiles to a tenth
_ROUNDS = 500


def maximise(
    likelihood: Likelihood,
    theta: np.ndarray,
    counts: np.ndarray,
    bounds: tuple[float, float],
    tolerance: float,
    most: int,
) -> tuple[np.ndarray, bool]:
    """The mode of the posterior from ``theta``, and whether it was reached; each step solves a dense system [m, m].

    Args:
        bounds: of logit η.
        tolerance, most: it ends when no parameter moves by more, when a step promises no more than rounding (log ν has
            no mode where no tie was drawn, and creeps to -∞), or after so many steps.
    """
    least = min(_LEAST_GAIN, tolerance**2)
    value, terms = likelihood.log_posterior(theta, counts), likelihood.terms(theta)
    score = likelihood.score(theta, counts, terms)
    for _ in range(most):
        step = _solve(likelihood, theta, counts, terms, score, bounds).clip(-3, 3)
        for _ in range(_HALVINGS):
            moved = _bounded(likelihood, theta + step, bounds)
            terms = likelihood.terms(moved)
            after = likelihood.score(moved, counts, terms)
            before_slope, after_slope = score @ step, after @ step
            if after_slope >= -0.2 * before_slope:
                break
            # Beyond the highest point of this line, as expected information may be less than what was observed.
            step = step * max(0.2, before_slope / (before_slope - after_slope))
        risen = likelihood.log_posterior(moved, counts)
        largest = np.abs(moved - theta).max()
        if risen < value - 1e-6:
            return theta, False
        theta, value, score = moved, risen, after
        if largest < tolerance or before_slope < least:
            return theta, True
    return theta, False


def _solve(
    likelihood: Likelihood,
    theta: np.ndarray,
    counts: np.ndarray,
    terms: Terms,
    score: np.ndarray,
    bounds: tuple[float, float],
) -> np.ndarray:
    size = likelihood.size
    row, column, value = likelihood.entries(likelihood.information(counts, terms))
    matrix = np.bincount(row * size + column, value, size * size).reshape(size, size)
    # Without a prior the common level of strengths is free: the score has no part along it, so any curvature will do.
    matrix[: likelihood.players, : likelihood.players] += 0.0 if likelihood.prior else 1.0
    matrix[np.diag_indices(size)] += likelihood.prior_information(theta) + 1e-9
    of_eta = slice(likelihood.players, likelihood.players + likelihood.annotators)
    free = np.ones(size, dtype=bool)
    at, slope = theta[of_eta], score[of_eta]
    free[of_eta] = ~(((at <= bounds[0]) & (slope < 0)) | ((at >= bounds[1]) & (slope > 0)))
    step = np.zeros(size)
    step[free] = np.linalg.solve(matrix[np.ix_(free, free)], score[free])
    if not likelihood.prior:
        step[: likelihood.players] -= step[: likelihood.players].mean()
    return step


def _bounded(likelihood: Likelihood, theta: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    of_eta = slice(likelihood.players, likelihood.players + likelihood.annotators)
    theta[of_eta] = theta[of_eta].clip(*bounds)
    return theta


class OneStep:
    r"""Resamples of many comparisons by one step from the best fit: θ_b = θ + H⁻¹ ∂ℓ_b, H the expected information.

    ∂ℓ_b is the score of the reweighted comparisons at θ; its spread over resamples, times H⁻¹, is the sandwich that a
    full bootstrap estimates. What it leaves out is of the order of one game in as many as each player has.

    Source: P. Kline, A. Santos, "A score based approach to wild bootstrap inference", J. Econometric Methods 1 (2012).

    Args:
        likelihood: of all comparisons.
        theta: its mode.
    """

    def __init__(self, likelihood: Likelihood, theta: np.ndarray) -> None:
        self.likelihood, self.theta = likelihood, theta
        counts = likelihood.counts()
        terms = likelihood.terms(theta)
        self._scores, self._pull = likelihood.scores(terms), likelihood.prior_score(theta)
        row, column, value = likelihood.entries(likelihood.information(counts, terms))
        place = row * likelihood.size + column
        order = np.argsort(place, kind="stable")
        begins = np.flatnonzero(np.r_[True, np.diff(place[order]) != 0])
        place = place[order][begins]
        value = np.add.reduceat(value[order], begins)
        rows = place // likelihood.size
        self._column, self._value = place % likelihood.size, value.astype(np.float32)[:, None]
        self._row, self._begins = np.unique(rows, return_index=True)
        on_diagonal = rows == self._column
        self._prior = (likelihood.prior_information(theta) + 1e-9).astype(np.float32)
        self._diagonal = self._prior.copy()
        self._diagonal[rows[on_diagonal]] += value[on_diagonal].astype(np.float32)

    def strengths(self, weights: list[np.ndarray]) -> np.ndarray:
        """Log-strengths of resamples with ``weights`` [n] each, float64 [len(weights), N]."""
        right = [self._scores.of(w) + self._pull for w in weights]
        found = self.theta + self._solve(np.stack(right, 1)).T
        return found[:, : self.likelihood.players]

    def _solve(self, right: np.ndarray) -> np.ndarray:
        """Conjugate gradients for several right-hand sides [m, b], preconditioned by the diagonal."""
        residual = right.astype(np.float32)
        x, inverse = np.zeros_like(residual), 1 / self._diagonal[:, None]
        z = inverse * residual
        direction, power = z.copy(), (residual * z).sum(0)
        goal = _RESIDUAL**2 * power
        for _ in range(_ROUNDS):
            curved = self._times(direction)
            length = power / np.maximum((direction * curved).sum(0), 1e-30)
            x += length * direction
            residual -= length * curved
            z = inverse * residual
            before, power = power, (residual * z).sum(0)
            if (power <= goal).all():
                break
            direction = z + power / np.maximum(before, 1e-30) * direction
        if not self.likelihood.prior:
            x[: self.likelihood.players] -= x[: self.likelihood.players].mean(0)
        return x.astype(np.float64)

    def _times(self, x: np.ndarray) -> np.ndarray:
        product = self._prior[:, None] * x
        product[self._row] += np.add.reduceat(self._value * x[self._column], self._begins, axis=0)
        return product
