r"""The linear Bradley-Terry model: P(i beats j) = σ(θᵀ(f_i - f_j)), with f what is known of an answer.

With x = f_i - f_j, t the share of labels for i, c what the pair counts for, and a ridge λ, the fit maximises::

    Σ c [t log σ(θᵀx) + (1-t) log σ(-θᵀx)] - ½ λ ‖θ‖²

There is no intercept: turning a pair round must turn its probability round. This is scikit-learn's
``LogisticRegression(fit_intercept=False, C=1/λ)``, and with one-hot f and λ → 0 the plain Bradley-Terry model.

Sources: Hu et al., "DecipherPref" (2305.14702), factors; Lin et al., biasprobe, hidden states.
Shapes: n pairs, d properties.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nemo_rpo.errors import DataError

_NEWTON_UP_TO = 512  # properties; with more the Newton step is solved by conjugate gradients
_ITERATIONS, _TOLERANCE = 100, 1e-10
_CG_ITERATIONS, _CG_TOLERANCE = 100, 1e-3


class LinearBT(NamedTuple):
    """Attributes: theta float64 [d]; log_likelihood in nats, without the ridge; converged."""

    theta: np.ndarray
    log_likelihood: float
    converged: bool


def fit_linear_bt(
    x: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ridge: float = 0.0,
    start: np.ndarray | None = None,
) -> LinearBT:
    """The maximum by Newton's method with halved steps; O(n d²) a step, or O(n d) by conjugate gradients.

    Args:
        x: differences [n, d].
        target: [n] in [0, 1], the share of labels for the first.
        weight: [n], 0 or more; 1 each by default.
        ridge: λ, 0 or more.
        start: θ to begin at.

    Raises:
        DataError: without a ridge, where no finite maximum exists (a property decides every label, or repeats others).

    >>> x = np.array([[1.0], [1.0], [1.0], [1.0]])
    >>> fit_linear_bt(x, np.array([1.0, 1.0, 1.0, 0.0])).theta.round(6)  # log 3
    array([1.098612])
    """
    x = np.asarray(x, dtype=np.float64)
    c = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
    t = np.asarray(target, dtype=np.float64)
    theta = np.zeros(x.shape[1]) if start is None else start.astype(np.float64)
    height, converged = _height(x, t, c, theta, ridge), False
    for _ in range(_ITERATIONS):
        p = sigmoid(x @ theta)
        gradient = x.T @ (c * (t - p)) - ridge * theta
        if converged := bool(np.abs(gradient).max(initial=0.0) <= _TOLERANCE * max(1.0, c.sum())):
            break
        step = _newton_step(x, c * p * (1 - p), gradient, ridge)
        size = 1.0
        while (moved := _height(x, t, c, theta + size * step, ridge)) < height - 1e-12 * abs(height) and size > 1e-8:
            size /= 2
        theta, height = theta + size * step, moved
    if not ridge and (not converged or np.abs(x @ theta).max(initial=0.0) > 30):
        raise DataError("the strengths have no finite maximum: a property decides every label; set a ridge above 0")
    return LinearBT(theta, height + 0.5 * ridge * float(theta @ theta), converged)


def lda(x: np.ndarray, target: np.ndarray, weight: np.ndarray | None = None, ridge: float = 0.0) -> np.ndarray:
    r"""θ [d] in closed form: linear discriminant analysis of the pairs and their mirror images.

    Winners' differences have mean m and second moments M, losers' -m and M; under one Gaussian each of covariance
    S = M - m mᵀ the log-odds of a win are 2 mᵀ S⁻¹ x, so that (Sherman and Morrison) θ = 2 M⁻¹m / (1 - mᵀM⁻¹m). The
    direction is that of a least-squares fit to ±1. ``ridge`` / n is added to the diagonal of M.

    >>> lda(np.array([[1.0], [1.0], [1.0], [-1.0]]), np.ones(4)).round(6)
    array([1.333333])
    """
    x = np.asarray(x, dtype=np.float64)
    c = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
    mean = x.T @ (c * (2 * np.asarray(target, dtype=np.float64) - 1)) / c.sum()
    moments = (x * c[:, None]).T @ x / c.sum() + ridge / c.sum() * np.eye(x.shape[1])
    direction = np.linalg.lstsq(moments, mean, rcond=None)[0]
    return 2 * direction / max(1 - float(mean @ direction), 1e-6)


def covariance(
    x: np.ndarray,
    theta: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ridge: float = 0.0,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """Covariance of θ, float64 [d, d]: the inverse of the Fisher information plus the ridge.

    With ``groups`` (int [n], labels that hang together: those of one pair) the sandwich of the groups' scores around
    it, which holds where labels of a group are no independent evidence.
    """
    x = np.asarray(x, dtype=np.float64)
    c = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
    p = sigmoid(x @ theta)
    bread = np.linalg.pinv((x * (c * p * (1 - p))[:, None]).T @ x + ridge * np.eye(len(theta)), hermitian=True)
    if groups is None:
        return bread
    _, place = np.unique(groups, return_inverse=True)
    scores = np.zeros((place.max(initial=-1) + 1, len(theta)))
    np.add.at(scores, place, x * (c * (target - p))[:, None])
    some = max(len(scores), 2)
    return bread @ (scores.T @ scores * (some / (some - 1))) @ bread


def mean_log_likelihood(log_odds: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    """Nats a label of shares ``target`` [n] under ``log_odds`` [n]; -log 2 of a coin."""
    nats = -target * np.logaddexp(0, -log_odds) - (1 - target) * np.logaddexp(0, log_odds)
    return float((weight * nats).sum() / max(weight.sum(), 1e-300))


def sigmoid(z: np.ndarray) -> np.ndarray:
    """σ(z), without overflow."""
    return np.exp(-np.logaddexp(0, -z))


def _height(x: np.ndarray, t: np.ndarray, c: np.ndarray, theta: np.ndarray, ridge: float) -> float:
    z = x @ theta
    nats = -t * np.logaddexp(0, -z) - (1 - t) * np.logaddexp(0, z)
    return float((c * nats).sum()) - 0.5 * ridge * float(theta @ theta)


def _newton_step(x: np.ndarray, curvature: np.ndarray, gradient: np.ndarray, ridge: float) -> np.ndarray:
    if x.shape[1] <= _NEWTON_UP_TO:
        information = (x * curvature[:, None]).T @ x + ridge * np.eye(x.shape[1])
        return np.linalg.lstsq(information, gradient, rcond=None)[0]
    step, residual = np.zeros_like(gradient), gradient.copy()
    direction, squared = residual.copy(), float(residual @ residual)
    enough = _CG_TOLERANCE**2 * squared * min(1.0, squared)
    for _ in range(_CG_ITERATIONS):
        applied = x.T @ (curvature * (x @ direction)) + ridge * direction
        length = squared / float(direction @ applied)
        step += length * direction
        residual -= length * applied
        before, squared = squared, float(residual @ residual)
        if squared <= enough:
            break
        direction = residual + squared / before * direction
    return step
