r"""The EM of k groups of annotators. Shapes: P pairs, M signed votes, K annotators, k groups, d coefficients.

Annotator j belongs to group c_j; group g has a truth z_i^g of its own of pair i, and all groups share a base::

    P(c_j = g) = π_g        P(z_i^g = z_i^0) = 1 - δ        logit P(s = +1 | z^g) = z^g a + b

with a and b as in the label model (:mod:`nemo_rpo.em.label_model.coefficients`), so that care, adversaries and leanings
are no taste. With k = 1 this is the label model.

Memberships r_jg = P(c_j = g | votes) and truths w_ig = P(z_i^g = +1 | votes) take turns. Evidence for z_i^g is
Σ_v r_{j g} e_v plus what the other groups' truths say through the base (exact, a tree). A membership is judged by how
well the group predicts each of the annotator's votes *without it*::

    log r_jg = log π_g + Σ_v log (w⁻ P(s_v | +1) + (1 - w⁻) P(s_v | -1)) + const,   logit w⁻ = logit w_ig - r_jg e_v

Otherwise an annotator's own votes would vouch for the group that they are in.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import VoteTable
from nemo_rpo.em.label_model.coefficients import (
    AnnotatorSums,
    Population,
    annotator_sums,
    coefficient_variances,
    logits,
    newton_step,
    pair_sums,
    refit_population,
)
from nemo_rpo.em.taste.taste_settings import TasteSettings

# Iterations from one refit of the population to the next.
_REFIT_EVERY = 3


class Groups(NamedTuple):
    """Fitted groups.

    Attributes:
        membership: float64 [K, k]; of annotators without votes the shares.
        share: π, float64 [k].
        w: float64 [P, k], P(chosen is better) for each group.
        differ: δ, share of pairs on which a group's truth differs from the base.
        theta: float64 [K, d].
        population: prior of the coefficients.
        fits: Σ_v log P(s_v | the other votes), what the fit is judged by beside others of the same votes.
        converged: whether memberships have come to rest.
    """

    membership: Tensor
    share: Tensor
    w: Tensor
    differ: float
    theta: Tensor
    population: Population
    fits: float
    converged: bool


def fit_groups(table: VoteTable, membership: Tensor, population: Population, settings: TasteSettings) -> Groups:
    """EM from the memberships ``membership`` [K, k].

    Args:
        table: votes with the features of the label model of one truth.
        membership: where it starts.
        population: prior of the coefficients where it starts; its hyperprior.
        settings: iterations, prior of δ.
    """
    voted = table.per_annotator(table.counted) > 0
    theta = population.mean.expand(table.num_annotators, -1).clone()
    differ, share = settings.differ, membership[voted].mean(0)
    w = _share_start(table, membership)
    converged, iteration, fits = False, 0, 0.0
    while not converged and iteration < settings.iterations:
        refit = iteration % _REFIT_EVERY == _REFIT_EVERY - 1
        sums = _sums(table, theta, w, membership, louis=refit)
        if refit:
            variances = coefficient_variances(sums, population)
            weight = settings.label_model.spread_votes
            population = refit_population(theta, variances, voted, population, weight)
        theta = newton_step(theta, sums, population)
        log_votes = vote_likelihoods(table, theta)
        evidence = _evidence(table, theta, membership)
        w_logit, differing = through_base(evidence, differ)
        w = torch.sigmoid(w_logit)
        # A base that joins the groups closely from the start would never let them part.
        if evidence.shape[1] > 1 and iteration >= settings.part:
            seen = settings.differ_pairs
            differ = ((differing.sum() + seen * settings.differ) / (differing.numel() + seen)).item()
        by_group = without_own_vote(table, log_votes, w_logit, membership)
        fits = torch.logsumexp(by_group + membership[table.annotator].clamp(min=1e-12).log(), -1).sum().item()
        moved = 0.0
        if iteration >= settings.hold:
            judged = _memberships(table, by_group, share)
            moved = (judged - membership)[voted].abs().max().item()
            membership = torch.where(voted.unsqueeze(-1), judged, share)
            share = (judged[voted].sum(0) + 1) / (voted.sum() + judged.shape[1])
        iteration += 1
        converged = iteration > settings.part + 2 * _REFIT_EVERY and moved < settings.tolerance
    return Groups(membership, share, w, differ, theta, population, fits, converged)


def predict(table: VoteTable, groups: Groups) -> Tensor:
    """log P(s_v) of votes that ``groups`` was not fitted to [M], by the memberships of their annotators."""
    log_votes = vote_likelihoods(table, groups.theta)
    w = groups.w[table.pair]
    by_group = torch.logaddexp(
        w.clamp(min=1e-12).log() + log_votes[0].unsqueeze(-1),
        (1 - w).clamp(min=1e-12).log() + log_votes[1].unsqueeze(-1),
    )
    return torch.logsumexp(by_group + groups.membership[table.annotator].clamp(min=1e-12).log(), -1)


def vote_likelihoods(table: VoteTable, theta: Tensor) -> Tensor:
    """log P(s_v | z) for z = +1 and z = -1, float64 [2, M]."""
    a, b = logits(table, theta)
    sign = table.sign()
    return torch.stack((F.logsigmoid(sign * (b + a)), F.logsigmoid(sign * (b - a))))


def through_base(evidence: Tensor, differ: float) -> tuple[Tensor, Tensor]:
    r"""Posterior log-odds of every group's truth [P, k], and P(z^g ≠ z^0) [P, k], from the groups' own evidence.

    The base z^0 (either truth as likely) is joined to each z^g by a symmetric channel of error δ. A message of log-odds
    x through it arrives as log ((1-δ) e^x + δ) - log (1-δ + δ e^x) = 2 atanh((1-2δ) tanh(x/2)).

    >>> through_base(torch.tensor([[2.0, 0.0]], dtype=torch.float64), 0.25)[0].round(decimals=3)
    tensor([[2.0000, 0.3860]], dtype=torch.float64)
    """
    if evidence.shape[1] == 1:
        return evidence, torch.zeros_like(evidence)
    to_base = _channel(evidence, differ)
    others = to_base.sum(1, keepdim=True) - to_base
    log_odds = evidence + _channel(others, differ)
    # P(z^g ≠ z^0): channel probabilities weighed by both ends.
    same = torch.logaddexp(
        F.logsigmoid(evidence) + F.logsigmoid(others), F.logsigmoid(-evidence) + F.logsigmoid(-others)
    )
    apart = torch.logaddexp(
        F.logsigmoid(evidence) + F.logsigmoid(-others), F.logsigmoid(-evidence) + F.logsigmoid(others)
    )
    ratio = torch.logit(torch.tensor(differ, dtype=torch.float64)) + apart - same
    return log_odds, torch.sigmoid(ratio)


def _channel(log_odds: Tensor, differ: float) -> Tensor:
    return 2 * torch.atanh(((1 - 2 * differ) * torch.tanh(log_odds / 2)).clamp(-1 + 1e-12, 1 - 1e-12))


def without_own_vote(table: VoteTable, log_votes: Tensor, w_logit: Tensor, membership: Tensor) -> Tensor:
    """log P(s_v | the other votes, annotator in group g), float64 [M, k]."""
    effect = (log_votes[0] - log_votes[1]) * table.weight.double()
    rest = w_logit[table.pair] - membership[table.annotator] * effect.unsqueeze(-1)
    return torch.logaddexp(
        F.logsigmoid(rest) + log_votes[0].unsqueeze(-1), F.logsigmoid(-rest) + log_votes[1].unsqueeze(-1)
    )


def _memberships(table: VoteTable, by_group: Tensor, share: Tensor) -> Tensor:
    weight = (table.weight * table.counted).double().unsqueeze(-1)
    sums = torch.zeros(table.num_annotators, by_group.shape[1], dtype=torch.float64, device=by_group.device)
    return torch.softmax(share.log() + sums.index_add_(0, table.annotator, by_group * weight), -1)


def _of_group(table: VoteTable, membership: Tensor, group: int) -> VoteTable:
    return table._replace(weight=(table.weight * membership[table.annotator, group]).to(table.weight.dtype))


def _evidence(table: VoteTable, theta: Tensor, membership: Tensor) -> Tensor:
    columns = []
    for group in range(membership.shape[1]):
        sums = pair_sums(_of_group(table, membership, group), theta)
        columns.append(sums.if_chosen - sums.if_rejected)
    return torch.stack(columns, -1)


def _sums(table: VoteTable, theta: Tensor, w: Tensor, membership: Tensor, louis: bool) -> AnnotatorSums:
    """Of all groups together: a vote counts in each by its annotator's membership."""
    parts = [
        annotator_sums(_of_group(table, membership, group), theta, w[:, group].contiguous(), louis)
        for group in range(membership.shape[1])
    ]
    gradient, information = (sum(column) for column in zip(*((p.gradient, p.information) for p in parts), strict=True))
    return AnnotatorSums(gradient, information, sum(part.lost for part in parts) if louis else None)


def _share_start(table: VoteTable, membership: Tensor) -> Tensor:
    """Share of each group's votes for chosen, drawn to ½ by one vote each way [P, k]."""
    columns = []
    for group in range(membership.shape[1]):
        weight = _of_group(table, membership, group).weight.double()
        columns.append((table.per_pair(weight * table.says_chosen) + 1) / (table.per_pair(weight) + 2))
    return torch.stack(columns, -1)
