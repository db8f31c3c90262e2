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

from typing import Literal, NamedTuple, Protocol

import numpy as np

Structure = Literal["strengths", "rank2"]
_FALLS = 0.9  # the threshold, every round
_ROUNDS = 2000
_STEADY = 10  # rounds at the last threshold
_SETTLED, _MOST_STEPS = 1e-6, 300
_RIDGE = 1e-9  # of the largest weight: players without known pairs stay at 0


class Nearest(Protocol):
    """The nearest table of a structure.

    Attributes: free: numbers that are fitted. table: [N, N] (``rank2`` only).
    """

    free: int
    table: np.ndarray | None

    def step(self, logit: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Its entries [E] by a step towards the ``kept`` ones [E]; ``strengths`` are there with one."""

    def settled(self, logit: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Its entries [E], steps taken until they stand."""


class Decomposition(NamedTuple):
    """Attributes: logit believed [E]; corrupted bool [E]."""

    believed: np.ndarray
    corrupted: np.ndarray


def nearest(low: np.ndarray, high: np.ndarray, variance: np.ndarray, players: int, structure: Structure) -> Nearest:
    """Of the known entries (low, high), [E] each; that of (high, low) is its negative."""
    return (_Strengths if structure == "strengths" else _Rank2)(low, high, 1 / variance, players)


def decompose(fit: Nearest, logit: np.ndarray, variance: np.ndarray, least: float) -> Decomposition:
    """Splits the known entries [E].

    Args:
        least: the threshold, in standard errors, that is come down to.
    """
    weight = 1 / variance
    corrupted = np.zeros(len(logit), dtype=bool)
    believed, level, steady = fit.step(logit, ~corrupted), np.inf, 0
    for _ in range(_ROUNDS):
        z = np.abs(logit - believed) * np.sqrt(weight)
        level = max(least, _FALLS * min(level, float(z.max())))
        before, corrupted = corrupted, z > level
        if corrupted.all():
            corrupted = before
            break
        believed = fit.step(logit, ~corrupted)
        steady = steady + 1 if level == least and (corrupted == before).all() else 0
        if steady > _STEADY:
            break
    return Decomposition(believed, corrupted)


class _Strengths:
    """Weighted least squares of differences."""

    def __init__(self, low: np.ndarray, high: np.ndarray, weight: np.ndarray, players: int) -> None:
        self._low, self._high, self._weight, self._players = low, high, weight, players
        self.table, self.free = None, players - 1

    def step(self, logit: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The nearest differences [E] themselves: one solve."""
        low, high, w, n = self._low, self._high, self._weight * kept, self._players
        matrix = np.zeros((n, n))
        np.subtract.at(matrix, (low, high), w)
        matrix += matrix.T
        np.fill_diagonal(matrix, _RIDGE * self._weight.max() - matrix.sum(1))
        right = np.bincount(low, w * logit, n) - np.bincount(high, w * logit, n)
        s = np.linalg.solve(matrix, right)
        return s[low] - s[high]

    settled = step


class _Rank2:
    """Weighted tables of rank 2 by completion, a step at a time: N. Srebro and T. Jaakkola, ICML 2003."""

    def __init__(self, low: np.ndarray, high: np.ndarray, weight: np.ndarray, players: int) -> None:
        self._low, self._high = low, high
        self._weight = weight / weight.max()
        self.table, self.free = np.zeros((players, players)), 2 * players - 3

    def step(self, logit: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Fills in what is known, and keeps the two largest singular values; entries [E]."""
        low, high = self._low, self._high
        filled = self.table.copy()
        filled[low, high] += self._weight * kept * (logit - filled[low, high])
        filled[high, low] = -filled[low, high]
        left, size, right = np.linalg.svd(filled)
        found = (left[:, :2] * size[:2]) @ right[:2]
        self.table = (found - found.T) / 2
        return self.table[low, high]

    def settled(self, logit: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """Entries [E] when a step moves none by more than ``_SETTLED``, or after ``_MOST_STEPS``."""
        before = self.step(logit, kept)
        for _ in range(_MOST_STEPS):
            found = self.step(logit, kept)
            if np.abs(found - before).max() < _SETTLED:
                break
            before = found
        return found
