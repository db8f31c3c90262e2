"""Pairs foretold by linear Bradley-Terry fits that saw none of their labels. Shapes: n pairs, d properties, F folds."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nemo_rpo.crowd.factors.factor_settings import HeldOutSettings, Kind
from nemo_rpo.crowd.factors.linear_bt import fit_linear_bt, lda, mean_log_likelihood
from nemo_rpo.errors import DataError


class Foretold(NamedTuple):
    """Attributes: log_odds float64 [n], of each pair by the fit to the other folds; fold int64 [n]; theta float64 [d],
    the fit to all pairs; ridge, of that fit; scale float64 [d], what differences are divided by before θ."""

    log_odds: np.ndarray
    fold: np.ndarray
    theta: np.ndarray
    ridge: float
    scale: np.ndarray

    def of(self, x: np.ndarray) -> np.ndarray:
        """Log-odds [m] of other pairs, of differences [m, d], by the fit to all pairs."""
        return (np.asarray(x, dtype=np.float64) / self.scale) @ self.theta


def foretell(
    x: np.ndarray,
    target: np.ndarray,
    groups: np.ndarray,
    weight: np.ndarray | None = None,
    kind: Kind = "logistic",
    settings: HeldOutSettings | None = None,
) -> Foretold:
    """Log-odds of every pair from fits to other groups' pairs, so that no label has a say in its own.

    Of each fold's training part one further fold is held back to choose the ridge. Differences are divided by their
    root mean square, so that one ridge suits all properties.

    Args:
        x: differences [n, d]. target: [n] in [0, 1]. weight: [n]; pairs of weight 0 are foretold, not learnt from.
        groups: int [n]; pairs of one group (a prompt, a debate) are in one fold.

    Raises:
        DataError: fewer than three groups.
    """
    settings = settings or HeldOutSettings()
    x = np.asarray(x, dtype=np.float64)
    c = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
    scale = np.sqrt(np.square(x).mean(0))
    x = x / np.where(scale > 0, scale, 1.0)
    fold = folds_of(groups, settings)
    count = int(fold.max()) + 1
    log_odds, chosen = np.empty(len(x)), []
    for k in range(count):
        inner = (fold != k) & (fold != (k + 1) % count)
        theta, ridge = _best(x, target, c, inner, fold == (k + 1) % count, kind, settings.ridges)
        outer = fold != k
        theta = _fit(x[outer], target[outer], c[outer], kind, ridge, theta)
        log_odds[fold == k] = x[fold == k] @ theta
        chosen.append(ridge)
    ridge = float(np.exp(np.median(np.log(chosen))))
    return Foretold(log_odds, fold, _fit(x, target, c, kind, ridge, None), ridge, np.where(scale > 0, scale, 1.0))


def folds_of(groups: np.ndarray, settings: HeldOutSettings) -> np.ndarray:
    """The fold of every pair, int64 [n]: groups in random order, each to the fold with the fewest pairs so far.

    Raises:
        DataError: fewer than three groups.
    """
    names, place, counts = np.unique(groups, return_inverse=True, return_counts=True)
    if len(names) < 3:
        raise DataError(f"there are {len(names)} groups of pairs, and foretelling each from the others takes 3 or more")
    folds = min(settings.folds, len(names))
    order = np.random.default_rng(settings.seed).permutation(len(names))
    order = order[np.argsort(-counts[order], kind="stable")]
    filled, of_group = np.zeros(folds), np.empty(len(names), dtype=np.int64)
    for group in order.tolist():
        of_group[group] = filled.argmin()
        filled[of_group[group]] += counts[group]
    return of_group[place]


def _best(
    x: np.ndarray,
    target: np.ndarray,
    c: np.ndarray,
    inner: np.ndarray,
    judged: np.ndarray,
    kind: Kind,
    ridges: tuple[float, ...],
) -> tuple[np.ndarray, float]:
    best, theta = None, None
    for ridge in ridges:  # the largest first: the next fit starts near its end
        theta = _fit(x[inner], target[inner], c[inner], kind, ridge, theta)
        nats = mean_log_likelihood(x[judged] @ theta, target[judged], c[judged])
        if best is None or nats > best[0]:
            best = (nats, theta, ridge)
    return best[1], best[2]


def _fit(x: np.ndarray, target: np.ndarray, c: np.ndarray, kind: Kind, ridge: float, start: np.ndarray | None):
    if kind == "lda":
        return lda(x, target, c, ridge)
    return fit_linear_bt(x, target, c, ridge, start).theta
