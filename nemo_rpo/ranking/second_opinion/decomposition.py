r"""A table of logits as what strengths explain plus a few entries that they do not.

The logits of a Bradley-Terry table are skew-symmetric of rank 2, L = s 1ᵀ - 1 sᵀ. Known are some entries of M = L + S,
the corruption S being sparse. Two steps in turn, with a threshold that falls::

    S ← the known entries with |M - L| above the threshold          L ← the nearest table to M - S on what is left

The nearest table is one of ``strengths`` (least squares, N - 1 free numbers), or any skew-symmetric table of ``rank2``
(2N - 3 free numbers, cycles among them), which is completed from its own entries where none is known. Residuals count
in standard errors. Complete tables are RORATRON's case, missing entries CURATRON's (arXiv 2403.02745); the alternation
is that of P. Netrapalli et al., "Non-convex robust PCA", NeurIPS 2014.

Shapes: N players, E known pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

Structure = Literal["strengths", "rank2"]
_FALLS = 0.9  # the threshold, every round
_ROUNDS = 2000
_STEADY = 10  # rounds at the last threshold
_RIDGE = 1e-9  # of the largest weight: players without known pairs stay at 0


class Decomposition(NamedTuple):
    """Attributes: logit believed [E]; corrupted bool [E]; the table L [N, N] (``rank2`` only)."""

    believed: np.ndarray
    corrupted: np.ndarray
    table: np.ndarray | None


def decompose(
    low: np.ndarray,
    high: np.ndarray,
    logit: np.ndarray,
    variance: np.ndarray,
    players: int,
    least: float,
    threshold: Callable[[np.ndarray], float],
    structure: Structure = "strengths",
) -> Decomposition:
    """Splits the known entries.

    Args:
        low, high, logit, variance: [E], of the entry (low, high); that of (high, low) is its negative.
        least: the threshold, in standard errors, that is come down to first, to find entries that agree.
        threshold: the last one, from the standardised residuals |z| [E] of all entries from what those say; entries
            below it are taken in again.
    """
    weight = 1 / variance
    fit = _Strengths(low, high, weight, players) if structure == "strengths" else _Rank2(low, high, weight, players)
    corrupted = np.zeros(len(logit), dtype=bool)
    believed, level, last = fit.nearest(logit, ~corrupted), np.inf, None
    steady = 0
    for _ in range(_ROUNDS):
        z = np.abs(logit - believed) * np.sqrt(weight)
        level = max(least, _FALLS * min(level, float(z.max()))) if last is None else last
        before, corrupted = corrupted, z > level
        if corrupted.all():
            corrupted = before
            break
        believed = fit.nearest(logit, ~corrupted)
        steady = steady + 1 if level in (least, last) and (corrupted == before).all() else 0
        if steady > _STEADY:
            if last is not None:
                break
            last, steady = max(least, threshold(np.abs(logit - believed) * np.sqrt(weight))), 0
    return Decomposition(believed, corrupted, fit.table)


class _Strengths:
    """Weighted least squares of differences."""

    def __init__(self, low: np.ndarray, high: np.ndarray, weight: np.ndarray, players: int) -> None:
        self._low, self._high, self._weight, self._players = low, high, weight, players
        self.table = None

    def nearest(self, logit: np.ndarray, kept: np.ndarray) -> np.ndarray:
        low, high, w, n = self._low, self._high, self._weight * kept, self._players
        matrix = np.zeros((n, n))
        np.subtract.at(matrix, (low, high), w)
        matrix += matrix.T
        np.fill_diagonal(matrix, _RIDGE * self._weight.max() - matrix.sum(1))
        right = np.bincount(low, w * logit, n) - np.bincount(high, w * logit, n)
        s = np.linalg.solve(matrix, right)
        return s[low] - s[high]


class _Rank2:
    """Weighted tables of rank 2 by completion, a step at a time: N. Srebro and T. Jaakkola, ICML 2003."""

    def __init__(self, low: np.ndarray, high: np.ndarray, weight: np.ndarray, players: int) -> None:
        self._low, self._high = low, high
        self._weight = weight / weight.max()
        self.table = np.zeros((players, players))

    def nearest(self, logit: np.ndarray, kept: np.ndarray) -> np.ndarray:
        low, high = self._low, self._high
        filled = self.table.copy()
        filled[low, high] += self._weight * kept * (logit - filled[low, high])
        filled[high, low] = -filled[low, high]
        left, size, right = np.linalg.svd(filled)
        found = (left[:, :2] * size[:2]) @ right[:2]
        self.table = (found - found.T) / 2
        return self.table[low, high]
