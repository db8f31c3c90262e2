"""What is reported: posteriors and reliabilities, with what votes do not tell of shared errors and of up and down."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rpo.em.label_model.anchors import Verdict
from nemo_rpo.em.label_model.coded_votes import VoteTable
from nemo_rpo.em.label_model.coefficients import logits
from nemo_rpo.em.label_model.member import Member
from nemo_rpo.em.label_model.shared_errors.dependence import Dependence
from nemo_rpo.em.label_model.shared_errors.exchangeable import ExchangeableVotes, agreement_bounds
from nemo_rpo.em.label_model.shared_errors.matched import Matched

MODEL, MAJORITY, ANCHORS = "label model", "majority", "anchor-weighted vote"


def tempered(member: Member, matched: Matched | None) -> Tensor:
    """Posteriors with the votes' evidence divided by the temperature; the side of ½ does not change."""
    if matched is None:
        return member.believed
    prior = member.prior.believed
    evidence = (torch.logit(member.believed, eps=1e-12) - prior) / matched.temperature
    return torch.where(member.prior.gold != 0, member.w, torch.sigmoid(prior + evidence))


def majority_posteriors(crowd: ExchangeableVotes, gold: Tensor, dependence: Dependence) -> Tensor:
    """The majority's posteriors. Where a group that errs together may pass for the truth they are half as far from ½:
    errors that all share leave no trace in the votes, so what votes agree on is as likely error as truth."""
    w = 0.5 + 0.5 * (crowd.w - 0.5) if dependence.outweighs else crowd.w
    return torch.where(gold != 0, (gold > 0).double(), w)


def reliabilities(
    table: VoteTable,
    member: Member,
    crowd: ExchangeableVotes,
    dependence: Dependence,
    matched: Matched | None,
    recommended: str,
    verdict: Verdict | None,
) -> tuple[Tensor, Tensor]:
    """P(label right) over an annotator's own votes, and its 95 % interval [K, 2].

    Where errors hang together the interval spans what the model says, its errors stretched, and what agreement with a
    majority of unknown accuracy allows. Where that is much, or the majority is reported, its accuracy may be
    as low as ½.
    """
    a, b = logits(table, member.theta)
    first = torch.sigmoid(member.prior.of_columns)[table.pair]
    right = first * torch.sigmoid(a + b) + (1 - first) * torch.sigmoid(a - b)
    cast = table.per_annotator(torch.ones_like(right))
    eta = torch.where(cast > 0, table.per_annotator(right) / cast.clamp(min=1), torch.sigmoid(member.theta[:, 0]))
    error = (1.0 if matched is None else matched.stretch) * member.errors[:, 0]
    interval = torch.sigmoid(torch.logit(eta, eps=1e-9).unsqueeze(-1) + 1.96 * torch.stack((-error, error), -1))
    low, high = crowd.accuracy[1:]
    if verdict is not None:
        low, high = verdict.judged[MAJORITY].low, verdict.judged[MAJORITY].high
    elif recommended == MAJORITY or dependence.wide:
        # Errors that all share leave no trace in the votes: a majority may be little better than a coin.
        low = 0.5
    if recommended == MAJORITY:
        middle, lower, upper = agreement_bounds(table, crowd, low, high)
        return middle, torch.stack((lower, upper), -1)
    if dependence.found and recommended == MODEL:
        _, lower, upper = agreement_bounds(table, crowd, low, high)
        spans = torch.stack((torch.minimum(interval[:, 0], lower), torch.maximum(interval[:, 1], upper)), -1)
        interval = torch.where((cast > 0).unsqueeze(-1), spans, interval)
    return eta, interval


def mixed_with_mirror(
    w: Tensor, interval: Tensor, right_way_up: float, gold: Tensor, mirror: bool
) -> tuple[Tensor, Tensor]:
    """Posteriors mixed with those of the world turned round, anchors left alone; intervals that hold either way."""
    mixed = torch.where(gold != 0, w, right_way_up * w + (1 - right_way_up) * (1 - w))
    if not mirror:
        return mixed, interval
    low, high = interval.unbind(-1)
    return mixed, torch.stack((torch.minimum(low, 1 - high), torch.maximum(high, 1 - low)), -1)
