"""Whether a policy that is sure is right: reliability diagram, ECE, Brier score.

Shapes: v judged labels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nemo_rpo.shares import Share, share

BINS = 10


class Bin(NamedTuple):
    """Labels of one range of confidence: the mean confidence, and how often the policy was right."""

    low: float
    high: float
    confidence: float
    right: Share


class Calibration(NamedTuple):
    """How far p = σ(Δ) can be taken at its word.

    Attributes:
        n: labels judged.
        accuracy: share whose better response the policy prefers; Δ = 0 counts half.
        ece: Σ (n_b/n) |accuracy_b - confidence_b| over ten equal ranges of the confidence max(p, 1-p).
        brier: mean (1-p)², p being what the policy gives the better response: 0 is perfect, ¼ says nothing.
        log_loss: mean -log p.
        bins: those that hold anything.
    """

    n: int
    accuracy: Share
    ece: float
    brier: float
    log_loss: float
    bins: list[Bin]


def calibration(margin: np.ndarray) -> Calibration:
    """Of ``margin`` float64 [v]: Δ of the truly better response over the worse one.

    Confidence is that in whichever response the policy prefers, because which of the two is called chosen is a matter
    of the file: with chosen always the better one, p alone would have nothing to be compared with.

    >>> found = calibration(np.array([2.0, 2.0, 2.0, -2.0]))
    >>> round(found.ece, 3), round(found.brier, 3)  # sure of .881, right .75 of the time
    (0.131, 0.204)
    """
    p = np.exp(-np.logaddexp(0, -margin))
    confidence, right = np.maximum(p, 1 - p), (margin > 0) + 0.5 * (margin == 0)
    place = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    bins = []
    for b in np.unique(place):
        inside = place == b
        low = 0.5 + b / (2 * BINS)
        found = share(float(right[inside].sum()), int(inside.sum()))
        bins.append(Bin(low, low + 0.5 / BINS, float(confidence[inside].mean()), found))
    n = len(margin)
    ece = sum(b.right.n / n * abs(b.right.value - b.confidence) for b in bins)
    log_loss = float(np.logaddexp(0, -margin).mean())
    return Calibration(n, share(float(right.sum()), n), ece, float(((1 - p) ** 2).mean()), log_loss, bins)
