"""The likelihood of all votes with the reliabilities integrated out: what the population of annotators is fitted to.

Shapes: M signed votes, A annotators that cast them, J quadrature nodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
    """Nodes in logit η, and log-weights, [A, J] each, adapted to every annotator."""

    nodes: Tensor
    log_weights: Tensor


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
    x, log_w = _gauss_hermite(_NODES)
    return Quadrature(columns.centre.unsqueeze(-1) + width * x, width.log() + log_w + x**2)


def _gauss_hermite(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and log-weights for ∫ f(x) e^{-x²} dx, from the Jacobi matrix (Golub & Welsch, 1969)."""
    off_diagonal = torch.sqrt(torch.arange(1, n, dtype=torch.float64) / 2)
    x, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    return x, 0.5 * math.log(math.pi) + 2 * vectors[0].abs().log()


def log_marginal(columns: VoteColumns, quadrature: Quadrature, a: Tensor, b: Tensor, tau: Tensor) -> Tensor:
    r"""Σ_k log ∫ η^R_k (1-η)^W_k Π_v P(vote_v | η) Beta(η; a, b) dη, differentiable in a, b and τ (scalars).

    P(vote | η) = η m + (1-η)(1-m) with logit m = margin/τ + earlier; R and W are the known answers.
    """
    nodes = quadrature.nodes
    agreement = torch.tanh((columns.margin / tau + columns.earlier) / 2).unsqueeze(-1)
    # P(vote | η) = ½ (1 + (2m-1)(2η-1)); the bound keeps two certainties that contradict each other out of log 0.
    doubled = 1 + (agreement * torch.tanh(nodes / 2)[columns.annotator]).clamp(min=-1 + 1e-12)
    counted = columns.weight.unsqueeze(-1) * (doubled.log() - math.log(2))
    log_votes = torch.zeros_like(nodes).index_add(0, columns.annotator, counted)
    if columns.known is not None:
        right, wrong = columns.known.unsqueeze(-1)
        log_votes = log_votes + right * F.logsigmoid(nodes) + wrong * F.logsigmoid(-nodes)
    log_beta = torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)
    log_prior = a * F.logsigmoid(nodes) + b * F.logsigmoid(-nodes) - log_beta
    return torch.logsumexp(log_votes + log_prior + quadrature.log_weights, -1).sum()
