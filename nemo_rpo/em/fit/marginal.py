"""The likelihood of all votes with the reliabilities integrated out: what the population of annotators is fitted to.

Shapes: M signed votes, A annotators that cast them, J quadrature nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.votes import Votes

# Votes that take part. The scale of the margins is then known to a few per cent and the prior better than it matters,
# while a fit stays below a second on one CPU core.
MAX_VOTES = 1 << 16
# Gauss-Hermite nodes per annotator, centred and scaled to each: enough for 1e-4 nats even after a single, skewed label.
_NODES = 15
# Votes whose values at all nodes are held at once: half a megabyte.
_PIECE = 1 << 12


class VoteColumns(NamedTuple):
    """Signed votes, flat [M], each given the margin and the votes before it in its pair.

    The likelihood of a pair's votes is the product of P(vote | margin, earlier votes). In each factor the reliability
    of the voter is the unknown and those of the earlier voters are plugged in, so that annotators separate. With one
    label a pair nothing is plugged in and the factorisation is exact.

    Attributes:
        annotator: int64, renumbered to [0, A).
        margin: sΔ, the margin turned to the side that was voted for.
        earlier: s Σ s' logit η' over the earlier votes of the pair.
        weight: what the vote counts for.
        centre: float64 [A], logit of the current reliability.
        known: float64 [2, A], right and wrong answers that count beside the votes; None: none.
    """

    annotator: Tensor
    margin: Tensor
    earlier: Tensor
    weight: Tensor
    centre: Tensor
    known: Tensor | None = None


def vote_columns(
    delta: Tensor,
    votes: Votes,
    eta: Tensor,
    counts: Tensor,
    gather_rows: Callable[[Tensor], Tensor],
    known: Tensor | None = None,
) -> VoteColumns:
    """The votes to fit the population to, on the CPU, the same on every rank.

    All votes where there are at most :data:`MAX_VOTES`; else all votes of an arbitrary but fixed choice of annotators;
    of one annotator who has more, every n-th pair. A ranking counts as the one label that it is, so of rankings there
    may be as many times more votes as they have pairs.

    Args:
        delta, votes: margins [P] and labels [P, V] of this rank. eta, counts: [K], the same on every rank.
        gather_rows: see :class:`nemo_rpo.em.collectives.Collectives`; one call with 32 bytes a vote.
        known: right and wrong answers [2, K] that count beside them, the same on every rank; None: none.
    """
    chosen = _choose_annotators(counts)
    stride = max(1, math.ceil((counts * chosen).sum().item() / MAX_VOTES))
    pairs = chosen[votes.annotator].any(-1).nonzero().squeeze(-1)[::stride]
    annotator, sign = votes.annotator[pairs].long(), votes.sign[pairs].double()
    evidence = sign * torch.logit(eta)[annotator]
    earlier = evidence.cumsum(-1) - evidence
    taken = (sign != 0) & chosen[annotator]
    weight = votes.of(pairs, eta.device).counted(sign.abs())
    columns = (annotator.double(), sign * delta[pairs].double().unsqueeze(-1), sign * earlier, weight)
    rows = torch.stack([column[taken] for column in columns], -1)
    # The CPU adds in a fixed order, so that the fit repeats bit for bit; on a GPU the order of atomics would decide.
    annotator, margin, earlier, weight = gather_rows(rows).cpu().unbind(-1)
    present, annotator = torch.unique(annotator.long(), return_inverse=True)
    known = None if known is None else known.cpu()[:, present]
    return VoteColumns(annotator, margin, earlier, weight, torch.logit(eta).cpu()[present], known)


def _choose_annotators(counts: Tensor) -> Tensor:
    """Annotators in a fixed shuffled order until their labels fill :data:`MAX_VOTES`; at least one; bool [K]."""
    ids = torch.arange(counts.numel(), device=counts.device)
    order = (ids * 2654435761 % 2**32).argsort()  # Knuth's multiplicative hash
    filled = counts[order].cumsum(0)
    fits = filled <= torch.clamp(filled[filled > 0].min(), min=MAX_VOTES)
    return torch.zeros_like(fits).scatter(0, order, fits)


class Quadrature(NamedTuple):
    """Nodes in logit η, log-weights, log η and log(1-η), float64 [A, J] each, adapted to every annotator."""

    nodes: Tensor
    log_weights: Tensor
    log_eta: Tensor
    log_err: Tensor


def adapt_quadrature(columns: VoteColumns, prior: tuple[float, float], tau: float) -> Quadrature:
    """Gauss-Hermite nodes around each annotator's estimate, as wide as the log-posterior is curved there."""
    eta = torch.sigmoid(columns.centre)
    agreement = torch.tanh((columns.margin / tau + columns.earlier) / 2)
    slope = 2 * agreement / (1 + (2 * eta[columns.annotator] - 1) * agreement)  # d log P(vote) / dη
    zeros = torch.zeros_like(eta)
    slopes, squares = (zeros.index_add(0, columns.annotator, columns.weight * x) for x in (slope, slope**2))
    variance = eta * (1 - eta)
    answers = sum(prior) if columns.known is None else sum(prior) + columns.known.sum(0)
    curvature = squares * variance**2 - slopes * variance * (1 - 2 * eta) + answers * variance
    width = math.sqrt(2) * curvature.clamp(min=1e-3).rsqrt().unsqueeze(-1)
    x, log_w = gauss_hermite(_NODES)
    nodes = columns.centre.unsqueeze(-1) + width * x
    return Quadrature(nodes, width.log() + log_w + x**2, F.logsigmoid(nodes), F.logsigmoid(-nodes))


def gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights for ∫ f(x) e^{-x²} dx, from the Jacobi matrix (Golub & Welsch, 1969)."""
    off_diagonal = torch.sqrt(torch.arange(1, n, dtype=torch.float64) / 2)
    x, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return x, 0.5 * math.log(math.pi) + 2 * vectors[0].abs().log()


def log_marginal(columns: VoteColumns, quadrature: Quadrature, a: float, b: float, tau: float) -> float:
    r"""Σ_k log ∫ η^R_k (1-η)^W_k Π_v P(vote_v | η) Beta(η; a, b) dη.

    P(vote | η) = η m + (1-η)(1-m) with logit m = margin/τ + earlier; R and W are the known answers.
    """
    return torch.logsumexp(_log_joint(columns, quadrature, log_votes(columns, quadrature, tau), a, b), -1).sum().item()


class Slope(NamedTuple):
    """:func:`log_marginal` with its derivatives in (a, b, log τ).

    Attributes:
        value: float64 [].
        gradient, hessian: float64 [3] and [3, 3].
    """

    value: Tensor
    gradient: Tensor
    hessian: Tensor


def log_marginal_slope(columns: VoteColumns, quadrature: Quadrature, a: float, b: float, tau: float) -> Slope:
    r"""One pass over the votes, for a Newton step.

    With ℓ_k(η, τ) = Σ_v log P(vote_v | η) and E_k, Cov_k over the nodes, as likely as votes and prior make them::

        f = (log η, log(1-η), ∂ℓ/∂log τ)        ∂ = Σ_k E_k f - K ∂ log B(a, b)
        ∂² = Σ_k Cov_k f - K ∂² log B(a, b), and Σ_k E_k ∂²ℓ/∂(log τ)² in the last place
    """
    of_votes, first, second = _log_votes_in_tau(columns, quadrature, tau)
    joint = _log_joint(columns, quadrature, of_votes, a, b)
    total = torch.logsumexp(joint, -1, keepdim=True)
    likely = (joint - total).exp()
    f = torch.stack((quadrature.log_eta, quadrature.log_err, first))
    weighed = likely * f
    mean = weighed.sum(-1)
    hessian = weighed.view(3, -1) @ f.view(3, -1).T - mean @ mean.T
    hessian[2, 2] += (likely * second).sum()
    shape, both = torch.tensor((a, b), dtype=torch.float64), torch.tensor(a + b, dtype=torch.float64)
    gradient, size = mean.sum(-1), len(joint)
    gradient[:2] -= size * (shape.digamma() - both.digamma())
    hessian[:2, :2] -= size * (torch.diag(torch.polygamma(1, shape)) - torch.polygamma(1, both))
    return Slope(total.sum(), gradient, hessian)


def _log_joint(columns: VoteColumns, quadrature: Quadrature, of_votes: Tensor, a: float, b: float) -> Tensor:
    """Log of votes, known answers, prior and quadrature's weight together, float64 [A, J]."""
    right, wrong = a, b
    if columns.known is not None:
        right, wrong = (columns.known + torch.tensor([[a], [b]], dtype=torch.float64)).unsqueeze(-1)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return of_votes + right * quadrature.log_eta + wrong * quadrature.log_err - log_beta + quadrature.log_weights


def log_votes(columns: VoteColumns, quadrature: Quadrature, tau: float) -> Tensor:
    """Σ_v log P(vote_v | η) at every node of every annotator, float64 [A, J]."""
    sums, lean = torch.zeros_like(quadrature.nodes), torch.tanh(quadrature.nodes / 2)
    for annotator, agreement, weight, _ in _pieces(columns, tau):
        sums.index_add_(0, annotator, weight * (_doubled(agreement, lean[annotator]).log() - math.log(2)))
    return sums


def _log_votes_in_tau(columns: VoteColumns, quadrature: Quadrature, tau: float) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`log_votes`, and its first and second derivative in log τ, float64 [A, J] each."""
    size, lean = quadrature.nodes.shape, torch.tanh(quadrature.nodes / 2)
    sums = torch.zeros(size[0], 3 * size[1], dtype=torch.float64)
    for annotator, agreement, weight, scaled in _pieces(columns, tau):
        at = lean[annotator]
        doubled = _doubled(agreement, at)
        per_agreement = at / doubled
        bent = (1 - agreement.square()) / 2
        slope = -scaled * bent  # of the agreement in log τ; and the slope of that
        curve = scaled * bent * (1 - scaled * agreement)
        first = per_agreement * slope
        rows = torch.cat((doubled.log() - math.log(2), first, per_agreement * curve - first.square()), -1)
        sums.index_add_(0, annotator, weight * rows)
    return sums.split(size[1], -1)


def _pieces(columns: VoteColumns, tau: float) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of votes that fit the processor's cache: annotator [m]; 2P(right)-1 by the margin, weight, margin/τ, [m, 1]."""
    for start in range(0, len(columns.margin), _PIECE):
        annotator, margin, earlier, weight = (column[start : start + _PIECE] for column in columns[:4])
        scaled = margin / tau
        yield annotator, *(x.unsqueeze(-1) for x in (torch.tanh((scaled + earlier) / 2), weight, scaled))


def _doubled(agreement: Tensor, lean: Tensor) -> Tensor:
    # 2 P(vote | η) = 1 + (2m-1)(2η-1); the bound keeps two certainties that contradict each other out of log 0.
    return 1 + (agreement * lean).clamp(min=-1 + 1e-12)
