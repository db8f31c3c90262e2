"""The EM of one member of the family of label models: given features, fitted coefficients and population."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import SLOT, VoteTable
from nemo_rpo.em.label_model.coefficients import (
    PairSums,
    Population,
    annotator_sums,
    coefficient_variances,
    log_likelihood,
    newton_step,
    pair_sums,
    posterior,
    refit_population,
    with_population_unknown,
)
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.laplace import curvature, log_marginal

# Log-odds against the other truth of a pair whose truth is known: finite, so that no product with 0 is undefined.
KNOWN = 1e4
# Iterations of EM before Newton's; those before the population is refitted, once coefficients stand nearly still for
# the one it starts from; how many steps of Newton's may lower the posterior; and how many have to be quiet in the end.
_EM_FIRST, _REFIT_FROM, _FALLS, _QUIET = 3, 4, 3, 2
# Shares stay within this.
_LARGEST_SHARE = 6.0


@dataclass(frozen=True)
class PairPrior:
    """What is known of the truths beside the votes: P(z = +1) = σ(margin + Σ_j share_j ψ_j), and anchors.

    Attributes:
        margin: float64 [P], a policy's Δ/τ, or 0.
        gold: float64 [P], +1 chosen is better, -1 rejected is, 0 not known.
        columns: ψ, leanings of the pairs by name, float64 [P]: ``slot`` is +1 where chosen was shown first, -1 where
            rejected was, 0 not known.
        shares: log-odds by which the truth goes with a column, of those that the EM fits. Where the better response
            tends to be the longer one, annotators who know the truth vote as if they leaned to length; without a share
            a leaning takes that for its own.
    """

    margin: Tensor
    gold: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def flat(cls, pairs: int, device: torch.device | None = None) -> PairPrior:
        """Nothing is known of any pair."""
        zero = torch.zeros(pairs, dtype=torch.float64, device=device)
        return cls(zero, zero)

    def of(self, pairs: Tensor) -> PairPrior:
        """That of some pairs (an index)."""
        columns = {name: column[pairs] for name, column in self.columns.items()}
        return replace(self, margin=self.margin[pairs], gold=self.gold[pairs], columns=columns)

    def going_with(self, names: Sequence[str]) -> PairPrior:
        """The same with the shares of these columns fitted, from where they are."""
        return replace(self, shares={name: self.shares.get(name, 0.0) for name in names})

    @property
    def of_columns(self) -> Tensor:
        """Σ_j share_j ψ_j, float64 [P]."""
        parts = (share * self.columns[name] for name, share in self.shares.items())
        return sum(parts, torch.zeros_like(self.margin))

    @property
    def log_odds(self) -> Tensor:
        """Of chosen, float64 [P]: what the EM goes by."""
        return self.margin + self.of_columns

    @property
    def believed(self) -> Tensor:
        """The part of :attr:`log_odds` that posteriors are given with, [P]: the margin and the order shown. That the
        truth goes with another column is found in votes that go with it too, for whatever reason: it keeps the leanings
        honest, and is no evidence of any pair."""
        share = self.shares.get(SLOT, 0.0)
        return self.margin + share * self.columns[SLOT] if share else self.margin

    def joint(self, sums: PairSums) -> PairSums:
        """log P(z) P(votes | z) for both truths; one is ruled out where the truth is known."""
        log_odds = self.log_odds
        if_chosen = sums.if_chosen + F.logsigmoid(log_odds) - KNOWN * (self.gold < 0)
        if_rejected = sums.if_rejected + F.logsigmoid(-log_odds) - KNOWN * (self.gold > 0)
        return PairSums(if_chosen, if_rejected)

    def with_shares_of(self, w: Tensor, table: VoteTable, spread: float) -> PairPrior:
        """One Newton step of each share towards the posteriors ``w`` [P] of the pairs of ``table``; all but the slot's
        are expected to be N(0, ``spread``²)."""
        found = self
        for name, share in self.shares.items():
            column, p = self.columns[name], torch.sigmoid(found.log_odds)
            gradient, information = table.total(column * (w - p), column.square() * p * (1 - p)).tolist()
            # One pair each way draws a share of first to one half.
            to_half = 0.5 - torch.sigmoid(torch.tensor(share)).item()
            gradient += to_half if name == SLOT else -share / spread**2
            information += 0.25 if name == SLOT else spread**-2
            step = max(-1.0, min(1.0, gradient / information))
            moved = max(-_LARGEST_SHARE, min(_LARGEST_SHARE, share + step))
            found = replace(found, shares={**found.shares, name: moved})
        return found


@dataclass(frozen=True)
class Member:
    """A fitted member.

    Attributes:
        names: its features, the skill first.
        theta: float64 [K, d], coefficients; those of annotators without votes are the population's means.
        errors: float64 [K, d], their standard errors.
        population: prior of the coefficients.
        prior: of the pairs, with the shares as fitted.
        w: float64 [P], posterior that chosen is better, anchors at 0 or 1.
        log_marginal: Laplace's log p(votes).
        iterations, converged: of the EM.
        joint: whether standard errors take all annotators together.
    """

    names: tuple[str, ...]
    theta: Tensor
    errors: Tensor
    population: Population
    prior: PairPrior
    w: Tensor
    log_marginal: float
    iterations: int
    converged: bool
    joint: bool

    def extended(self, names: Sequence[str], theta: Tensor, population: Population) -> tuple[Tensor, Population]:
        """Coefficients [K, d] and population of the features ``names``: its own, and where it has none those given."""
        here = [names.index(name) for name in self.names]
        theta, mean, variance = theta.clone(), population.mean.clone(), population.variance.clone()
        theta[:, here], mean[here], variance[here] = self.theta, self.population.mean, self.population.variance
        return theta, population._replace(mean=mean, variance=variance)

    @property
    def believed(self) -> Tensor:
        """Posteriors [P] to give away: w but for what :attr:`PairPrior.believed` leaves out."""
        beside = self.prior.log_odds - self.prior.believed
        w = torch.sigmoid(torch.logit(self.w, eps=1e-12) - beside)
        return torch.where((self.prior.gold != 0) | (beside == 0), self.w, w)

    @property
    def eta(self) -> Tensor:
        """σ(a_k) [K], P(label right) of an annotator at features of 0: one number for those who want one."""
        return torch.sigmoid(self.theta[:, 0])


def expected_population(
    names: Sequence[str], free_means: Sequence[str], settings: LabelModelSettings, device: torch.device | None = None
) -> Population:
    """The prior before any vote is seen; means of features that are not in ``free_means`` are 0 and stay so."""
    s = settings
    rows = [(s.skill_mean, s.skill_mean_spread, s.skill_spread)]
    rows += [(0.0, s.mean_spread if name in free_means else 0.0, s.feature_spread) for name in names[1:]]
    mean, spread, width = torch.tensor(rows, dtype=torch.float64, device=device).unbind(-1)
    return Population(mean.clone(), width**2, mean.clone(), spread**2, width**2)


class FixedPoint(NamedTuple):
    """Where :func:`iterate` ended: as in :class:`Member`; ``voted`` bool [K], who has votes."""

    theta: Tensor
    population: Population
    prior: PairPrior
    w: Tensor
    voted: Tensor
    iterations: int
    converged: bool


def told(table: VoteTable, prior: PairPrior) -> Tensor | None:
    """Pairs whose truth something tells beside one vote (a second vote, a margin, an anchor), bool [P]; None: all.

    A vote alone tells nobody's skill: any skill explains it as well, and thousands of them would draw all skills to 0,
    where a leaning explains them in the fewest words.
    """
    found = (table.per_pair(torch.ones_like(table.counted)) != 1) | (prior.margin != 0) | (prior.gold != 0)
    return None if found.all() else found


@torch.no_grad()
def iterate(
    table: VoteTable,
    prior: PairPrior,
    population: Population,
    theta: Tensor,
    w: Tensor | None,
    settings: LabelModelSettings,
) -> FixedPoint:
    """To the highest posterior from coefficients ``theta`` [K, d] and posteriors ``w`` [P]; the population is refitted
    on the way. Without ``w``, ``theta`` and ``population`` are those of a fit to much the same votes.

    A few steps of EM find the way, unless it is known; then come Newton steps on the observed information, which end
    where EM does. A Newton step that lowers the posterior is taken back for one of EM, and after a few of those EM goes
    on alone.
    Where not all pairs are :func:`told`, what is solved is an equation for skills and one for leanings, from other
    votes each, and there is nothing that has to rise.

    Collectives, where ranks hold different pairs: one of 8 K bytes, then an iteration those of
    :func:`~nemo_rpo.em.label_model.coefficients.annotator_sums`, two of 8 bytes, and 16 for every share that is
    fitted; where a step is taken back 8 more.
    """
    voted = table.per_annotator(table.counted) > 0
    counted, of_skill = _counted_of_pairs(table), told(table, prior)

    def height(theta: Tensor, of_votes: PairSums) -> float:
        joint = prior.joint(of_votes)
        likelihood = table.total(torch.logaddexp(joint.if_chosen, joint.if_rejected) * counted).item()
        return likelihood - 0.5 * ((theta - population.mean)[voted].square() / population.variance).sum().item()

    of_votes = pair_sums(table, theta)
    em_first, refit_from = (0, 0) if w is None else (_EM_FIRST, _REFIT_FROM)
    w = posterior(prior.joint(of_votes)) if w is None else w
    converged, iteration, quiet, falls = False, 0, 0, 0
    while not converged and iteration < settings.max_iterations:
        newton = iteration >= em_first and falls < _FALLS
        refit = iteration >= refit_from
        sums = annotator_sums(table, theta, w, louis=newton or refit, told=of_skill)
        if refit:
            variances = coefficient_variances(sums, population)
            population = refit_population(theta, variances, voted, population, settings.spread_votes)
        if prior.shares:
            prior = prior.with_shares_of(w, table, settings.share_spread)
        moved = newton_step(theta, sums, population, observed=newton)
        said = pair_sums(table, moved)
        if newton and of_skill is None:
            before = height(theta, of_votes)
            if height(moved, said) < before - 1e-9 * abs(before):
                falls += 1
                moved = newton_step(theta, sums, population)
                said = pair_sums(table, moved)
        step = (moved - theta)[voted].square().mean().sqrt().item() if voted.any() else 0.0
        theta, of_votes, iteration = moved, said, iteration + 1
        w = posterior(prior.joint(of_votes))
        # A refit may move the population after a quiet step, so stillness has to last.
        quiet = quiet + 1 if refit and step < settings.tolerance else 0
        converged = quiet >= _QUIET
    return FixedPoint(theta, population, prior, w, voted, iteration, converged)


@torch.no_grad()
def fit_member(
    table: VoteTable, prior: PairPrior, population: Population, start: Tensor | Member, settings: LabelModelSettings
) -> Member:
    """:func:`iterate` with standard errors and evidence.

    Args:
        table: votes with this member's features.
        prior: of the pairs.
        population: where it starts; its hyperprior.
        start: posteriors [P] to start from, coefficients being the population's means; or a member with fewer features,
            of the same votes.
        settings: bounds and hyperprior's weight.
    """
    theta = population.mean.expand(table.num_annotators, -1).clone()
    if isinstance(start, Member):
        theta, population = start.extended(table.names, theta, population)
        found = iterate(table, prior, population, theta, None, settings)
    else:
        found = iterate(table, prior, population, theta, start, settings)
    theta, population, prior, w, voted, iteration, converged = found
    joint = prior.joint(pair_sums(table, theta))
    at = curvature(table, theta, w, population, voted, told(table, prior))
    evidence = log_marginal(log_likelihood(joint, _counted_of_pairs(table)), theta, population, at, voted)
    # A share that is fitted is charged like a mean of the population, by the pairs that it was fitted to.
    evidence -= 0.5 * len(prior.shares) * torch.tensor(max(2.0, table.num_pairs)).log().item()
    # One so large that the column were the truth itself would explain any leaning to it.
    contents = (share for name, share in prior.shares.items() if name != SLOT)
    evidence -= 0.5 * sum((share / settings.share_spread) ** 2 for share in contents)
    errors = with_population_unknown(at.variances, theta, voted, population, settings.spread_votes).sqrt()
    return Member(table.names, theta, errors, population, prior, w, evidence, iteration, converged, at.joint)


def _counted_of_pairs(table: VoteTable) -> Tensor:
    """What each pair counts for, [P]: its votes' (equal) counts; 1 for pairs without votes, whose likelihood is 1."""
    counted = torch.ones(table.num_pairs, dtype=torch.float64, device=table.counted.device)
    return counted.index_put((table.pair,), table.counted.double())


def share_start(table: VoteTable, gold: Tensor | None = None) -> Tensor:
    """Where the EM starts: the share of votes for chosen, drawn to ½ by one vote each way; truths where known [P]."""
    weight = table.weight.double()
    share = (table.per_pair(weight * table.says_chosen) + 1) / (table.per_pair(weight) + 2)
    return share if gold is None else torch.where(gold != 0, (gold > 0).double(), share)
