"""How far one annotator's reliability is known when the shape of the link is not: labels without ids.

Of one annotator with one label a pair, all that margins say of η is where agreement levels off as they grow. A link of
one scale levels off soon. Margins of a policy that is still learning have many scales (the first ones know nothing),
and labels drawn from a preference are unsure on most pairs: agreement then rises slowly, a single scale is fitted to
the rise, and takes what is left of it for the annotator's errors. So errors are taken under a link with one number
more, the spread σ of the scale::

    P(label | Δ) = ½ + (η-½) E_x tanh(sΔ / (2 τ e^{σx})),   x ~ N(0, 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nemo_rpo.em.fit.empirical_bayes import log_tau_precision
from nemo_rpo.em.fit.marginal import gauss_hermite
from nemo_rpo.em.votes import Votes

_NODES = 15
_ITERATIONS = 40
_TOLERANCE = 1e-4
# Margins of a rank that take part; of more, every n-th.
_AT_MOST = 1 << 16
# Prior of log σ, N(0, 1): most scales within a factor of e of each other, or of e³.
_PRECISION = 1.0


def error_under_unknown_link(
    delta: Tensor,
    votes: Votes,
    eta: float,
    prior: tuple[float, float],
    tau: float,
    all_reduce: Callable[[Tensor], None],
) -> float:
    """Standard error of ``eta``, which was fitted under a link of one scale: that of η in a fit of (η, log τ, log σ),
    and what the two fits differ by.

    Args:
        delta, votes: margins [P] and labels [P, 1] of this rank.
        eta, prior, tau: of the fit with one scale; the prior is Beta's.
        all_reduce: sums in place over the ranks that hold different pairs. Up to :data:`_ITERATIONS` collectives of 104
            bytes.

    Fisher's scoring, halving a step that lowers the posterior density; the same numbers on every rank.
    """
    stride = max(1, -(-len(delta) // _AT_MOST))
    sign = votes.sign[::stride, 0].double()
    margin = sign * delta[::stride].double()
    weight = stride * votes.of(torch.arange(0, len(delta), stride, device=delta.device), delta.device).counted(
        sign.abs()
    )
    at = torch.tensor([min(max(eta, 0.51), 0.99), math.log(tau), -1.0], dtype=torch.float64, device=delta.device)
    damping, value, score, information = 1e-3, -math.inf, None, None
    trial = at
    for _ in range(_ITERATIONS):
        new = _sums(margin, weight, trial, prior, all_reduce)
        if new[0] >= value:
            moved = value > -math.inf and new[0] - value < _TOLERANCE
            at, (value, score, information) = trial, new
            if moved:
                break
            damping = max(damping / 4, 1e-6)
        else:
            damping *= 8
        step = torch.linalg.solve(information + damping * torch.diag(information.diagonal()), score)
        trial = at + step.clamp(-1.0, 1.0)
        trial[0].clamp_(0.501, 0.999)
        trial[1].clamp_(-8.0, 8.0)
        trial[2].clamp_(-6.0, 2.0)  # beyond, no pair's scale is known at all
    variance = torch.linalg.inv(information)[0, 0].item()
    return math.sqrt(max(variance, 0.0) + (at[0].item() - eta) ** 2)


def _sums(
    margin: Tensor, weight: Tensor, at: Tensor, prior: tuple[float, float], all_reduce: Callable[[Tensor], None]
) -> tuple[float, Tensor, Tensor]:
    """Log posterior density, its gradient [3], and the expected information [3, 3]."""
    eta, log_tau, log_spread = at
    nodes, log_weights = gauss_hermite(_NODES)  # of ∫ f(x) e^{-x²} dx
    x, of_nodes = (math.sqrt(2) * nodes).to(margin), (log_weights.exp() / math.sqrt(math.pi)).to(margin)
    scaled = 0.5 * margin.unsqueeze(-1) * torch.exp(-log_tau - log_spread.exp() * x)
    level = torch.tanh(scaled)
    rise = (1 - level.square()) * scaled
    foretold = level @ of_nodes
    slope = torch.stack(
        (foretold, -(eta - 0.5) * (rise @ of_nodes), -(eta - 0.5) * log_spread.exp() * (rise @ (of_nodes * x)))
    )
    f = (eta - 0.5) * foretold
    packed = torch.cat(
        (
            (weight * torch.log(0.5 + f)).sum().unsqueeze(0),
            (slope * (weight / (0.5 + f))).sum(-1),
            ((slope * (weight / (0.25 - f.square()))) @ slope.T).flatten(),
        )
    )
    all_reduce(packed)
    a, b = prior
    log_density, score, information = packed[0], packed[1:4], packed[4:].view(3, 3)
    log_density = log_density + a * eta.log() + b * (1 - eta).log()
    log_density -= 0.5 * (log_tau_precision() * log_tau**2 + _PRECISION * log_spread**2)
    score = score + torch.stack((a / eta - b / (1 - eta), -log_tau_precision() * log_tau, -_PRECISION * log_spread))
    of_prior = torch.stack(
        (a / eta**2 + b / (1 - eta) ** 2, torch.full_like(eta, log_tau_precision()), torch.full_like(eta, _PRECISION))
    )
    return log_density.item(), score, information + torch.diag(of_prior)
