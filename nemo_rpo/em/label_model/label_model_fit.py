"""The label model of a crowd: whom to believe, how much, and when not to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.guards import Warned
from nemo_rpo.em.label_model.anchors import Verdict, judge
from nemo_rpo.em.label_model.choose import (
    Choice,
    Fitter,
    OrderShown,
    choose_member,
    columns_of_pairs,
    free_means,
    order_shown,
    refitter,
)
from nemo_rpo.em.label_model.coded_votes import SKILL, SLOT, FlatVotes, VoteFeatures, VoteTable, vote_table
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.label_model_warnings import (
    errors_together,
    nobody_heard,
    order_not_random,
    worse_than_a_coin,
)
from nemo_rpo.em.label_model.member import Member, PairPrior
from nemo_rpo.em.label_model.reported import (
    ANCHORS,
    MAJORITY,
    MODEL,
    majority_posteriors,
    mixed_with_mirror,
    reliabilities,
    tempered,
)
from nemo_rpo.em.label_model.shared_errors.dependence import Dependence, judge_dependence
from nemo_rpo.em.label_model.shared_errors.exchangeable import ExchangeableVotes, exchangeable_votes
from nemo_rpo.em.label_model.shared_errors.families import discounted, families_found
from nemo_rpo.em.label_model.shared_errors.matched import Matched, match_crowds
from nemo_rpo.em.votes import Votes
from nemo_rpo.errors import DataError


@dataclass(frozen=True)
class LabelModelFit:
    """What :func:`fit_label_model` found.

    Attributes:
        w: float64 [P], probability that chosen is better by the ``recommended`` estimate; anchors at 0 or 1.
        estimates: the same by every estimate, by name.
        recommended: which of them ``w`` is.
        eta: float64 [K], P(label right) of each annotator over the pairs that they voted on.
        eta_interval: float64 [K, 2], 95 % of it.
        skill, skill_error: float64 [K], a_k (logit) and its standard error.
        leaning: by feature, (c_k, standard error), float64 [K] each; skill features stand here too, as (u_k, error).
        member: the chosen member, with the population's means and variances.
        choices: features that were tried, with their log Bayes factors.
        order: balance of the order shown; None without a ``slot``.
        dependence: of annotators' errors.
        matched: what simulated crowds of the same dependence needed; None where none was found.
        families: groups found whose errors hang together, as annotator indices; named where dependence was found.
        family_correlation: of the declared families, float64 [F]; None without.
        verdict: of the anchors; None with too few.
        warnings: most serious first.
    """

    w: Tensor
    estimates: dict[str, Tensor]
    recommended: str
    eta: Tensor
    eta_interval: Tensor
    skill: Tensor
    skill_error: Tensor
    leaning: dict[str, tuple[Tensor, Tensor]]
    member: Member
    choices: list[Choice]
    order: OrderShown | None
    dependence: Dependence
    matched: Matched | None
    families: list[list[int]]
    family_correlation: Tensor | None
    verdict: Verdict | None
    warnings: list[Warned]

    def reasons(self) -> list[str]:
        """One sentence for every feature that was tried."""
        word = {True: "taken", False: "left out"}
        return [f"{name}: {word[taken]} (log Bayes factor {factor:+.1f})" for name, factor, taken in self.choices]


@torch.no_grad()
def fit_label_model(
    votes: Votes | FlatVotes,
    num_annotators: int,
    features: VoteFeatures | None = None,
    gold: Tensor | None = None,
    families: Tensor | None = None,
    margin: Tensor | None = None,
    settings: LabelModelSettings | None = None,
) -> LabelModelFit:
    """Fits, chooses and judges the label model of a crowd; on the CPU.

    1. The members of the family, from one coin an annotator up, are fitted by EM; features enter while the marginal
       likelihood asks for them (:mod:`nemo_rpo.em.label_model.choose`).
    2. Anchors count as evidence, and judge by cross-fitting (:mod:`nemo_rpo.em.label_model.anchors`).
    3. The dependence of errors is measured against simulated crowds. Where it is found, evidence is discounted and
       intervals are widened by what simulated crowds of the same dependence need; where a group that errs together may
       pass for the truth, the majority is reported instead, and said to be
       (:mod:`nemo_rpo.em.label_model.shared_errors`).
    4. Where many annotators come out below ½ and there are no anchors, the world may be upside down: the posteriors are
       mixed with their mirror image.

    Args:
        votes: labels [P, V], or flat [M].
        num_annotators: K.
        features: what is known of each vote.
        gold: [P], +1 chosen is better, -1 rejected is, 0 not known.
        families: int64 [K], declared family of each annotator, -1 for none. Their votes on one pair count as
            m / (1 + (m-1) ρ) votes, ρ fitted.
        margin: [P], prior log-odds that chosen is better (a policy's Δ/τ); None: 0.
        settings: see :class:`LabelModelSettings`.

    Raises:
        DataError: columns whose shapes do not fit, or no signed vote at all.
    """
    settings = settings or LabelModelSettings()
    problem, correlation = _prepare(votes, num_annotators, features, gold, families, margin, settings)
    table, prior, fitter = problem.table, problem.fitter.prior, problem.fitter
    member, choices = _choose(table, fitter, problem.order or OrderShown(math.nan, True), settings)
    chosen = table.select(member.names)
    dependence, matched = _dependence(chosen, fitter, member, settings)
    crowd = exchangeable_votes(table)
    estimates = {MODEL: tempered(member, matched), MAJORITY: majority_posteriors(crowd, prior.gold, dependence)}
    verdict, recommended = None, MAJORITY if dependence.outweighs else MODEL
    if problem.anchors >= settings.min_anchors:
        estimates[ANCHORS] = fitter.from_anchors(chosen).w
        verdict = _judge(chosen, fitter, member, crowd.w, dependence)
        recommended = verdict.best
    if recommended == ANCHORS:
        member = fitter.from_anchors(chosen)
    eta, interval = reliabilities(chosen, member, crowd, dependence, matched, recommended, verdict)
    w = estimates[recommended]
    turned = worse_than_a_coin(chosen, member, problem.anchors, settings) if recommended == MODEL else None
    if turned is not None:
        w, interval = mixed_with_mirror(w, interval, turned[0], prior.gold, mirror=turned[1].guard == "upside_down")
    groups = families_found(table, crowd.w) if dependence.apart else []
    leaning = {n: (member.theta[:, j], member.errors[:, j]) for j, n in enumerate(member.names) if n != SKILL}
    return LabelModelFit(
        w, estimates, recommended, eta, interval, member.theta[:, 0], member.errors[:, 0], leaning, member, choices,
        problem.order, dependence, matched, groups, correlation, verdict,
        _warnings(chosen, turned, verdict, dependence, groups, recommended, crowd, member, problem.order),
    )  # fmt: skip


class _Problem(NamedTuple):
    """The votes with all features, families discounted; their order; how many anchors; what fits members to them."""

    table: VoteTable
    order: OrderShown | None
    anchors: int
    fitter: Fitter


def _prepare(
    votes: Votes | FlatVotes,
    num_annotators: int,
    features: VoteFeatures | None,
    gold: Tensor | None,
    families: Tensor | None,
    margin: Tensor | None,
    settings: LabelModelSettings,
) -> tuple[_Problem, Tensor | None]:
    table = vote_table(votes, num_annotators, features)
    _check(table, gold, families, margin)
    zero = torch.zeros(table.num_pairs, dtype=torch.float64)
    gold = zero if gold is None else gold.double()
    columns = columns_of_pairs(table)
    order = order_shown(columns[SLOT], settings) if SLOT in columns else None
    anchors = int((gold != 0).sum())
    prior = PairPrior(zero if margin is None else margin.double(), gold, columns)
    fitter = Fitter(prior, free_means(table, order, anchors, settings), settings)
    correlation = None
    if families is not None and (families >= 0).any():
        table, correlation = discounted(table, families, fitter)
    return _Problem(table, order, anchors, fitter), correlation


def _check(table: VoteTable, gold: Tensor | None, families: Tensor | None, margin: Tensor | None) -> None:
    if not len(table.pair):
        raise DataError("there is no signed vote to fit a label model to")
    for name, values, length in (
        ("gold", gold, table.num_pairs),
        ("margin", margin, table.num_pairs),
        ("families", families, table.num_annotators),
    ):
        if values is not None and values.shape != (length,):
            raise DataError(f"{name} has shape {list(values.shape)}; expected [{length}]")


def _choose(
    table: VoteTable, fitter: Fitter, order: OrderShown, settings: LabelModelSettings
) -> tuple[Member, list[Choice]]:
    small, pairs = table.sample(settings.search_votes)
    if small is table:
        return choose_member(table, fitter, order, settings)
    found, choices = choose_member(small, fitter.of(pairs), order, settings)
    return fitter.fit(table.select(found.names), found.prior.shares, []), choices


def _dependence(
    chosen: VoteTable, fitter: Fitter, member: Member, settings: LabelModelSettings
) -> tuple[Dependence, Matched | None]:
    small, pairs = chosen.sample(settings.bootstrap_votes)
    refit = refitter(fitter.of(pairs), member)
    if small is not chosen:
        member = refit(small)
    found = judge_dependence(small, member, refit, settings)
    if not found.found:
        return found, None
    return found, match_crowds(small, member, found.observed.correlation, refit, settings.match_tolerance)


def _judge(table: VoteTable, fitter: Fitter, member: Member, majority: Tensor, dependence: Dependence) -> Verdict:
    def estimates(gold: Tensor) -> dict[str, Tensor]:
        part = fitter.with_gold(gold)
        model = part.fit(table, member.prior.shares, []).believed
        return {MODEL: model, MAJORITY: majority, ANCHORS: part.from_anchors(table).w}

    return judge(fitter.prior.gold, estimates, fitter.settings.folds, MODEL, dependence.outweighs)


def _warnings(
    table: VoteTable,
    turned: tuple[float, Warned] | None,
    verdict: Verdict | None,
    dependence: Dependence,
    groups: list[list[int]],
    recommended: str,
    crowd: ExchangeableVotes,
    member: Member,
    order: OrderShown | None,
) -> list[Warned]:
    """Most serious first."""
    instead = "" if recommended == MODEL else recommended
    found = [
        nobody_heard(table, member) if verdict is None else None,
        None if turned is None else turned[1],
        Warned("anchors_disagree", verdict.parted) if verdict is not None and verdict.parted else None,
        errors_together(dependence, groups, instead, crowd.accuracy),
    ]
    if not member.converged:
        found.append(Warned("not_converged", f"the EM still moved after {member.iterations} iterations"))
    if order is not None and not order.random and not math.isnan(order.first):  # known of some signed vote
        found.append(order_not_random(order))
    return [warned for warned in found if warned is not None]
