"""Empirical Bayes: what the votes say about annotators in general, and about the scale of the margins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.fit.marginal import VoteColumns, adapt_quadrature, log_marginal

# Standard deviations of the hyperprior in (logit mean, log concentration, log τ). The first two weigh as much as a few
# annotators, and decide alone where there is only one. The third only keeps a flat likelihood from running away.
_SPREAD = (1.0, 1.0, 1.5)


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
    fixed = _logits(start.prior, start.tau)
    free = torch.tensor([fit_prior, fit_prior, fit_tau])
    centre, spread = _logits(hyperprior, 1.0)[free], torch.tensor(_SPREAD, dtype=torch.float64)[free]

    def energy(values: Tensor) -> Tensor:
        mean, concentration, tau = _natural(fixed.masked_scatter(free, values))
        likelihood = log_marginal(columns, quadrature, mean * concentration, (1 - mean) * concentration, tau)
        return 0.5 * (((values - centre) / spread) ** 2).sum() - likelihood

    best = _minimise(energy, fixed[free])
    mean, concentration, tau = _natural(fixed.masked_scatter(free, best)).tolist()
    error = _standard_error(energy, best) if fit_tau else start.log_tau_error
    return Population((mean * concentration, (1 - mean) * concentration), tau, error)


def log_tau_precision() -> float:
    """Inverse variance of the hyperprior of log τ."""
    return _SPREAD[-1] ** -2


def _logits(prior: tuple[float, float], tau: float) -> Tensor:
    """(logit mean, log concentration) of Beta(a, b), and log τ."""
    a, b = prior
    return torch.tensor([math.log(a / b), math.log(a + b), math.log(tau)], dtype=torch.float64)


def _natural(logits: Tensor) -> Tensor:
    """Mean, concentration, τ; a trial step of the line search may go anywhere, and must not overflow there."""
    return torch.stack((logits[0].clamp(-8, 8).sigmoid(), logits[1].clamp(-4, 12).exp(), logits[2].clamp(-8, 8).exp()))


def _minimise(energy: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    values = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([values], max_iter=60, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = energy(values)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return values.detach()


def _standard_error(energy: Callable[[Tensor], Tensor], at: Tensor) -> float:
    """Standard error of the last parameter, with the others estimated too; inf where ``at`` is no maximum."""
    with torch.enable_grad():
        information = torch.autograd.functional.hessian(energy, at)
    factor, failed = torch.linalg.cholesky_ex(information)
    return math.inf if failed else torch.cholesky_inverse(factor)[-1, -1].sqrt().item()
