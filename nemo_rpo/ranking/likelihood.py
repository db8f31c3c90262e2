r"""The likelihood of comparisons with its score and information, for many weightings of the same comparisons.

Comparisons of the same two players by the same annotator are one cell with three counts. With d = s_i - s_j,
u = exp(d/2), v = exp(-d/2), D = u + v + 2ν, and η the annotator's reliability (1 where nobody is doubted)::

    P(i) = (η u + (1-η) v) / D        P(j) = (η v + (1-η) u) / D        P(tie) = 2ν / D

Where the order shown is known (ψ = +1 if i was shown first, -1 if j was), the annotator may lean to the first by c::

    P(i) = (η₊ u + (1-η₋) v) / D        P(j) = ((1-η₊) u + η₋ v) / D        η± = σ(logit η ± c ψ)

Ties that count half (ν = 0) have the score of half a win for each side. Parameters θ are the log-strengths s [N], then
with ``crowd_bt`` logit η [K] and, with an order, the leanings c [K] under N(0, 1), then log ν where ties are modelled.
Shapes: n comparisons, c cells, m parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.ranking_settings import RankSettings


class Terms(NamedTuple):
    """Of every cell: derivatives of the log-probability of each outcome (i, j, tie) in (d, logit η, log ν, c), float64
    [c, 3, 4] as outcome × parameter; and the probabilities [c, 3]."""

    slope: np.ndarray
    probability: np.ndarray


class Scores(NamedTuple):
    """Slopes of every comparison in (d, logit η, log ν, c), float32 [n], and whom they are about."""

    likelihood: Likelihood
    gap: np.ndarray
    skill: np.ndarray
    tie: np.ndarray
    leaning: np.ndarray
    i: np.ndarray
    j: np.ndarray
    k: np.ndarray

    def of(self, weights: np.ndarray) -> np.ndarray:
        """Σ weight × score, [m]; without the prior's."""
        size, by_gap = self.likelihood.size, weights * self.gap
        gradient = np.bincount(self.i, by_gap, size) - np.bincount(self.j, by_gap, size)
        if self.likelihood.crowd:
            gradient += np.bincount(self.k, weights * self.skill, size)
        if self.likelihood.slots:
            gradient += np.bincount(self.k + self.likelihood.annotators, weights * self.leaning, size)
        if self.likelihood.modelled_ties:
            gradient[-1] += float(weights @ self.tie)
        return gradient


