"""Do annotators err together? Agreement of every two of them, observed against what independent errors would give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import VoteTable
from nemo_rpo.em.label_model.coefficients import logits
from nemo_rpo.em.label_model.label_model_settings import LabelModelSettings
from nemo_rpo.em.label_model.member import Member

# Votes of two annotators on one pair that are compared; of more pairs than these a sample.
_AT_MOST = 1 << 22


class Agreement(NamedTuple):
    """Of every two annotators who share a pair, [A] each.

    Attributes:
        first, second: the annotators.
        shared: pairs that both voted on.
        agreed, expected, variance: pairs on which they agree; what the model expects, and its variance.
        correlation: of their errors given the truth: mean of r_j r_k under the posterior, r the standardised residual.
    """

    first: Tensor
    second: Tensor
    shared: Tensor
    agreed: Tensor
    expected: Tensor
    variance: Tensor
    correlation: Tensor

    @property
    def z(self) -> Tensor:
        """Standardised excess of agreement [A]."""
        return (self.agreed - self.expected) / self.variance.clamp(min=1e-9).sqrt()


def two_of_a_pair(table: VoteTable) -> tuple[Tensor, Tensor]:
    """Places (v, v') in the table of every two votes on one pair, v before v'; of a sample of pairs where too many."""
    cast = torch.bincount(table.pair, minlength=table.num_pairs)
    first = cast.cumsum(0) - cast
    twos = cast * (cast - 1) // 2
    stride = max(1, -(-int(twos.sum()) // _AT_MOST))
    left, right = [], []
    for width in torch.unique(cast[::stride]).tolist():
        places = first[::stride][cast[::stride] == width]
        one, other = torch.triu_indices(width, width, offset=1)
        left.append((places.unsqueeze(-1) + one).flatten())
        right.append((places.unsqueeze(-1) + other).flatten())
    return torch.cat(left), torch.cat(right)


def agreement(table: VoteTable, member: Member) -> Agreement:
    """Agreement under the fitted model: P(agree) = Σ_z P(z) [p p' + (1-p)(1-p')], p = P(s = +1 | z)."""
    a, b = logits(table, member.theta)
    up, down = torch.sigmoid(b + a), torch.sigmoid(b - a)
    says = table.says_chosen.double()
    prior = member.prior
    share = torch.sigmoid(prior.margin + prior.share * prior.slot)[table.pair]
    r_up, r_down = (says - up) * (up * (1 - up)).rsqrt(), (says - down) * (down * (1 - down)).rsqrt()
    w = member.w[table.pair]
    v, u = two_of_a_pair(table)
    expected = share[v] * (up[v] * up[u] + (1 - up[v]) * (1 - up[u]))
    expected += (1 - share[v]) * (down[v] * down[u] + (1 - down[v]) * (1 - down[u]))
    together = w[v] * r_up[v] * r_up[u] + (1 - w[v]) * r_down[v] * r_down[u]
    one, other = table.annotator[v], table.annotator[u]
    key = torch.minimum(one, other) * table.num_annotators + torch.maximum(one, other)
    keys, group = torch.unique(key, return_inverse=True)
    rows = torch.stack(
        (torch.ones_like(expected), (says[v] == says[u]).double(), expected, expected * (1 - expected), together)
    )
    shared, agreed, expect, variance, correlation = torch.zeros(5, len(keys), dtype=torch.float64).index_add_(
        1, group, rows
    )
    first, second = keys // table.num_annotators, keys % table.num_annotators
    return Agreement(first, second, shared, agreed, expect, variance, correlation / shared)


def spread_of_z(found: Agreement, least: int = 5) -> float:
    """Standard deviation of z around 0 over annotators who share ``least`` pairs or more; 1 where they err apart."""
    enough = found.shared >= min(least, int(found.shared.max()))
    return found.z[enough].square().mean().sqrt().item()


class Statistic(NamedTuple):
    """Of a crowd: ``spread`` of z over annotators, and mean ``correlation`` of their errors over votes of one pair."""

    spread: float
    correlation: float


class Dependence(NamedTuple):
    """What :func:`judge_dependence` found.

    Attributes:
        observed: the statistic; nan where no two annotators share pairs.
        expected, error: its mean and standard deviation over crowds that were drawn from the fitted model.
        apart: annotators agree with some and disagree with others beyond the model.
        together: errors fall on the same pairs beyond the model.
        outweighs: both, and by enough for a group that errs together to pass for the truth.
    """

    observed: Statistic
    expected: Statistic
    error: Statistic
    apart: bool
    together: bool
    outweighs: bool

    @property
    def found(self) -> bool:
        """Whether either statistic is out of line."""
        return self.apart or self.together


def statistic(table: VoteTable, member: Member) -> Statistic:
    """:class:`Statistic` of the votes under a fitted model; nan where no two votes share a pair."""
    found = agreement(table, member)
    if not len(found.shared):
        return Statistic(float("nan"), float("nan"))
    return Statistic(spread_of_z(found), ((found.correlation * found.shared).sum() / found.shared.sum()).item())


def judge_dependence(
    table: VoteTable, member: Member, refit: Callable[[VoteTable], Member], settings: LabelModelSettings, seed: int = 0
) -> Dependence:
    """Compares the statistic with crowds that err independently: the same design, votes drawn from the fitted model.

    Every drawn crowd is fitted anew, since a fit takes up part of any spread. Costs ``settings.bootstrap`` fits.

    Args:
        table, member: votes and the model fitted to them.
        refit: fits the same features to other votes of the same design.
        settings, seed: number of crowds, levels; of the draws.
    """
    observed = statistic(table, member)
    nothing = Statistic(float("nan"), float("nan"))
    if math.isnan(observed.spread) or not settings.bootstrap:
        return Dependence(observed, nothing, nothing, False, False, False)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(settings.bootstrap):
        crowd = draw_votes(table, member, generator)
        drawn.append(statistic(crowd, refit(crowd)))
    rows = torch.tensor(drawn, dtype=torch.float64)
    expected, error = Statistic(*rows.mean(0).tolist()), Statistic(*rows.std(0).tolist())
    limit = settings.dependence_errors
    apart = observed.spread > max(expected.spread + limit * error.spread, settings.min_spread * expected.spread)
    least = max(expected.correlation + limit * error.correlation, settings.min_correlation)
    together = observed.correlation > least
    outweighs = (
        observed.spread > settings.outweighing_spread * max(1.0, expected.spread)
        and apart
        and observed.correlation > max(least, settings.outweighing_correlation)
    )
    return Dependence(observed, expected, error, apart, together, outweighs)


def draw_votes(table: VoteTable, member: Member, generator: torch.Generator) -> VoteTable:
    """Votes of the same annotators on the same pairs, truths and votes drawn from the fitted model."""
    a, b = logits(table, member.theta)
    share = torch.sigmoid(member.prior.margin + member.prior.share * member.prior.slot)
    truth = torch.rand(table.num_pairs, generator=generator, dtype=torch.float64) < share
    known = member.prior.gold != 0
    truth = torch.where(known, member.prior.gold > 0, truth)
    up = torch.where(truth[table.pair], torch.sigmoid(b + a), torch.sigmoid(b - a))
    return table._replace(says_chosen=torch.rand(len(up), generator=generator, dtype=torch.float64) < up)


def families_found(table: VoteTable, w: Tensor, least: int = 20) -> list[list[int]]:
    """Groups of annotators whose errors, taken against posteriors ``w`` [P], correlate; largest first.

    Two are linked where they share ``least`` pairs and the correlation of their disagreement with w is above .2 and
    above three standard errors; groups are the connected parts. ``w`` should be a majority's: a model's posteriors
    already believe the family that outweighs the others.
    """
    says = table.says_chosen.double()
    wrong = says * (1 - w[table.pair]) + (1 - says) * w[table.pair]
    rate = table.per_annotator(wrong) / table.per_annotator(torch.ones_like(wrong)).clamp(min=1)
    residual = (wrong - rate[table.annotator]) / (rate * (1 - rate)).clamp(min=1e-3).sqrt()[table.annotator]
    v, u = two_of_a_pair(table)
    one, other = table.annotator[v], table.annotator[u]
    key = torch.minimum(one, other) * table.num_annotators + torch.maximum(one, other)
    keys, group, shared = torch.unique(key, return_inverse=True, return_counts=True)
    total = torch.zeros(len(keys), dtype=torch.float64).index_add_(0, group, residual[v] * residual[u])
    correlation = total / shared
    linked = (shared >= least) & (correlation > 0.2) & (correlation > 3 / shared.double().sqrt())
    return _connected(
        list(
            zip(
                (keys[linked] // table.num_annotators).tolist(),
                (keys[linked] % table.num_annotators).tolist(),
                strict=True,
            )
        )
    )


def _connected(links: list[tuple[int, int]]) -> list[list[int]]:
    parent: dict[int, int] = {}

    def root(x: int) -> int:
        while parent.setdefault(x, x) != x:
            parent[x] = x = parent[parent[x]]
        return x

    for one, other in links:
        parent[root(one)] = root(other)
    groups: dict[int, list[int]] = {}
    for x in sorted(parent):
        groups.setdefault(root(x), []).append(x)
    return sorted(groups.values(), key=len, reverse=True)


def family_correlation(table: VoteTable, member: Member, family: Tensor) -> Tensor:
    """Mean correlation of errors within each declared family, float64 [F], in [0, 1]; ``family`` int64 [K], -1 none."""
    found = agreement(table, member)
    inside = (family[found.first] == family[found.second]) & (family[found.first] >= 0)
    size = int(family.max()) + 1
    sums = torch.zeros(2, size, dtype=torch.float64)
    rows = torch.stack((found.correlation * found.shared, found.shared))[:, inside]
    sums.index_add_(1, family[found.first][inside], rows)
    return (sums[0] / sums[1].clamp(min=1)).clamp(0.0, 1.0)


def family_weights(table: VoteTable, family: Tensor, correlation: Tensor) -> Tensor:
    """1 / (1 + (m-1) ρ) of each vote [M], m the votes of its family on the pair; 1 outside of families."""
    of_vote = family[table.annotator]
    inside = of_vote >= 0
    size = int(family.max()) + 1
    cell = table.pair * size + of_vote.clamp(min=0)
    _, group, members = torch.unique(cell[inside], return_inverse=True, return_counts=True)
    weight = torch.ones_like(table.weight)
    weight[inside] = (1 / (1 + (members[group] - 1) * correlation[of_vote[inside]])).to(weight.dtype)
    return weight
