"""Who won how often against whom. Shapes: E pairs that met."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nemo_rpo.ranking.comparisons import Comparisons


class PairTable(NamedTuple):
    """Every pair that met once, ``low < high``.

    Attributes: low, high: int64 [E], players. won, lost, ties: float64 [E], of low. pair: int64 [n], of a comparison.
    """

    low: np.ndarray
    high: np.ndarray
    won: np.ndarray
    lost: np.ndarray
    ties: np.ndarray
    pair: np.ndarray

    @property
    def games(self) -> np.ndarray:
        """float64 [E], ties among them."""
        return self.won + self.lost + self.ties

    @property
    def share(self) -> np.ndarray:
        """float64 [E], low's share of the wins, a tie being half a win for each."""
        return (self.won + self.ties / 2) / self.games

    def logits(self) -> tuple[np.ndarray, np.ndarray]:
        """Logit of low's share with half a win added to each side, and the variance of it, float64 [E] each."""
        won, lost = self.won + self.ties / 2 + 0.5, self.lost + self.ties / 2 + 0.5
        return np.log(won / lost), 1 / won + 1 / lost


def pair_table(comparisons: Comparisons) -> PairTable:
    """The table of all comparisons."""
    players = len(comparisons.players)
    low = np.minimum(comparisons.first, comparisons.second)
    high = np.maximum(comparisons.first, comparisons.second)
    pairs, pair = np.unique(low * players + high, return_inverse=True)
    outcome = np.where(comparisons.first == low, comparisons.outcome, -comparisons.outcome)
    counts = (np.bincount(pair, outcome == sign, len(pairs)) for sign in (1, -1, 0))
    return PairTable(pairs // players, pairs % players, *counts, pair)
