"""Shares with intervals, and the difference of two of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

Z = 1.959964  # of a 95 % interval


class Share(NamedTuple):
    """``hits`` of ``n`` and a 95 % interval; NaN where n is 0."""

    hits: float
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """hits / n; NaN without any."""
        return self.hits / self.n if self.n else math.nan

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}–{self.high:.3f})" if self.n else "–"


def share(hits: float, n: int) -> Share:
    """Wilson's interval: honest for few cases and near 0 and 1, where the usual ±1.96 √(p(1-p)/n) is not.

    >>> str(share(8, 10))
    '0.800 (0.490–0.943)'
    """
    if not n:
        return Share(0, 0, math.nan, math.nan)
    p, spread = hits / n, Z**2 / n
    centre = (p + spread / 2) / (1 + spread)
    half = Z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return Share(hits, n, max(0.0, centre - half), min(1.0, centre + half))


def share_of(hits: np.ndarray) -> Share:
    """Of a bool array."""
    return share(float(hits.sum()), len(hits))


class Difference(NamedTuple):
    """A difference with its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return "–" if math.isnan(self.value) else f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def difference(a: Share, b: Share) -> Difference:
    """a - b of two independent shares, with Newcombe's interval (his method 10, of Wilson's limits).

    >>> str(difference(share(56, 70), share(48, 80)))
    '+0.200 (+0.052 to +0.334)'
    """
    if not (a.n and b.n):
        return Difference(math.nan, math.nan, math.nan)
    gap = a.value - b.value
    down = math.hypot(a.value - a.low, b.high - b.value)
    up = math.hypot(a.high - a.value, b.value - b.low)
    return Difference(gap, gap - down, gap + up)


def logit_interval(eta: np.ndarray, standard_error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % limits [K] of reliabilities: symmetric on the scale of log-odds, hence within (0, 1); NaN without an error.

    >>> [limits.round(3).tolist() for limits in logit_interval(np.array([0.9]), np.array([0.05]))]
    [[0.752], [0.964]]
    """
    odds, step = np.log(eta / (1 - eta)), Z * standard_error / (eta * (1 - eta))
    return 1 / (1 + np.exp(step - odds)), 1 / (1 + np.exp(-step - odds))
