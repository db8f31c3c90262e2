"""The label model of a crowd: whom to believe, how much, and when not to."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nemo_rpo.em.guards import Warned
from nemo_rpo.em.label_model.anchors import Verdict, judge
from nemo_rpo.em.label_model.choose import (
    Choice,
    Fitter,
    OrderShown,
    choose_member,
    free_means,
    order_shown,
    refitter,
    slot_of_pairs,
)
from nemo_rpo.em.label_model.coded_votes import SKILL, SLOT, FlatVotes, VoteFeatures, VoteTable, vote_table
from nemo_rpo.em.label_model.coefficients import logits
from nemo_rpo.em.label_model.dependence import (
    Dependence,
    families_found,
    family_correlation,
    family_weights,
    judge_dependence,
)
from nemo_rpo.em.label_model.exchangeable import ExchangeableVotes, agreement_bounds, exchangeable_votes
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.matched import Matched, match_crowds
from nemo_rpo.em.label_model.member import Member, PairPrior
from nemo_rpo.em.votes import Votes
from nemo_rpo.errors import DataError

MODEL, MAJORITY, ANCHORS = "label model", "majority", "anchor-weighted vote"


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
    3. The dependence of errors is measured against simulated crowds (:mod:`nemo_rpo.em.label_model.dependence`). Where
       it is found, evidence is discounted and intervals are widened by what simulated crowds of the same dependence
       need (:mod:`nemo_rpo.em.label_model.matched`); where a group that errs together may pass for the truth, the
       majority is reported instead, and said to be.
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
    table = vote_table(votes, num_annotators, features)
    _check(table, gold, families, margin)
    zero = torch.zeros(table.num_pairs, dtype=torch.float64)
    gold = zero if gold is None else gold.double()
    slot = slot_of_pairs(table)
    order = order_shown(slot, settings) if SLOT in table.names else None
    prior = PairPrior(zero if margin is None else margin.double(), gold, slot)
    anchors = int((gold != 0).sum())
    free = free_means(table, order, anchors, settings)
    correlation = None
    if families is not None and (families >= 0).any():
        table, correlation = _discount(table, families, Fitter(prior, free, settings))
    fitter = Fitter(prior, free, settings)
    member, choices = _choose(table, fitter, order or OrderShown(math.nan, True), settings)
    chosen = table.select(member.names)
    dependence, matched = _dependence(chosen, fitter, member, settings)

    crowd = exchangeable_votes(table)
    estimates = {MODEL: _tempered(member, matched), MAJORITY: _majority(crowd, gold, dependence)}
    verdict = None
    if anchors >= settings.min_anchors:
        estimates[ANCHORS] = fitter.from_anchors(chosen).w
        verdict = _judge(chosen, prior, free, member, crowd.w, dependence, settings)
        recommended = verdict.best
    else:
        recommended = MAJORITY if dependence.outweighs else MODEL
    if recommended == ANCHORS:
        member = fitter.from_anchors(chosen)
    eta, interval = _reliabilities(chosen, member, 1.0 if matched is None else matched.stretch)
    if recommended == MAJORITY:
        # Errors that all share leave no trace in the votes: a majority may be little better than a coin.
        eta, lower, upper = agreement_bounds(table, crowd, 0.5, crowd.accuracy[2])
        interval = torch.stack((lower, upper), -1)

    groups = families_found(table, crowd.w) if dependence.apart else []
    warnings = _warnings(chosen, member, dependence, groups, verdict, recommended, crowd.accuracy)
    w = estimates[recommended]
    upside_down = _upside_down(chosen, member, anchors, settings) if recommended == MODEL else None
    if upside_down is not None:
        right_way_up, warned = upside_down
        w = torch.where(gold != 0, w, right_way_up * w + (1 - right_way_up) * (1 - w))
        mirrored = torch.stack(
            (torch.minimum(interval[:, 0], 1 - interval[:, 1]), torch.maximum(interval[:, 1], 1 - interval[:, 0])), -1
        )
        interval = mirrored
        warnings.insert(0, warned)
    if order is not None and not order.random:
        warnings.append(_order_warning(order))
    leaning = {n: (member.theta[:, j], member.errors[:, j]) for j, n in enumerate(member.names) if n != SKILL}
    return LabelModelFit(
        w, estimates, recommended, eta, interval, member.theta[:, 0], member.errors[:, 0], leaning, member, choices,
        order, dependence, matched, groups, correlation, verdict, warnings,
    )  # fmt: skip


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
    return fitter.fit(table.select(found.names), found.prior.learn_share, []), choices


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


def _discount(table: VoteTable, families: Tensor, fitter: Fitter) -> tuple[VoteTable, Tensor]:
    """Weights of declared families. The search for ρ starts at 1, one vote a family: from 0 a family that outvotes the
    others would pass for the truth, and its errors for none."""
    correlation = torch.ones(int(families.max()) + 1, dtype=torch.float64)
    coin = table.select(())
    for _ in range(4):
        weighted = coin._replace(weight=family_weights(table, families, correlation))
        correlation = family_correlation(weighted, fitter.fit(weighted, False, []), families)
    return table._replace(weight=family_weights(table, families, correlation)), correlation


def _tempered(member: Member, matched: Matched | None) -> Tensor:
    """Posteriors with the votes' evidence divided by the temperature; the side of ½ does not change."""
    if matched is None:
        return member.w
    prior = member.prior.margin + member.prior.share * member.prior.slot
    evidence = (torch.logit(member.w, eps=1e-12) - prior) / matched.temperature
    return torch.where(member.prior.gold != 0, member.w, torch.sigmoid(prior + evidence))


