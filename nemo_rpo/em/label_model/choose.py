"""Which features a crowd needs: none unless the marginal likelihood asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import SLOT, VoteTable
from nemo_rpo.em.label_model.coefficients import pair_sums, posterior
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.member import Member, PairPrior, expected_population, fit_member, share_start

SHARE = "share of first"


class OrderShown(NamedTuple):
    """Whether the order in which responses were shown was random.

    Attributes:
        first: share of pairs (with a known order) whose chosen was shown first; nan without any.
        random: whether it is near enough to one half. If so the mean leaning to a slot is identified: the truth is on
            either side equally often, and what the votes have too much of one side is leaning. If not, too many votes
            for a side may as well be truth: the mean leaning is held at 0 and the share of truths is fitted instead.
    """

    first: float
    random: bool


class Choice(NamedTuple):
    """A feature that was tried: what it adds to log p(votes) in nats (the log Bayes factor), and whether it is in."""

    name: str
    log_bayes_factor: float
    taken: bool


def order_shown(slot: Tensor, settings: LabelModelSettings) -> OrderShown:
    """Balance of the order; ``slot`` [P], +1 chosen first, -1 rejected first, 0 not known or mixed.

    >>> order_shown(torch.ones(50), LabelModelSettings())
    OrderShown(first=1.0, random=False)
    """
    known = slot[slot != 0]
    if not len(known):
        return OrderShown(math.nan, False)
    share = (known > 0).double().mean().item()
    tolerance = max(settings.order_tolerance, 3 * math.sqrt(0.25 / len(known)))
    return OrderShown(share, abs(share - 0.5) <= min(tolerance, 0.3))


def slot_log_bayes_factor(first: int, votes: int) -> float:
    """Closed form for the slot alone: votes for the first response with any one probability, against ½.

    ln B(n₁+1, N-n₁+1) + N ln 2; above 0 speaks for a leaning. For votes whose order was random, one a pair.

    >>> round(slot_log_bayes_factor(80, 100), 2), round(slot_log_bayes_factor(50, 100), 2)
    (16.97, -2.08)
    """
    rest = votes - first
    log_beta = math.lgamma(first + 1) + math.lgamma(rest + 1) - math.lgamma(votes + 2)
    return log_beta + votes * math.log(2)


def slot_of_pairs(table: VoteTable) -> Tensor:
    """The order shown of each pair, the mean over its votes, float64 [P]; 0 where no vote has one."""
    if SLOT not in table.names:
        return torch.zeros(table.num_pairs, dtype=torch.float64)
    slot = table.design[:, table.names.index(SLOT)].double()
    known = (slot != 0).double()
    return table.per_pair(slot) / table.per_pair(known).clamp(min=1)


def free_means(table: VoteTable, order: OrderShown | None, anchors: int, settings: LabelModelSettings) -> list[str]:
    """Skill features; the slot where the order was random; every leaning where anchors tell it from the truth."""
    free = list(table.names[1 : table.num_skill])
    for name in table.names[table.num_skill :]:
        if anchors >= settings.min_anchors or (name == SLOT and order is not None and order.random):
            free.append(name)
    return free


class Fitter:
    """Fits members to one set of pairs and anchors; kept apart from the search so that every fit is made one way."""

    def __init__(self, prior: PairPrior, free_means: list[str], settings: LabelModelSettings) -> None:
        self.prior, self.free_means, self.settings = prior, free_means, settings

    def of(self, pairs: Tensor) -> Fitter:
        """The same for some of the pairs (an index)."""
        return Fitter(self.prior.of(pairs), self.free_means, self.settings)

    def with_gold(self, gold: Tensor) -> Fitter:
        """The same with other anchors."""
        return Fitter(replace(self.prior, gold=gold), self.free_means, self.settings)

    def fit(self, table: VoteTable, learn_share: bool, starts: list[Tensor]) -> Member:
        """The best of the fits from several ``starts`` (posteriors [P]) and those of :meth:`starts`, by marginal
        likelihood.
        """
        return self.best_of(table, learn_share, [*self.starts(table), *starts])

    def starts(self, table: VoteTable) -> list[Tensor]:
        """Posteriors [P] that a fit may start from: the shares of votes.

        With anchors, posteriors of a fit to the anchored pairs alone are a further start: where a crowd is wrong more
        often than right, the shares of votes start the EM on the wrong side.
        """
        found = [share_start(table, self.prior.gold)]
        if (self.prior.gold != 0).any():
            found.append(self.from_anchors(table).w)
        return found

    def best_of(self, table: VoteTable, learn_share: bool, starts: Sequence[Tensor | Member]) -> Member:
        """The best of the fits from ``starts``, by marginal likelihood."""
        prior = replace(self.prior, learn_share=learn_share)
        population = expected_population(table.names, self.free_means, self.settings)
        fits = [fit_member(table, prior, population, start, self.settings) for start in starts]
        return max(fits, key=lambda member: member.log_marginal)

    def from_anchors(self, table: VoteTable) -> Member:
        """Coefficients from the anchored pairs alone, and the posteriors that they give all pairs."""
        anchored = table.where((self.prior.gold != 0)[table.pair])
        population = expected_population(table.names, self.free_means, self.settings)
        learnt = fit_member(anchored, self.prior, population, share_start(anchored, self.prior.gold), self.settings)
        return with_posteriors(table, learnt)


def with_posteriors(table: VoteTable, member: Member) -> Member:
    """``member`` with posteriors of the pairs of ``table`` (which has its features)."""
    return replace(member, w=posterior(member.prior.joint(pair_sums(table, member.theta))))


def choose_member(
    table: VoteTable, fitter: Fitter, order: OrderShown, settings: LabelModelSettings
) -> tuple[Member, list[Choice]]:
    """Forward search from the one-coin model; the last of the choices are those that were tried and left out.

    A candidate is fitted from where the model so far stands. The best of them, and all where none is worth taking,
    are fitted from the other starts as well.

    Args:
        table: votes with all features at hand.
        fitter: of the members.
        order: where it is known and not random, the share of pairs whose first response is better is tried too.
        settings: ``min_log_bayes_factor``.
    """
    candidates = list(table.names[1:])
    if SLOT in candidates and not order.random:
        candidates.append(SHARE)
    best, choices, names = fitter.fit(table.select(()), False, []), [], []

    def with_feature(name: str, elsewhere: bool) -> Member:
        part, learn_share = table.select([*names, name]), SHARE in (*names, name)
        return fitter.best_of(part, learn_share, fitter.starts(part) if elsewhere else [best])

    def gain(name: str) -> float:
        return tried[name].log_marginal - best.log_marginal

    while candidates:
        tried = {name: with_feature(name, elsewhere=False) for name in candidates}
        name = max(tried, key=gain)
        for again in [name] if gain(name) >= settings.min_log_bayes_factor else candidates:
            other = with_feature(again, elsewhere=True)
            tried[again] = max(tried[again], other, key=lambda member: member.log_marginal)
        name = max(tried, key=gain)
        if gain(name) < settings.min_log_bayes_factor:
            return best, [*choices, *(Choice(other, gain(other), False) for other in tried)]
        choices.append(Choice(name, gain(name), True))
        names, best = [*names, name], tried[name]
        candidates.remove(name)
    return best, choices


def refitter(fitter: Fitter, member: Member) -> Callable[[VoteTable], Member]:
    """A function that fits the features of ``member`` to other votes of the same design."""
    learn_share = member.prior.learn_share
    population = expected_population(member.names, fitter.free_means, fitter.settings)
    prior = replace(fitter.prior, learn_share=learn_share)

    def refit(table: VoteTable) -> Member:
        return fit_member(table, prior, population, share_start(table, prior.gold), fitter.settings)

    return refit
