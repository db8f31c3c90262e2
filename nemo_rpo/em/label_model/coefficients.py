r"""The model of one vote, and its Newton step.

For a vote s ∈ {+1, -1} of annotator k on a pair whose truth is z ∈ {+1, -1}, both relative to the pair's canonical
order (+1: chosen)::

    logit P(s = +1 | z) = z a + b        a = a_k + u_k·φ (skill)        b = c_k·ψ (leaning)

One-coin Dawid-Skene is a alone (a_k = logit η_k); with ψ the slot shown it is Dawid and Skene's two rates, in the slots
shown. The coefficients θ_k = (a_k, u_k, c_k) of an annotator have independent Gaussian priors N(μ_j, σ_j²), whose means
and variances are the population's. Sums over votes are `index_add`, so that a million annotators cost no loop.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import VoteTable

# A Newton step moves no coefficient further than this: logistic likelihoods flatten where a full step overshoots.
_LONGEST_STEP = 1.5


class Population(NamedTuple):
    """Prior of the coefficients of an annotator, float64 [d] each.

    Attributes:
        mean, variance: of the Gaussians.
        expected_mean, mean_variance: hyperprior of the mean; a variance of 0 fixes the mean.
        expected_variance: what the variance is drawn to.
    """

    mean: Tensor
    variance: Tensor
    expected_mean: Tensor
    mean_variance: Tensor
    expected_variance: Tensor


class PairSums(NamedTuple):
    """Σ_v log P(s_v | z) of each pair, float64 [P] each, for z = +1 and z = -1."""

    if_chosen: Tensor
    if_rejected: Tensor


class AnnotatorSums(NamedTuple):
    """Derivatives of the expected complete log-likelihood in θ: gradient [K, d] and information (minus Hessian)
    [K, d, d]; ``lost``, where computed, is what is lost by the truths being latent, own votes only (Louis)."""

    gradient: Tensor
    information: Tensor
    lost: Tensor | None


def logits(chunk: VoteTable, theta: Tensor) -> tuple[Tensor, Tensor]:
    """(a, b) of each vote, float64 [m] each."""
    rows = chunk.design.double() * theta[chunk.annotator]
    return rows[:, : chunk.num_skill].sum(-1), rows[:, chunk.num_skill :].sum(-1)


def pair_sums(table: VoteTable, theta: Tensor) -> PairSums:
    """The evidence of all votes, by pair and truth; of one vote e_v is the difference of its two summands."""
    sums = torch.zeros(2, table.num_pairs, dtype=torch.float64, device=theta.device)
    for chunk in table.chunks():
        a, b = logits(chunk, theta)
        sign = chunk.sign()
        rows = torch.stack((F.logsigmoid(sign * (b + a)), F.logsigmoid(sign * (b - a)))) * chunk.weight
        sums.index_add_(1, chunk.pair, rows)
    return PairSums(*sums)


def posterior(joint: PairSums) -> Tensor:
    """w = P(z = +1 | votes) [P] from log P(z) P(votes | z)."""
    return torch.sigmoid(joint.if_chosen - joint.if_rejected)


def log_likelihood(joint: PairSums, counted: Tensor) -> float:
    """Σ_i log Σ_z P(z) Π_v P(s_v | z), pairs weighed by ``counted`` [P]."""
    return (torch.logaddexp(joint.if_chosen, joint.if_rejected) * counted).sum().item()


def annotator_sums(table: VoteTable, theta: Tensor, w: Tensor, louis: bool) -> AnnotatorSums:
    r"""Gradient and information of Σ_v w log P(s_v | +1) + (1-w) log P(s_v | -1).

    With p± = P(s = +1 | z = ±1), r± = 1[s = +1] - p± and v± = p±(1-p±)::

        ∂/∂a = w r₊ - (1-w) r₋        ∂/∂b = w r₊ + (1-w) r₋
        -∂²/∂a² = -∂²/∂b² = w v₊ + (1-w) v₋        -∂²/∂a∂b = w v₊ - (1-w) v₋

    times products of features. By Louis' identity the observed information is this less w(1-w) g gᵀ, where g is the
    gradient of the pair's evidence; of one vote ∂e/∂a = r₊ + r₋ and ∂e/∂b = r₊ - r₋.

    The table's known answers are votes on pairs of known truth, at features of 0.

    One all-reduce of 8 K (d + d(d+1)/2) bytes; with ``louis`` half as much again, about.
    """
    d, skill = table.design.shape[-1], table.num_skill
    upper = torch.triu_indices(d, d, device=theta.device)
    same = (upper[0] < skill) == (upper[1] < skill)
    width = d + upper.shape[1] * (2 if louis else 1)
    sums = torch.zeros(table.num_annotators, width, dtype=torch.float64, device=theta.device)
    is_skill = torch.arange(d, device=theta.device) < skill
    for chunk in table.chunks():
        a, b = logits(chunk, theta)
        design = chunk.design.double()
        up, down = torch.sigmoid(b + a), torch.sigmoid(b - a)
        says = chunk.says_chosen.double()
        weight = (chunk.weight * chunk.counted).double()
        chosen = weight * w[chunk.pair]
        rejected = weight - chosen
        r_up, r_down = says - up, says - down
        v_up, v_down = chosen * up * (1 - up), rejected * down * (1 - down)
        on_skill, on_leaning = chosen * r_up - rejected * r_down, chosen * r_up + rejected * r_down
        products = design[:, upper[0]] * design[:, upper[1]]
        rows = [
            design * torch.where(is_skill, on_skill.unsqueeze(-1), on_leaning.unsqueeze(-1)),
            products * torch.where(same, (v_up + v_down).unsqueeze(-1), (v_up - v_down).unsqueeze(-1)),
        ]
        if louis:
            spread = (w * (1 - w))[chunk.pair] * chunk.weight.double() ** 2 * chunk.counted.double()
            slope = design * torch.where(is_skill, (r_up + r_down).unsqueeze(-1), (r_up - r_down).unsqueeze(-1))
            rows.append(slope[:, upper[0]] * slope[:, upper[1]] * spread.unsqueeze(-1))
        sums.index_add_(0, chunk.annotator, torch.cat(rows, -1))
    table.all_reduce(sums)
    if table.known is not None:  # the same on every rank
        right, wrong = table.known
        p = torch.sigmoid(theta[:, 0])
        sums[:, 0] += right - (right + wrong) * p
        sums[:, d] += (right + wrong) * p * (1 - p)
    blocks = [_symmetric(part, upper, d) for part in sums[:, d:].split(upper.shape[1], -1)]
    return AnnotatorSums(sums[:, :d], blocks[0], blocks[1] if louis else None)


def _symmetric(packed: Tensor, upper: Tensor, d: int) -> Tensor:
    full = packed.new_zeros(len(packed), d, d)
    full[:, upper[0], upper[1]] = packed
    full[:, upper[1], upper[0]] = packed
    return full


def newton_step(theta: Tensor, sums: AnnotatorSums, population: Population) -> Tensor:
    """θ after one Newton step of every annotator's M-step, [K, d]; an annotator without votes goes to the mean."""
    precision = 1 / population.variance
    gradient = sums.gradient - precision * (theta - population.mean)
    information = sums.information + torch.diag(precision)
    if theta.shape[-1] == 1:
        step = gradient / information.squeeze(-1)
    else:
        step = torch.linalg.solve(information, gradient)
    return theta + step.clamp(-_LONGEST_STEP, _LONGEST_STEP)


