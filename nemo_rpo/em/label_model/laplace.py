"""What the data say for a model with all coefficients integrated out, and how well they pin each of them down."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import VoteTable
from nemo_rpo.em.label_model.coefficients import (
    AnnotatorSums,
    Population,
    annotator_sums,
    coefficient_variances,
    logits,
)

# Up to this many coefficients the information of all of them together is formed (32 MB, an inversion of seconds).
_DENSE_LIMIT = 2048


class Curvature(NamedTuple):
    """Of the log-posterior at its mode.

    Attributes:
        log_det: log-determinant of the information, priors included, of all annotators who voted.
        variances: posterior variances of the coefficients [K, d].
        joint: whether annotators were taken together.
    """

    log_det: float
    variances: Tensor
    joint: bool


def curvature(
    table: VoteTable, theta: Tensor, w: Tensor, population: Population, voted: Tensor, told: Tensor | None = None
) -> Curvature:
    r"""Observed information by Louis' identity: complete information − Σ_i w_i (1-w_i) g_i g_iᵀ + diag(1/σ²).

    g_i, the gradient of a pair's evidence, spans all annotators of the pair, so annotators who share pairs are known
    less well than each would be alone. ``told`` as in :func:`~nemo_rpo.em.label_model.coefficients.annotator_sums`.
    Above 2,048 coefficients only the blocks of the annotators are formed: errors
    are then those for known co-annotators, somewhat too small.
    """
    own = annotator_sums(table, theta, w, louis=True, told=told)
    variances = coefficient_variances(own, population)
    if not voted.any():  # gold labels of pairs that nobody decided: nothing is learnt of anybody
        return Curvature(0.0, variances, True)
    if theta[voted].numel() <= _DENSE_LIMIT:
        matrix = _joint_information(table, theta, w, own, population, voted, told)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not failed:
            inverse = torch.cholesky_inverse(factor).diagonal().view(-1, theta.shape[-1])
            variances = variances.index_put((voted.nonzero().squeeze(-1),), inverse)
            return Curvature(2 * factor.diagonal().log().sum().item(), variances, True)
    blocks = own.information[voted] + torch.diag(1 / population.variance)
    observed = blocks - own.lost[voted]
    _, failed = torch.linalg.cholesky_ex(observed - 0.05 * blocks)
    log_det = torch.linalg.slogdet(torch.where((failed == 0).view(-1, 1, 1), observed, blocks)).logabsdet
    return Curvature(log_det.sum().item(), variances, False)


def _joint_information(
    table: VoteTable,
    theta: Tensor,
    w: Tensor,
    own: AnnotatorSums,
    population: Population,
    voted: Tensor,
    told: Tensor | None,
) -> Tensor:
    d, size = theta.shape[-1], int(voted.sum()) * theta.shape[-1]
    place = voted.cumsum(0) - 1
    complete = torch.block_diag(*(own.information[voted] + torch.diag(1 / population.variance)))
    lost = torch.zeros_like(complete)
    pairs_at_once = max(1, (1 << 22) // size)
    bounds = torch.arange(0, table.num_pairs + pairs_at_once, pairs_at_once, device=table.pair.device)
    first = torch.searchsorted(table.pair, bounds)
    for i, start in enumerate(range(0, table.num_pairs, pairs_at_once)):
        chunk = table.where(slice(int(first[i]), int(first[i + 1])))
        rows = _evidence_gradient(chunk, theta, told)
        gradient = lost.new_zeros(min(pairs_at_once, table.num_pairs - start), size)
        columns = place[chunk.annotator].unsqueeze(-1) * d + torch.arange(d, device=place.device)
        gradient.index_put_(((chunk.pair - start).unsqueeze(-1).expand_as(columns), columns), rows, accumulate=True)
        at = w[start : start + pairs_at_once]
        spread = (at * (1 - at)).unsqueeze(-1)
        lost += gradient.T @ (gradient * spread)
    table.all_reduce(lost)
    return complete - lost


def _evidence_gradient(chunk: VoteTable, theta: Tensor, told: Tensor | None) -> Tensor:
    a, b = logits(chunk, theta)
    up, down, says = torch.sigmoid(b + a), torch.sigmoid(b - a), chunk.says_chosen.double()
    is_skill = torch.arange(theta.shape[-1], device=theta.device) < chunk.num_skill
    slope = torch.where(is_skill, (2 * says - up - down).unsqueeze(-1), (down - up).unsqueeze(-1))
    if told is not None:
        slope = torch.where(is_skill & ~told[chunk.pair].unsqueeze(-1), 0.0, slope)
    weight = chunk.weight.double() * chunk.counted.double().sqrt()
    return chunk.design.double() * slope * weight.unsqueeze(-1)


def log_marginal(log_likelihood: float, theta: Tensor, population: Population, at: Curvature, voted: Tensor) -> float:
    r"""Laplace's approximation of log p(votes); models of the same votes may be compared by it.

    ::

        log p(votes | θ̂) + Σ_k log N(θ̂_k; μ, σ²) + (n/2) log 2π − ½ log det I − ½ h log K

    n coefficients; h the free means and variances of the population, each charged as a parameter fitted to K
    annotators.
    """
    theta = theta[voted]
    squares = ((theta - population.mean) ** 2 / population.variance).sum().item()
    log_prior = -0.5 * (squares + len(theta) * population.variance.log().sum().item())
    hyper = int((population.mean_variance > 0).sum()) + len(population.variance)
    means = population.mean_variance > 0
    misfit = ((population.mean - population.expected_mean)[means].square() / population.mean_variance[means]).sum()
    charge = 0.5 * hyper * math.log(max(2, len(theta))) + 0.5 * misfit.item()
    return log_likelihood + log_prior - 0.5 * at.log_det - charge
