r"""Entries of a table that strengths explain badly everywhere, which is no corruption of any of them.

An entry's residual is what chance gives a count, N(0, σ²), plus what tastes and circles give every pair: a Laplace
variable of scale b, the law of a rank-2 table's entries u_i v_j - u_j v_i for normal u and v. A bound must allow
for its tails: one entry in thirty passes that of a normal law with the same middle. b = 0 is the table that fits.

Shapes: E entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nemo_rpo.errors import missing_extra

_ENOUGH = 20_000  # entries, for a median
_NEGLIGIBLE = 1e-3  # of b, in standard errors
_HALVINGS = 12


def log_tail(residual: np.ndarray, error: np.ndarray, scale: float) -> np.ndarray:
    """log P(|N(0, error²) + Laplace(scale)| > |residual|), [E].

    Raises:
        MissingExtraError: scipy is not installed.
    """
    log_ndtr = _log_ndtr()
    x = np.abs(residual) / error
    normal = np.log(2) + log_ndtr(-x)
    if scale <= 0:
        return normal
    k = error / scale
    near, far = k * k / 2 - k * x + log_ndtr(x - k), k * k / 2 + k * x + log_ndtr(-x - k)
    with np.errstate(divide="ignore"):
        beyond = near + np.log1p(-np.exp(np.minimum(far - near, 0.0)))
    return np.where(k < 1 / _NEGLIGIBLE, np.logaddexp(normal, beyond), normal)


def log_density(residual: np.ndarray, error: np.ndarray, scale: float) -> np.ndarray:
    """log density of the same law, [E]."""
    log_ndtr = _log_ndtr()
    x = np.abs(residual) / error
    normal = -x * x / 2 - np.log(error) - np.log(2 * np.pi) / 2
    if scale <= 0:
        return normal
    k = error / scale
    near, far = k * k / 2 - k * x + log_ndtr(x - k), k * k / 2 + k * x + log_ndtr(-x - k)
    return np.where(k < 1 / _NEGLIGIBLE, np.logaddexp(near, far) - np.log(2 * scale), normal)


def misfit_scale(residual: np.ndarray, error: np.ndarray, free: int) -> float:
    """b at which half of the entries are as near as the law has half of them; 0 where they are near without.

    Args:
        free: numbers that were fitted, which have taken their share of the residuals.
    """
    if not len(residual):
        return 0.0
    residual = residual / np.sqrt(_left(len(residual), free))
    if len(residual) > _ENOUGH:
        some = np.random.default_rng(0).choice(len(residual), _ENOUGH, replace=False)
        residual, error = residual[some], error[some]

    def too_far(scale: float) -> bool:
        return bool(np.median(log_tail(residual, error, scale)) < np.log(0.5))

    low, high = _NEGLIGIBLE * float(np.median(error)), float(np.median(error))
    if not too_far(low):
        return 0.0
    while too_far(high):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if too_far(middle) else (low, middle)
    return high


def log_likelihood(residual: np.ndarray, error: np.ndarray, scale: float, free: int) -> float:
    """Of residuals, in as many numbers as the fit has left of them (restricted maximum likelihood)."""
    left = _left(len(residual), free)
    return float(left * log_density(residual / np.sqrt(left), error, scale).sum())


def _left(entries: int, free: int) -> float:
    return max(entries - free, 1) / entries


def _log_ndtr() -> Any:
    try:
        from scipy.special import log_ndtr
    except ImportError as exc:
        raise missing_extra("scipy", "rank") from exc
    return log_ndtr
