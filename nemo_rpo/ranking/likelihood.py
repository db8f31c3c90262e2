r"""The likelihood of comparisons with its score and information, for many weightings of the same comparisons.

Comparisons of the same two players by the same annotator are one cell with three counts. With d = s_i - s_j,
u = exp(d/2), v = exp(-d/2), D = u + v + 2ν, and η the annotator's reliability (1 where nobody is doubted)::

    P(i) = (η u + (1-η) v) / D        P(j) = (η v + (1-η) u) / D        P(tie) = 2ν / D

Ties that count half (ν = 0) have the score of half a win for each side. Parameters θ are the log-strengths s [N], then
logit η [K] with ``crowd_bt``, then log ν where ties are modelled. Shapes: n comparisons, c cells, m parameters.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nemo_rpo.ranking.comparisons import Comparisons
from nemo_rpo.ranking.ranking_settings import RankSettings


class Terms(NamedTuple):
    """Of every cell: derivatives of the log-probability of each outcome (i, j, tie) in (d, logit η, log ν), float64
    [c, 3, 3] as outcome × parameter; and the probabilities [c, 3]."""

    slope: np.ndarray
    probability: np.ndarray


class Likelihood:
    """Comparisons in cells; every method takes counts [c, 3], of i's wins, j's wins and ties.

    Args:
        comparisons: those that count (no ties where ``settings.ties`` is ``drop``).
        settings: ``ties``, ``prior``, ``crowd_bt``.
        eta_prior: pseudo-labels right and wrong of every annotator.
    """

    def __init__(
        self, comparisons: Comparisons, settings: RankSettings, eta_prior: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        players, self.crowd = len(comparisons.players), settings.crowd_bt
        annotators = len(comparisons.annotators) if self.crowd else 1
        annotator = comparisons.annotator if self.crowd else np.zeros_like(comparisons.annotator)
        low = np.minimum(comparisons.first, comparisons.second)
        high = np.maximum(comparisons.first, comparisons.second)
        cells, cell = np.unique((low * players + high) * annotators + annotator, return_inverse=True)
        outcome = np.where(comparisons.first == low, comparisons.outcome, -comparisons.outcome)
        self._code = 3 * cell + np.array([2, 0, 1])[outcome]  # sign 0, +1, -1
        self.i, self.j = (cells // annotators) // players, (cells // annotators) % players
        self.k = players + cells % annotators
        self.players, self.annotators = players, annotators * self.crowd
        self.modelled_ties = settings.ties == "davidson" and bool((comparisons.outcome == 0).any())
        self.size = players + self.annotators + self.modelled_ties
        self.prior, self.eta_prior = settings.prior, eta_prior

    def counts(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Counts of comparisons that count for ``weights`` [n] each, 1 by default."""
        return np.bincount(self._code, weights=weights, minlength=3 * len(self.i)).reshape(-1, 3).astype(np.float64)

    def terms(self, theta: np.ndarray) -> Terms:
        """Slopes and probabilities at θ."""
        half = 0.5 * (theta[self.i] - theta[self.j])
        u, v = np.exp(half), np.exp(-half)
        nu = np.exp(theta[-1]) if self.modelled_ties else 0.0
        total = u + v + 2 * nu
        eta = 1 / (1 + np.exp(-theta[self.k])) if self.crowd else np.ones_like(u)
        wins = np.stack((eta * u + (1 - eta) * v, eta * v + (1 - eta) * u), 1)
        slope = np.zeros((len(u), 3, 3))
        slope[:, 0, 0] = 0.5 * (eta * u - (1 - eta) * v) / wins[:, 0]
        slope[:, 1, 0] = 0.5 * ((1 - eta) * u - eta * v) / wins[:, 1]
        slope[:, :, 0] -= (0.5 * (u - v) / total)[:, None]
        slope[:, 0, 1] = eta * (1 - eta) * (u - v) / wins[:, 0]
        slope[:, 1, 1] = -eta * (1 - eta) * (u - v) / wins[:, 1]
        slope[:, :, 2] = -(2 * nu / total)[:, None]
        slope[:, 2, 2] += 1.0
        probability = np.concatenate((wins / total[:, None], (2 * nu / total)[:, None]), 1)
        return Terms(slope, probability)

    def log_posterior(self, theta: np.ndarray, counts: np.ndarray) -> float:
        """Of θ given the counts, up to a constant."""
        probability = self.terms(theta).probability
        if not self.modelled_ties:  # half a win for each side, which nobody is doubted for
            half = 0.5 * (theta[self.i] - theta[self.j])
            probability = probability.copy()
            probability[:, 2] = 1 / (np.exp(half) + np.exp(-half))
        with np.errstate(divide="ignore"):
            found = float((counts * np.where(counts > 0, np.log(probability), 0.0)).sum())
        s, of_eta = theta[: self.players], theta[self.players : self.players + self.annotators]
        a, b = self.eta_prior
        found -= self.prior * float((np.logaddexp(0, s) + np.logaddexp(0, -s)).sum())
        return found - float((a * np.logaddexp(0, -of_eta) + b * np.logaddexp(0, of_eta)).sum())

    def score(self, theta: np.ndarray, counts: np.ndarray, terms: Terms) -> np.ndarray:
        """Gradient of the log-posterior [m]."""
        by_cell = np.einsum("co,cop->cp", counts, terms.slope)
        gradient = np.bincount(self.i, by_cell[:, 0], self.size) - np.bincount(self.j, by_cell[:, 0], self.size)
        if self.crowd:
            gradient += np.bincount(self.k, by_cell[:, 1], self.size)
        if self.modelled_ties:
            gradient[-1] += by_cell[:, 2].sum()
        return gradient + self._prior_score(theta)

    def information(self, counts: np.ndarray, terms: Terms) -> np.ndarray:
        """Expected information of every cell in (d, logit η, log ν), float64 [c, 3, 3]."""
        games = counts.sum(1)
        return np.einsum("c,co,cop,coq->cpq", games, terms.probability, terms.slope, terms.slope, optimize=True)

    def entries(self, information: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The information matrix of θ as (row, column, value), repeated places adding up; without the prior's."""
        last = np.full_like(self.i, self.size - 1)
        ends = [(self.i, 0, 1.0), (self.j, 0, -1.0)]
        ends += [(self.k, 1, 1.0)] * self.crowd + [(last, 2, 1.0)] * self.modelled_ties
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
        if self.modelled_ties:
            diagonal[-1] = 0.0
        return diagonal

    def _prior_score(self, theta: np.ndarray) -> np.ndarray:
        p = 1 / (1 + np.exp(-theta))
        a, b = self.eta_prior
        gradient = self.prior * (1 - 2 * p)
        gradient[self.players :] = a - (a + b) * p[self.players :]
        if self.modelled_ties:
            gradient[-1] = 0.0
        return gradient
