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
# The same for means of the population, and for logarithms of its variances.
_LONGEST_MOVE, _LONGEST_RISE = 0.4, 1.0
# Share of the complete information that has to be observed in every direction for the observed one to be used.
_LEAST_OBSERVED = 0.05


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


def annotator_sums(
    table: VoteTable, theta: Tensor, w: Tensor, louis: bool, told: Tensor | None = None
) -> AnnotatorSums:
    r"""Gradient and information of Σ_v w log P(s_v | +1) + (1-w) log P(s_v | -1).

    With p± = P(s = +1 | z = ±1), r± = 1[s = +1] - p± and v± = p±(1-p±)::

        ∂/∂a = w r₊ - (1-w) r₋        ∂/∂b = w r₊ + (1-w) r₋
        -∂²/∂a² = -∂²/∂b² = w v₊ + (1-w) v₋        -∂²/∂a∂b = w v₊ - (1-w) v₋

    times products of features. By Louis' identity the observed information is this less w(1-w) g gᵀ, where g is the
    gradient of the pair's evidence; of one vote ∂e/∂a = r₊ + r₋ and ∂e/∂b = r₊ - r₋.

    Votes of pairs that are not ``told`` (bool [P]; None: all are) say nothing of skills, only of leanings.
    The table's known answers are votes on pairs of known truth, at features of 0.

    One all-reduce of 8 K (d + d(d+1)/2) bytes; with ``louis`` half as much again, about.
    """
    d, skill = table.design.shape[-1], table.num_skill
    upper = torch.triu_indices(d, d, device=theta.device)
    of_leaning = (torch.arange(d, device=theta.device) >= skill).long()
    block = of_leaning[upper].sum(0)  # 0 of two skills, 1 of a skill and a leaning, 2 of two leanings
    width = d + upper.shape[1] * (2 if louis else 1)
    sums = torch.zeros(table.num_annotators, width, dtype=torch.float64, device=theta.device)
    for chunk in table.chunks():
        a, b = logits(chunk, theta)
        design = chunk.design.double()
        if told is not None:
            design = torch.where((of_leaning == 0) & ~told[chunk.pair].unsqueeze(-1), 0.0, design)
        up, down = torch.sigmoid(b + a), torch.sigmoid(b - a)
        says = chunk.says_chosen.double()
        weight = (chunk.weight * chunk.counted).double()
        chosen = weight * w[chunk.pair]
        rejected = weight - chosen
        r_up, r_down = says - up, says - down
        v_up, v_down = chosen * up * (1 - up), rejected * down * (1 - down)
        known = torch.stack((v_up + v_down, v_up - v_down, v_up + v_down), -1)
        slope = torch.stack((chosen * r_up - rejected * r_down, chosen * r_up + rejected * r_down), -1)
        products = design[:, upper[0]] * design[:, upper[1]]
        rows = [design * slope[:, of_leaning], products * known[:, block]]
        if louis:
            # ∂e/∂a = r₊ + r₋ and ∂e/∂b = r₊ - r₋, in products of two
            on_skill, on_leaning = r_up + r_down, r_up - r_down
            spread = (w * (1 - w))[chunk.pair] * chunk.weight.double() ** 2 * chunk.counted.double()
            lost = torch.stack((on_skill * on_skill, on_skill * on_leaning, on_leaning * on_leaning), -1)
            rows.append(products * (lost * spread.unsqueeze(-1))[:, block])
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


def newton_step(theta: Tensor, sums: AnnotatorSums, population: Population, observed: bool = False) -> Tensor:
    """θ after one Newton step of every annotator [K, d]; an annotator without votes goes to the mean.

    The M-step's own, which never lowers the posterior; or ``observed``, that of the posterior itself, whose gradient is
    the same and whose information is what is left of it once truths are latent (``sums.lost`` has to be there): an EM
    from which little is observed takes hundreds of steps, and this a dozen. Annotators who share pairs are taken one by
    one, so it may overshoot.
    """
    precision = 1 / population.variance
    gradient = sums.gradient - precision * (theta - population.mean)
    information = _observed(sums, population) if observed else sums.information + torch.diag(precision)
    if theta.shape[-1] == 1:
        step = gradient / information.squeeze(-1)
    else:
        step = torch.linalg.solve(information, gradient)
    return theta + step.clamp(-_LONGEST_STEP, _LONGEST_STEP)


def _observed(sums: AnnotatorSums, population: Population) -> Tensor:
    """Observed information of every annotator, priors included, [K, d, d]; where it is not positive that of known
    truths replaces it."""
    complete = sums.information + torch.diag(1 / population.variance)
    if sums.lost is None:
        return complete
    observed = complete - sums.lost
    # An eigenvalue of the share that is observed, bounded away from 0, keeps the inverse finite.
    _, failed = torch.linalg.cholesky_ex(observed - _LEAST_OBSERVED * complete)
    return torch.where((failed == 0).view(-1, 1, 1), observed, complete)


def coefficient_variances(sums: AnnotatorSums, population: Population) -> Tensor:
    """Posterior variance of every coefficient [K, d], annotators apart: diagonal of the inverse observed information.

    Where the observed information of an annotator is not positive, that of known truths replaces it.
    """
    observed = _observed(sums, population)
    if observed.shape[-1] == 1:
        return 1 / observed.squeeze(-1)
    return torch.linalg.inv(observed).diagonal(dim1=-2, dim2=-1)


def refit_population(
    theta: Tensor, variances: Tensor, voted: Tensor, population: Population, weight: float
) -> Population:
    r"""Means and variances of the population after a step to where the Laplace marginal likelihood is highest.

    With γ_k = 1 - V_k/σ² the share of θ_k that its own votes decide (V_k its posterior variance), that is where ::

        Σ (θ_k - μ)² + ν σ₀² = (Σ γ_k + ν) σ²        Σ (θ_k - μ)/σ² = (μ - μ₀)/σ_μ²

    (MacKay's fixed point, and the hyperprior of the mean). When μ moves, θ_k follows by 1-γ_k of it, so the slope of
    the second equation is Σ γ_k/σ² + 1/σ_μ²; that of the first, in log σ², is Σ γ_k² + ν for a spread as it is
    expected. A step is bounded: coefficients that have not settled yet say little of their spread. Only annotators who
    ``voted`` [K] take part.
    """
    off, own = theta[voted] - population.mean, (1 - variances[voted] / population.variance).clamp(1e-4, 1.0)
    hyper = 1 / population.mean_variance.clamp(min=1e-12)
    slope = own.sum(0) / population.variance + hyper
    move = (off.sum(0) / population.variance + hyper * (population.expected_mean - population.mean)) / slope
    move = move.clamp(-_LONGEST_MOVE, _LONGEST_MOVE)
    move = torch.where(population.mean_variance > 0, move, population.expected_mean - population.mean)
    ratio = ((off - own * move).square().sum(0) + weight * population.expected_variance) / population.variance
    slope = own.square().sum(0) + weight * (population.expected_variance / population.variance).clamp(min=1.0)
    rise = (ratio - own.sum(0) - weight) / slope
    variance = population.variance * rise.clamp(-_LONGEST_RISE, _LONGEST_RISE).exp()
    return population._replace(mean=population.mean + move, variance=variance.clamp(1e-4, 25.0))


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