def coefficient_variances(sums: AnnotatorSums, population: Population) -> Tensor:
    """Posterior variance of every coefficient [K, d], annotators apart: diagonal of the inverse observed information.

    Where the observed information of an annotator is not positive, that of known truths replaces it.
    """
    prior = torch.diag(1 / population.variance)
    complete = sums.information + prior
    observed = complete if sums.lost is None else complete - sums.lost
    if observed.shape[-1] == 1:
        positive = observed > 0.05 * complete
        return 1 / torch.where(positive, observed, complete).squeeze(-1)
    # An eigenvalue of the share that is observed, bounded away from 0, keeps the inverse finite.
    _, failed = torch.linalg.cholesky_ex(observed - 0.05 * complete)
    good = (failed == 0).view(-1, 1, 1)
    return torch.linalg.inv(torch.where(good, observed, complete)).diagonal(dim1=-2, dim2=-1)


def refit_population(
    theta: Tensor, variances: Tensor, voted: Tensor, population: Population, weight: float
) -> Population:
    r"""Means and variances of the population that raise the Laplace marginal likelihood (MacKay's fixed point).

    With γ_k = 1 - V_k/σ² the share of θ_k that its own votes decide (V_k its posterior variance)::

        σ² ← (Σ (θ_k - μ)² + ν σ₀²) / (Σ γ_k + ν)        μ ← Σ (θ_k - (1-γ_k) μ) / Σ γ_k

    the latter combined with its hyperprior. Only annotators who ``voted`` [K] take part.
    """
    theta, variances = theta[voted], variances[voted]
    own = (1 - variances / population.variance).clamp(1e-4, 1.0)
    informed = own.sum(0)
    pull = (theta - (1 - own) * population.mean).sum(0)
    hyper = 1 / population.mean_variance.clamp(min=1e-12)
    mean = (pull / population.variance + hyper * population.expected_mean) / (informed / population.variance + hyper)
    mean = torch.where(population.mean_variance > 0, mean, population.expected_mean)
    squares = (theta - mean).square().sum(0)
    variance = (squares + weight * population.expected_variance) / (informed + weight)
    # Half of the way in the logarithm: the fixed point of sparse annotators otherwise swings.
    variance = (population.variance * variance).sqrt().clamp(1e-4, 25.0)
    return population._replace(mean=mean, variance=variance)


def with_population_unknown(
    variances: Tensor, theta: Tensor, voted: Tensor, population: Population, weight: float
) -> Tensor:
    r"""Posterior variances [K, d] with what the population is not known by: V + (1-γ)² (Var μ + (θ-μ)² Var log σ²).

    Var μ = σ²/Σγ where the mean is free, Var log σ² = 2/(Σγ + ν); θ = μ + γ (own estimate - μ) moves with both.
    """
    own = (1 - variances / population.variance).clamp(1e-4, 1.0)
    informed = own[voted].sum(0)
    mean = torch.where(population.mean_variance > 0, population.variance / informed, 0.0)
    return variances + (1 - own) ** 2 * (mean + (theta - population.mean) ** 2 * 2 / (informed + weight))
