"""Which features a crowd needs: none unless the marginal likelihood asks for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

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


def columns_of_pairs(table: VoteTable) -> dict[str, Tensor]:
    """The leanings of each pair by name, means over its votes, float64 [P]; 0 where no vote has one."""
    found = {}
    for name, column in zip(table.names[table.num_skill :], table.design.T[table.num_skill :].double(), strict=True):
        found[name] = table.per_pair(column) / table.per_pair((column != 0).double()).clamp(min=1)
    return found


def shares_beside(names: Sequence[str], num_skill: int) -> list[str]:
    """Columns whose share is fitted because a leaning to them is: all but the slot, which :data:`SHARE` is tried for.

    >>> shares_beside(["skill", "topic:a", "slot", "length"], 2)
    ['length']
    """
    return [name for name in names[num_skill:] if name != SLOT]


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

    def fit(self, table: VoteTable, shares: Iterable[str], starts: list[Tensor]) -> Member:
        """The best of the fits from several ``starts`` (posteriors [P]) and those of :meth:`starts`, by marginal
        likelihood; ``shares`` are those that are fitted.
        """
        return self.best_of(table, shares, [*self.starts(table), *starts])

    def starts(self, table: VoteTable) -> list[Tensor]:
        """Posteriors [P] that a fit may start from: the shares of votes.

        With anchors, posteriors of a fit to the anchored pairs alone are a further start: where a crowd is wrong more
        often than right, the shares of votes start the EM on the wrong side.
        """
        found = [share_start(table, self.prior.gold)]
        if (self.prior.gold != 0).any():
            found.append(self.from_anchors(table).w)
        return found

    def best_of(self, table: VoteTable, shares: Iterable[str], starts: Sequence[Tensor | Member]) -> Member:
        """The best of the fits from ``starts``, by marginal likelihood."""
        prior = self.prior.going_with(list(shares))
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

    A leaning to what a response is (its length; not to the slot, which is drawn) comes with the share by which the
    truth goes with it, and has to be better than that share alone: who knows the truth votes for the longer response
    where the better one tends to be longer.

    A candidate is fitted from where the model so far stands. A leaning can turn truths over, so the best candidate, and
    all where none is worth taking, are fitted from the other starts as well if they are leanings.

    Args:
        table: votes with all features at hand.
        fitter: of the members.
        order: where it is known and not random, the share of pairs whose first response is better is tried too.
        settings: ``min_log_bayes_factor``.
    """
    candidates, skills = list(table.names[1:]), table.names[1 : table.num_skill]
    if SLOT in candidates and not order.random:
        candidates.append(SHARE)
    best, choices, names = fitter.fit(table.select(()), (), []), [], []
    contents = shares_beside(table.names, table.num_skill)

    def shares(taken: Sequence[str]) -> list[str]:
        return [SLOT] * (SHARE in taken) + [name for name in contents if name in taken]

    def with_feature(name: str, elsewhere: bool) -> Member:
        part = table.select([*names, name])
        starts: list[Tensor | Member] = [*fitter.starts(part)] if elsewhere else [best]
        if name in contents:
            # From a truth that goes with what many follow, a share would never come back.
            starts.append(fitter.best_of(part, shares(names), starts))
        return fitter.best_of(part, shares([*names, name]), starts)

    def without_leaning(name: str) -> float:
        """What is to be beaten: the model so far, and of a leaning also that with the share alone."""
        if name not in contents:
            return best.log_marginal
        alone = fitter.best_of(table.select(names), shares([*names, name]), [best])
        return max(best.log_marginal, alone.log_marginal)

    def gain(name: str) -> float:
        return tried[name].log_marginal - beaten[name]

    while candidates:
        beaten = {name: without_leaning(name) for name in candidates}
        tried = {name: with_feature(name, elsewhere=False) for name in candidates}
        name = max(tried, key=gain)
        again_from_afar = [name] if gain(name) >= settings.min_log_bayes_factor else candidates
        for again in (other for other in again_from_afar if other not in skills):
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
    population = expected_population(member.names, fitter.free_means, fitter.settings)
    prior = fitter.prior.going_with(list(member.prior.shares))

    def refit(table: VoteTable) -> Member:
        return fit_member(table, prior, population, share_start(table, prior.gold), fitter.settings)

    return refit