def _majority(crowd: ExchangeableVotes, gold: Tensor, dependence: Dependence) -> Tensor:
    """The majority's posteriors. Where a group that errs together may pass for the truth they are half as far from ½:
    errors that all share leave no trace in the votes, so what votes agree on is as likely error as truth."""
    w = 0.5 + 0.5 * (crowd.w - 0.5) if dependence.outweighs else crowd.w
    return torch.where(gold != 0, (gold > 0).double(), w)


def _reliabilities(table: VoteTable, member: Member, stretch: float) -> tuple[Tensor, Tensor]:
    """P(label right) over an annotator's own votes, and its 95 % interval [K, 2], errors times ``stretch``."""
    a, b = logits(table, member.theta)
    first = torch.sigmoid(member.prior.share * member.prior.slot)[table.pair]
    right = first * torch.sigmoid(a + b) + (1 - first) * torch.sigmoid(a - b)
    cast = table.per_annotator(torch.ones_like(right))
    eta = torch.where(cast > 0, table.per_annotator(right) / cast.clamp(min=1), torch.sigmoid(member.theta[:, 0]))
    error = stretch * member.errors[:, 0]
    ends = torch.logit(eta, eps=1e-9).unsqueeze(-1) + 1.96 * torch.stack((-error, error), -1)
    return eta, torch.sigmoid(ends)


def _judge(
    table: VoteTable,
    prior: PairPrior,
    free: list[str],
    member: Member,
    majority: Tensor,
    dependence: Dependence,
    settings: LabelModelSettings,
) -> Verdict:
    def estimates(gold: Tensor) -> dict[str, Tensor]:
        fitter = Fitter(replace(prior, gold=gold), free, settings)
        model = fitter.fit(table, member.prior.learn_share, []).w
        return {MODEL: model, MAJORITY: majority, ANCHORS: fitter.from_anchors(table).w}

    return judge(prior.gold, estimates, settings.folds, MODEL, dependence.outweighs)


def _upside_down(
    table: VoteTable, member: Member, anchors: int, settings: LabelModelSettings
) -> tuple[float, Warned] | None:
    """Probability that the world is the right way up, and the warning, where annotators below ½ give many labels.

    All truths and all skills turned round fit the votes as well; only what is expected of crowds' mean skill tells the
    two apart. Its log-odds under N(m, 1), wider than the settings' own, are 2 m μ.
    """
    below = (member.theta[:, 0] < 0)[table.annotator].double().mean().item()
    if below < settings.max_below_half or anchors >= settings.min_anchors:
        return None
    probability = 1 / (1 + math.exp(-2 * settings.skill_mean * max(0.0, member.population.mean[0].item())))
    return probability, Warned(
        "upside_down",
        f"annotators below one half gave {below:.0%} of the labels; everything turned round fits as well, and votes "
        "alone cannot tell which camp is right. Posteriors are drawn to one half; give some pairs their gold label",
    )


def _order_warning(order: OrderShown) -> Warned:
    return Warned(
        "order_not_random",
        f"the chosen response was shown first in {order.first:.0%} of the pairs: the order was not random, so the mean "
        "leaning to a slot cannot be told from the truth. It is held at 0, and the share of truths is fitted instead",
    )


def _warnings(
    table: VoteTable,
    member: Member,
    dependence: Dependence,
    groups: list[list[int]],
    verdict: Verdict | None,
    recommended: str,
    accuracy: tuple[float, float, float],
) -> list[Warned]:
    found = []
    if verdict is not None and verdict.parted:
        found.append(Warned("anchors_disagree", verdict.parted))
    observed, expected = dependence.observed, dependence.expected
    measured = (
        f"agreement of annotators spreads {observed.spread:.2f} (independent errors: {expected.spread:.2f}), errors on "
        f"one pair correlate by {observed.correlation:.3f} ({expected.correlation:.3f})"
    )
    named = "; families: " + ", ".join(str(group) for group in groups[:3]) if groups else ""
    if dependence.outweighs:
        instead = (
            f"the majority is reported instead, right on about {accuracy[0]:.0%} of the pairs ({accuracy[1]:.0%} to "
            f"{accuracy[2]:.0%})"
            if recommended == MAJORITY
            else f"on held-out anchors {recommended} holds"
        )
        found.append(
            Warned("shared_errors", f"{measured}: a group that errs together may pass for the truth; {instead}{named}")
        )
    elif dependence.found:
        discounted = "evidence is discounted and intervals are widened"
        found.append(
            Warned("dependent_errors", f"{measured}: annotators do not err independently; {discounted}{named}")
        )
    if not member.converged:
        found.append(Warned("not_converged", f"the EM still moved after {member.iterations} iterations"))
    return found