class Likelihood:
    """Comparisons in cells; every method takes counts [c, 3], of i's wins, j's wins and ties.

    Args:
        comparisons: those that count (no ties where ``settings.ties`` is ``drop``).
        settings: ``ties``, ``prior``, ``crowd_bt``.
        eta_prior: pseudo-labels right and wrong of every annotator.
        slots: whether annotators may lean to what was shown first.
    """

    def __init__(
        self,
        comparisons: Comparisons,
        settings: RankSettings,
        eta_prior: tuple[float, float] = (0.0, 0.0),
        slots: bool = False,
    ) -> None:
        players, self.crowd = len(comparisons.players), settings.crowd_bt
        annotators = len(comparisons.annotators) if self.crowd else 1
        annotator = comparisons.annotator if self.crowd else np.zeros_like(comparisons.annotator)
        low = np.minimum(comparisons.first, comparisons.second)
        high = np.maximum(comparisons.first, comparisons.second)
        turn = np.where(comparisons.first == low, 1, -1)
        outcome, slot = turn * comparisons.outcome, np.zeros_like(low)
        if slots and comparisons.slot is not None:
            slot = turn * comparisons.slot
        key = ((low * players + high) * annotators + annotator) * 3 + slot + 1
        cells, cell = np.unique(key, return_inverse=True)
        cells, self.slot = cells // 3, (cells % 3 - 1).astype(np.float64)
        self._code = 3 * cell + np.array([2, 0, 1])[outcome]  # sign 0, +1, -1
        self.i, self.j = (cells // annotators) // players, (cells // annotators) % players
        self.k = players + cells % annotators
        self.players, self.annotators = players, annotators * self.crowd
        self.modelled_ties = settings.ties == "davidson" and bool((comparisons.outcome == 0).any())
        self.slots = slots and self.crowd
        self.size = players + self.annotators * (1 + self.slots) + self.modelled_ties
        self.prior, self.eta_prior = settings.prior, eta_prior

    def counts(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Counts of comparisons that count for ``weights`` [n] each, 1 by default."""
        return np.bincount(self._code, weights=weights, minlength=3 * len(self.i)).reshape(-1, 3).astype(np.float64)

    def terms(self, theta: np.ndarray) -> Terms:
        """Slopes and probabilities at θ."""
        u, v, nu, up, down = self._parts(theta)
        total, wins = u + v + 2 * nu, _wins(u, v, up, down)
        slope = np.zeros((len(u), 3, 4))
        slope[:, 0, 0] = 0.5 * (up * u - (1 - down) * v) / wins[:, 0]
        slope[:, 1, 0] = 0.5 * ((1 - up) * u - down * v) / wins[:, 1]
        slope[:, :, 0] -= (0.5 * (u - v) / total)[:, None]
        of_up, of_down = up * (1 - up) * u, down * (1 - down) * v
        for parameter, change in ((1, of_up - of_down), (3, self.slot * (of_up + of_down))):
            slope[:, 0, parameter] = change / wins[:, 0]
            slope[:, 1, parameter] = -change / wins[:, 1]
        slope[:, :, 2] = -(2 * nu / total)[:, None]
        slope[:, 2, 2] += 1.0
        probability = np.concatenate((wins / total[:, None], (2 * nu / total)[:, None]), 1)
        return Terms(slope, probability)

    def log_posterior(self, theta: np.ndarray, counts: np.ndarray) -> float:
        """Of θ given the counts, up to a constant."""
        u, v, nu, up, down = self._parts(theta)
        total = (u + v + 2 * nu)[:, None]
        # Ties that are not modelled are half a win for each side, which nobody is doubted for.
        tie = 2 * nu / total if self.modelled_ties else 1 / total
        probability = np.concatenate((_wins(u, v, up, down) / total, tie), 1)
        with np.errstate(divide="ignore"):
            found = float((counts * np.where(counts > 0, np.log(probability), 0.0)).sum())
        s, of_eta = theta[: self.players], theta[self.players : self.players + self.annotators]
        a, b = self.eta_prior
        found -= self.prior * float((np.logaddexp(0, s) + np.logaddexp(0, -s)).sum())
        if self.slots:
            found -= 0.5 * float(np.square(theta[self.leanings()]).sum())
        return found - float((a * np.logaddexp(0, -of_eta) + b * np.logaddexp(0, of_eta)).sum())

    def _parts(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, np.ndarray]:
        """u, v, ν, η₊ and η₋."""
        half = 0.5 * (theta[self.i] - theta[self.j])
        u, v = np.exp(half), np.exp(-half)
        a = theta[self.k] if self.crowd else np.full_like(u, np.inf)
        b = theta[self.k + self.annotators] * self.slot if self.slots else np.zeros_like(u)
        nu = float(np.exp(theta[-1])) if self.modelled_ties else 0.0
        return u, v, nu, 1 / (1 + np.exp(-a - b)), 1 / (1 + np.exp(b - a))

    def score(self, theta: np.ndarray, counts: np.ndarray, terms: Terms) -> np.ndarray:
        """Gradient of the log-posterior [m]."""
        by_cell = np.einsum("co,cop->cp", counts, terms.slope)
        gradient = np.bincount(self.i, by_cell[:, 0], self.size) - np.bincount(self.j, by_cell[:, 0], self.size)
        if self.crowd:
            gradient += np.bincount(self.k, by_cell[:, 1], self.size)
        if self.slots:
            gradient += np.bincount(self.k + self.annotators, by_cell[:, 3], self.size)
        if self.modelled_ties:
            gradient[-1] += by_cell[:, 2].sum()
        return gradient + self.prior_score(theta)

    def scores(self, terms: Terms) -> Scores:
        """The score of every comparison by itself, for sums of many weightings at one θ."""
        by_code = terms.slope.reshape(-1, 4)[self._code].astype(np.float32)
        cell = self._code // 3
        return Scores(self, *by_code.T.copy(), self.i[cell], self.j[cell], self.k[cell])

    def information(self, counts: np.ndarray, terms: Terms) -> np.ndarray:
        """Expected information of every cell in (d, logit η, log ν, c), float64 [c, 4, 4]."""
        games = counts.sum(1)
        return np.einsum("c,co,cop,coq->cpq", games, terms.probability, terms.slope, terms.slope, optimize=True)

    def entries(self, information: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The information matrix of θ as (row, column, value), repeated places adding up; without the prior's."""
        last = np.full_like(self.i, self.size - 1)
        ends = [(self.i, 0, 1.0), (self.j, 0, -1.0)]
        ends += [(self.k, 1, 1.0)] * self.crowd + [(last, 2, 1.0)] * self.modelled_ties
        ends += [(self.k + self.annotators, 3, 1.0)] * self.slots
        rows, columns, values = [], [], []
        for row, p, sign in ends:
            for column, q, other in ends:
                rows.append(row)
                columns.append(column)
                values.append(sign * other * information[:, p, q])
        return np.concatenate(rows), np.concatenate(columns), np.concatenate(values)

    def prior_information(self, theta: np.ndarray) -> np.ndarray:
        """The prior's share of the diagonal [m]."""
        p = 1 / (1 + np.exp(-theta))
        diagonal = 2 * self.prior * p * (1 - p)
        diagonal[self.players :] = sum(self.eta_prior) * (p * (1 - p))[self.players :]
        if self.slots:
            diagonal[self.leanings()] = 1.0
        if self.modelled_ties:
            diagonal[-1] = 0.0
        return diagonal

    def prior_score(self, theta: np.ndarray) -> np.ndarray:
        """The prior's share of the gradient [m]."""
        p = 1 / (1 + np.exp(-theta))
        a, b = self.eta_prior
        gradient = self.prior * (1 - 2 * p)  # of strengths; the others follow
        gradient[self.players :] = a - (a + b) * p[self.players :]
        if self.slots:
            gradient[self.leanings()] = -theta[self.leanings()]
        if self.modelled_ties:
            gradient[-1] = 0.0
        return gradient

    def leanings(self) -> slice:
        """Where the leanings stand in θ."""
        return slice(self.players + self.annotators, self.players + 2 * self.annotators)


def _wins(u: np.ndarray, v: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """P(i) and P(j) times D, [c, 2]."""
    return np.stack((up * u + (1 - down) * v, (1 - up) * u + down * v), 1)
