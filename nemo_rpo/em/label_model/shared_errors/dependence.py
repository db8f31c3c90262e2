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
# Annotators up to which all eigenvalues of their matrix are computed; of more, the largest alone, by iteration.
_DENSE = 256
_ITERATIONS = 40


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
    share = torch.sigmoid(prior.log_odds)[table.pair]
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


def spread_of_z(found: Agreement, least: int = 5) -> tuple[float, float]:
    """Standard deviation of z around 0 over annotators who share ``least`` pairs or more, 1 where they err apart; and
    the largest z of those who share four times as many."""
    shared = int(found.shared.max())
    enough, many = found.shared >= min(least, shared), found.shared >= min(4 * least, shared)
    return found.z[enough].square().mean().sqrt().item(), found.z[many].max().item()


def largest_block(found: Agreement, least: int = 5) -> float:
    """Largest eigenvalue of the matrix r_jk √n_jk of annotators who share ``least`` pairs or more: the correlation of
    two annotators' errors in standard errors, 0 on the diagonal.

    A group of m whose errors correlate by ρ on n shared pairs adds about (m-1) ρ √n, where every two of them alone show
    no more than ρ √n; errors that are apart leave about 2 √K. One eigenvector gathers all twos of a group, which the
    spread over all twos and the largest two do not.
    """
    enough = found.shared >= min(least, int(found.shared.max()))
    first, second = found.first[enough], found.second[enough]
    value = (found.correlation * found.shared.sqrt())[enough]
    present, place = torch.unique(torch.cat((first, second)), return_inverse=True)
    row, column = place.view(2, -1)
    size = len(present)
    if size <= _DENSE:
        matrix = torch.zeros(size, size, dtype=torch.float64)
        matrix[row, column] = matrix[column, row] = value
        return torch.linalg.eigvalsh(matrix)[-1].item()
    place = torch.stack((torch.cat((row, column)), torch.cat((column, row))))
    sparse = torch.sparse_coo_tensor(place, value.repeat(2), (size, size), check_invariants=False).coalesce()
    start = torch.randn(size, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.lobpcg(sparse, X=start, largest=True, niter=_ITERATIONS)[0].max().item()


class Statistic(NamedTuple):
    """Of a crowd.

    Attributes:
        spread: of z over every two annotators.
        correlation: mean correlation of errors over votes of one pair.
        largest: z, of the two annotators who agree most beyond the model: a small family moves no mean.
        block: :func:`largest_block`, of a group of any size.
    """

    spread: float
    correlation: float
    largest: float
    block: float


_NOTHING = Statistic(math.nan, math.nan, math.nan, math.nan)


class Dependence(NamedTuple):
    """What :func:`judge_dependence` found.

    Attributes:
        observed: the statistic; nan where no two annotators share pairs.
        expected, error: its mean and standard deviation over crowds that were drawn from the fitted model.
        apart: annotators agree with some and disagree with others beyond the model, or two of them do, or a group.
        together: errors fall on the same pairs beyond the model.
        outweighs: both, and by enough for a group that errs together to pass for the truth.
        wide: the spread is so far out of line that the majority itself may be little better than a coin.
    """

    observed: Statistic
    expected: Statistic
    error: Statistic
    apart: bool
    together: bool
    outweighs: bool
    wide: bool

    @property
    def found(self) -> bool:
        """Whether either statistic is out of line."""
        return self.apart or self.together


def statistic(table: VoteTable, member: Member) -> Statistic:
    """:class:`Statistic` of the votes under a fitted model; nan where no two votes share a pair."""
    found = agreement(table, member)
    if not len(found.shared):
        return _NOTHING
    spread, largest = spread_of_z(found)
    correlation = ((found.correlation * found.shared).sum() / found.shared.sum()).item()
    return Statistic(spread, correlation, largest, largest_block(found))


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
    if math.isnan(observed.spread) or not settings.bootstrap:
        return Dependence(observed, _NOTHING, _NOTHING, False, False, False, False)
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(settings.bootstrap):
        crowd = draw_votes(table, member, generator)
        drawn.append(statistic(crowd, refit(crowd)))
    rows = torch.tensor(drawn, dtype=torch.float64)
    expected, error = Statistic(*rows.mean(0).tolist()), Statistic(*rows.std(0).tolist())
    limit = settings.dependence_errors
    spread = observed.spread > max(expected.spread + limit * error.spread, settings.min_spread * expected.spread)
    # The largest of many has a longer tail than their mean.
    two = observed.largest > expected.largest + 1.5 * limit * error.largest
    least = max(expected.correlation + limit * error.correlation, settings.min_correlation)
    block = observed.block > expected.block + limit * error.block
    together = observed.correlation > least
    outweighs = (
        spread
        and observed.spread > max(settings.outweighing_ratio * expected.spread, settings.outweighing_spread)
        and observed.correlation > max(least, settings.outweighing_correlation)
    )
    wide = spread and observed.spread > settings.wide_spread * expected.spread
    return Dependence(observed, expected, error, spread or two or block, together, outweighs, wide)


def draw_votes(table: VoteTable, member: Member, generator: torch.Generator) -> VoteTable:
    """Votes of the same annotators on the same pairs, truths and votes drawn from the fitted model."""
    a, b = logits(table, member.theta)
    share = torch.sigmoid(member.prior.log_odds)
    truth = torch.rand(table.num_pairs, generator=generator, dtype=torch.float64) < share
    known = member.prior.gold != 0
    truth = torch.where(known, member.prior.gold > 0, truth)
    up = torch.where(truth[table.pair], torch.sigmoid(b + a), torch.sigmoid(b - a))
    return table._replace(says_chosen=torch.rand(len(up), generator=generator, dtype=torch.float64) < up)
