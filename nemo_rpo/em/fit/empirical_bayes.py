"""Empirical Bayes: what the votes say about annotators in general, and about the scale of the margins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.fit.marginal import Slope, VoteColumns, adapt_quadrature, log_marginal_slope

# Standard deviations of the hyperprior in (logit mean, log concentration, log τ). The first two weigh as much as a few
# annotators, and decide alone where there is only one. The third only keeps a flat likelihood from running away.
_SPREAD = (1.0, 1.0, 1.5)
# Where the search stays, in the same three: far outside of what the hyperprior allows.
_BOUNDS = torch.tensor(((-8.0, -4.0, -8.0), (8.0, 12.0, 8.0)), dtype=torch.float64)
# The search: steps at most, the longest one, one that ends it, and the smallest curvature that is divided by.
_MAX_STEPS, _LONGEST, _STILL, _FLATTEST = 60, 2.0, 1e-3, 1e-3


class Population(NamedTuple):
    """Beta(a, b) of the annotators' reliabilities, and the temperature of the margins.

    Attributes:
        prior: (a, b); the pseudo-labels right and wrong of the EM.
        tau: temperature of the margins.
        log_tau_error: standard error of log τ, from the curvature of the joint fit; inf where it is no maximum.
    """

    prior: tuple[float, float]
    tau: float
    log_tau_error: float = math.inf


def fit_population(
    columns: VoteColumns, start: Population, hyperprior: tuple[float, float], fit_prior: bool, fit_tau: bool
) -> Population:
    r"""Maximises the marginal likelihood of the votes, reliabilities integrated out, over a, b and τ.

    Estimated reliabilities in place of the integral would not do: their sampling noise would pass for spread of the
    population, and the fitted prior would be too wide.

    Args:
        columns: the votes; see :func:`nemo_rpo.em.fit.marginal.vote_columns`.
        start: where the search begins; what is not fitted is kept.
        hyperprior: (a, b) that is expected before any annotator is seen.
        fit_prior, fit_tau: what to fit.
    """
    quadrature = adapt_quadrature(columns, start.prior, start.tau)
    free = torch.tensor([fit_prior, fit_prior, fit_tau])
    precision = torch.tensor(_SPREAD, dtype=torch.float64) ** -2 * free
    centre, values = _logits(hyperprior, 1.0), _logits(start.prior, start.tau)

    def slope(at: Tensor) -> Slope:
        likelihood = _in_logits(log_marginal_slope(columns, quadrature, *_natural(at)), at)
        off = at - centre
        return Slope(
            likelihood.value - 0.5 * (precision * off**2).sum(),
            (likelihood.gradient - precision * off)[free],
            (likelihood.hessian - torch.diag(precision))[free][:, free],
        )

    values, information = _maximise(slope, values, free)
    a, b, tau = _natural(values)
    error = _last_standard_error(information) if fit_tau else start.log_tau_error
    return Population((a, b), tau, error)


def log_tau_precision() -> float:
    """Inverse variance of the hyperprior of log τ."""
    return _SPREAD[-1] ** -2


def _logits(prior: tuple[float, float], tau: float) -> Tensor:
    """(logit mean, log concentration) of Beta(a, b), and log τ."""
    a, b = prior
    return torch.tensor([math.log(a / b), math.log(a + b), math.log(tau)], dtype=torch.float64)


def _natural(logits: Tensor) -> tuple[float, float, float]:
    """(a, b, τ) of :func:`_logits`."""
    mean, concentration = logits[0].sigmoid(), logits[1].exp()
    return (mean * concentration).item(), ((1 - mean) * concentration).item(), logits[2].exp().item()


def _in_logits(slope: Slope, at: Tensor) -> Slope:
    """Derivatives in (a, b, log τ) turned into those in :func:`_logits`, ``at`` which they were taken."""
    a, b, _ = _natural(at)
    mean = a / (a + b)
    spread = mean * b
    turn = torch.tensor(((spread, a, 0.0), (-spread, b, 0.0), (0.0, 0.0, 1.0)), dtype=torch.float64)
    skew = spread * (1 - 2 * mean)
    of_a = torch.tensor(((skew, spread, 0.0), (spread, a, 0.0), (0.0, 0.0, 0.0)), dtype=torch.float64)
    of_b = torch.tensor(((-skew, -spread, 0.0), (-spread, b, 0.0), (0.0, 0.0, 0.0)), dtype=torch.float64)
    by_a, by_b, _ = slope.gradient
    return Slope(slope.value, turn.T @ slope.gradient, turn.T @ slope.hessian @ turn + by_a * of_a + by_b * of_b)


def _maximise(slope: Callable[[Tensor], Slope], values: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method in the ``free`` of the ``values``; after a step that does not rise, a shorter one.

    Returns the maximum and the information (minus Hessian) there.
    """
    here, damping = slope(values), 0.0
    for _ in range(_MAX_STEPS):
        curvature, axes = torch.linalg.eigh(-here.hessian)
        # Along an axis in which the function is not concave it is climbed as if it were.
        step = axes @ (axes.T @ here.gradient / (curvature.abs().clamp(min=_FLATTEST) + damping))
        moved = values.masked_scatter(free, values[free] + step.clamp(-_LONGEST, _LONGEST)).clamp(*_BOUNDS)
        if (moved - values).abs().max().item() < _STILL:
            return moved, -here.hessian  # off by the square of the step, about
        there = slope(moved)
        if there.value >= here.value - 1e-9 * here.value.abs():
            values, here, damping = moved, there, damping / 8
        else:
            damping = 4 * max(damping, curvature.abs().max().item() / 8)
    return values, -here.hessian


def _last_standard_error(information: Tensor) -> float:
    """Of the last parameter, with the others estimated too; inf where there is no maximum."""
    factor, failed = torch.linalg.cholesky_ex(information)
    return math.inf if failed else torch.cholesky_inverse(factor)[-1, -1].sqrt().item()
