"""How many tastes does a crowd have? k groups with truths of their own against one truth, by held-out votes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.guards import Warned
from nemo_rpo.em.label_model.choose import Fitter, OrderShown, choose_member, columns_of_pairs, free_means, order_shown
from nemo_rpo.em.label_model.coded_votes import SLOT, FlatVotes, VoteFeatures, VoteTable, vote_table
from nemo_rpo.em.label_model.coefficients import Population
from nemo_rpo.em.label_model.member import PairPrior, expected_population
from nemo_rpo.em.taste.groups import Groups, fit_groups, predict
from nemo_rpo.em.taste.starts import divided
from nemo_rpo.em.taste.taste_settings import TasteSettings
from nemo_rpo.em.votes import Votes
from nemo_rpo.errors import DataError


class GroupsTried(NamedTuple):
    """One number of groups.

    Attributes:
        groups: k.
        log_likelihood: nats a held-out vote.
        gain: nats over all held-out votes, above the best smaller k.
        error: standard error of the gain, over annotators.
    """

    groups: int
    log_likelihood: float
    gain: float
    error: float


@dataclass(frozen=True)
class TasteFit:
    """What :func:`fit_tastes` found.

    Attributes:
        groups: k, 1 where there is one taste or where it cannot be told.
        membership: float64 [K, k], P(annotator in group | votes), the largest group first.
        share: float64 [k], share of annotators.
        w: float64 [P, k], P(chosen is better) for a group.
        agree: float64 [k, k], share of the pairs on which two groups' truths agree.
        eta: float64 [K], P(label right), measured against the truth of the own group.
        tried: held-out log-likelihood of every number of groups tried; empty where refused.
        refused: why it cannot be told; empty where it can.
        warnings: what to know before using it.
    """

    groups: int
    membership: Tensor
    share: Tensor
    w: Tensor
    agree: Tensor
    eta: Tensor
    tried: list[GroupsTried]
    refused: str
    warnings: list[Warned]

    def reasons(self) -> list[str]:
        """One sentence for every number of groups tried, or why none was."""
        if self.refused:
            return [self.refused]
        return [
            f"{t.groups} group{'s' * (t.groups > 1)}: {t.log_likelihood:.4f} nats a held-out vote"
            + (f", gain {t.gain:+.1f} ± {t.error:.1f} nats over all" if t.groups > 1 else "")
            for t in self.tried
        ]


@torch.no_grad()
def fit_tastes(
    votes: Votes | FlatVotes,
    num_annotators: int,
    max_groups: int = 3,
    features: VoteFeatures | None = None,
    settings: TasteSettings | None = None,
    seed: int = 0,
) -> TasteFit:
    """Groups of annotators with truths of their own; on the CPU.

    A further group has to predict held-out votes better, by ``min_gain`` nats and ``gain_errors`` standard errors.
    Differences of care, adversaries and the leanings given as ``features`` belong to one truth, and make no group.
    Tastes that are each other's opposite on every pair are one truth and annotators below ½: votes cannot tell.

    Args:
        votes: labels [P, V], or flat [M].
        num_annotators: K.
        max_groups: largest k tried.
        features: what is known of each vote; those that one truth needs (by evidence) are used with every k.
        settings: see :class:`TasteSettings`.
        seed: of the folds and random starts.

    Raises:
        DataError: no signed vote, or features whose shapes do not fit.
    """
    settings = settings or TasteSettings()
    table = vote_table(votes, num_annotators, features)
    if not len(table.pair):
        raise DataError("there is no signed vote to find tastes in")
    table = _with_features_of_one_truth(table, settings)
    generator = torch.Generator().manual_seed(seed)
    refused = why_not(table, settings)
    tried: list[GroupsTried] = []
    groups = 1
    if not refused:
        small, _ = table.sample(settings.search_votes)
        most = min(max_groups, _placed(small, settings) // settings.min_annotators)
        tried = held_out(small, max(1, most), settings, generator)
        groups = chosen_groups(tried, settings)
    return _fit(table, groups, tried, refused, settings, generator)


def why_not(table: VoteTable, settings: TasteSettings) -> str:
    """Why votes cannot tell tastes from noise; empty where they can.

    Two annotators are compared on pairs that both voted on. Where no pair has two annotators, or annotators have one or
    two such labels each, any division of them fits as well as any other.
    """
    shared = _labels_on_shared_pairs(table)
    if not (shared > 0).any():
        return (
            "no pair was labelled by two annotators, so taste cannot be told from noise: have some pairs labelled twice"
        )
    placed, needed = _placed(table, settings), 2 * settings.min_annotators
    if placed < needed:
        median = shared[table.per_annotator(table.counted) > 0].median().item()
        return (
            f"{placed} annotators have {settings.min_labels} labels or more on pairs that others labelled too (half "
            f"of all have {median:.0f} or fewer), {needed} are needed: with so few labels an annotator, taste cannot "
            "be told from noise"
        )
    return ""


def held_out(
    table: VoteTable, max_groups: int, settings: TasteSettings, generator: torch.Generator
) -> list[GroupsTried]:
    """Cross-validated log-likelihood of k = 1, 2, … groups; stops at the first that brings nothing."""
    fold = torch.randint(settings.folds, (len(table.pair),), generator=generator)
    parts = [(table.where(fold != f), table.where(fold == f)) for f in range(settings.folds)]
    fits = [fit_groups(train, _one_group(table), _population(table, settings), settings) for train, _ in parts]
    best = _predicted(parts, fits)
    tried = [GroupsTried(1, best.log.mean().item(), 0.0, 0.0)]
    for k in range(2, max_groups + 1):
        fits = [_divide(train, fit, settings, generator) for (train, _), fit in zip(parts, fits, strict=True)]
        found = _predicted(parts, fits)
        by_annotator = torch.zeros(table.num_annotators, dtype=torch.float64)
        by_annotator.index_add_(0, found.annotator, found.log - best.log)
        by_annotator = by_annotator[table.per_annotator(table.counted) > 0]
        error = math.sqrt(len(by_annotator)) * by_annotator.std().item()
        tried.append(GroupsTried(k, found.log.mean().item(), by_annotator.sum().item(), error))
        if not _gains(tried[-1], settings):
            break
        best = found
    return tried


def chosen_groups(tried: list[GroupsTried], settings: TasteSettings) -> int:
    """The largest k whose gain over the one before is beyond chance."""
    return max((t.groups for t in tried if t.groups == 1 or _gains(t, settings)), default=1)


class _HeldOut(NamedTuple):
    annotator: Tensor
    log: Tensor


def _predicted(parts: list[tuple[VoteTable, VoteTable]], fits: list[Groups]) -> _HeldOut:
    logs = [predict(test, fit) for (_, test), fit in zip(parts, fits, strict=True)]
    return _HeldOut(torch.cat([test.annotator for _, test in parts]), torch.cat(logs))


def _gains(tried: GroupsTried, settings: TasteSettings) -> bool:
    return tried.gain > max(settings.min_gain, settings.gain_errors * tried.error)


def _divide(table: VoteTable, groups: Groups, settings: TasteSettings, generator: torch.Generator) -> Groups:
    """The best of the fits from several divisions of every group; short fits show which start is worth a whole one."""
    population = _population(table, settings)
    short = replace(settings, iterations=settings.screen)
    screened = [
        fit_groups(table, start, population, short)
        for group in range(groups.membership.shape[1])
        for start in divided(table, groups, group, generator)
    ]
    best = sorted(screened, key=lambda fit: -fit.fits)[: settings.kept]
    return max((fit_groups(table, fit.membership, population, settings) for fit in best), key=lambda fit: fit.fits)


def _fit(
    table: VoteTable,
    k: int,
    tried: list[GroupsTried],
    refused: str,
    settings: TasteSettings,
    generator: torch.Generator,
) -> TasteFit:
    fit = fit_groups(table, _one_group(table), _population(table, settings), settings)
    for _ in range(k - 1):
        fit = _divide(table, fit, settings, generator)
    order = fit.share.argsort(descending=True)
    w, membership = fit.w[:, order], fit.membership[:, order]
    voted = w[table.per_pair(table.counted) > 0]
    agree = torch.stack(
        [(w_g.unsqueeze(-1) * voted + (1 - w_g).unsqueeze(-1) * (1 - voted)).mean(0) for w_g in voted.T]
    )
    agree.fill_diagonal_(1.0)
    warnings = [Warned("taste_cannot_be_told", refused)] if refused else []
    if k > 1:
        warnings.append(
            Warned(
                "groups_of_taste",
                f"annotators fall into {k} groups ({', '.join(f'{share:.0%}' for share in fit.share[order])}) with "
                "truths of their own: one label a pair for all of them fits nobody. Annotators who err together look "
                "the same in votes; gold labels tell which",
            )
        )
    eta = torch.sigmoid(fit.theta[:, 0])
    return TasteFit(k, membership, fit.share[order], w, agree, eta, tried, refused, warnings)


def _with_features_of_one_truth(table: VoteTable, settings: TasteSettings) -> VoteTable:
    if table.design.shape[1] == 1:
        return table
    small, _ = table.sample(settings.search_votes)
    columns = columns_of_pairs(small)
    order = order_shown(columns[SLOT], settings.label_model) if SLOT in columns else OrderShown(math.nan, True)
    prior = replace(PairPrior.flat(small.num_pairs), columns=columns)
    free = free_means(small, order, 0, settings.label_model)
    member, _ = choose_member(small, Fitter(prior, free, settings.label_model), order, settings.label_model)
    return table.select(member.names)


def _population(table: VoteTable, settings: TasteSettings) -> Population:
    order = OrderShown(math.nan, False)
    if SLOT in table.names:
        order = order_shown(columns_of_pairs(table)[SLOT], settings.label_model)
    return expected_population(table.names, free_means(table, order, 0, settings.label_model), settings.label_model)


def _one_group(table: VoteTable) -> Tensor:
    return torch.ones(table.num_annotators, 1, dtype=torch.float64)


def _labels_on_shared_pairs(table: VoteTable) -> Tensor:
    shared = torch.bincount(table.pair, minlength=table.num_pairs)[table.pair] > 1
    return table.per_annotator(shared)


def _placed(table: VoteTable, settings: TasteSettings) -> int:
    return int((_labels_on_shared_pairs(table) >= settings.min_labels).sum())
