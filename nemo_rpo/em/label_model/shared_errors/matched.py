r"""How far off are posteriors and errors of a crowd that errs together? Asked of simulated crowds that look like it.

The mean correlation of errors that a fit shows is only what the fit has not taken for truth: of errors that all
annotators share it may be a tenth. So crowds are drawn whose errors share a common cause to a known degree ρ, with
skills so much lower that any two annotators agree as often as in the crowd at hand::

    q'² + ρ (1 - q'²) = q²        q = 2η - 1 as fitted, q' as drawn

Each is fitted like the crowd at hand. The degree whose fits show the same correlation is taken; of these crowds truths
and skills are known, so the temperature that calibrates their posteriors and the factor that makes their intervals
cover can be read off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import VoteTable
from nemo_rpo.em.label_model.coefficients import logits
from nemo_rpo.em.label_model.member import Member
from nemo_rpo.em.label_model.shared_errors.dependence import statistic

# Parts of all agreement beyond chance that are taken for shared errors.
_PARTS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.9)
_TEMPERATURES = torch.logspace(0, 1.7, 60, dtype=torch.float64)


class Matched(NamedTuple):
    """What simulated crowds of the same dependence needed.

    Attributes:
        degree: ρ, the correlation of errors drawn.
        temperature: that the log-odds of the model's posteriors have to be divided by.
        stretch: factor on standard errors of skills for 95 % of the truths to lie within 1.96 of them.
    """

    degree: float
    temperature: float
    stretch: float


class _Crowd(NamedTuple):
    correlation: float
    log_odds: Tensor
    truth: Tensor
    misses: Tensor


def match_crowds(
    table: VoteTable,
    member: Member,
    correlation: float,
    refit: Callable[[VoteTable], Member],
    tolerance: float,
    seed: int = 0,
) -> Matched:
    """Draws crowds of every degree of dependence, twice, and reads off the one that shows ``correlation``.

    Where several degrees do (errors that all share leave little trace, however many), the largest is taken.
    """
    generator = torch.Generator().manual_seed(seed)
    beyond_chance = torch.tanh(member.theta[:, 0] / 2).square()[table.annotator].mean().item()
    degrees = [part * beyond_chance for part in _PARTS]
    crowds = {ρ: [_fit_crowd(table, member, ρ, refit, generator) for _ in range(2)] for ρ in degrees}
    off = {ρ: abs(sum(crowd.correlation for crowd in drawn) / len(drawn) - correlation) for ρ, drawn in crowds.items()}
    allowed = max(min(off.values()), tolerance * abs(correlation))
    degree = max(ρ for ρ in degrees if off[ρ] <= allowed)
    drawn = crowds[degree]
    truth = torch.cat([crowd.truth for crowd in drawn])
    misses = torch.cat([crowd.misses for crowd in drawn])
    return Matched(
        degree,
        _temperature(torch.cat([crowd.log_odds for crowd in drawn]), truth),
        max(1.0, misses.quantile(0.95).item() / 1.96),
    )


def draw_together(
    table: VoteTable, member: Member, degree: float, generator: torch.Generator
) -> tuple[VoteTable, Tensor, Tensor]:
    """Votes with errors that share a cause, the truths [P] (bool), and the skills [K] that they were drawn with.

    With probability √ρ a vote's error is decided by the pair's common draw, else by its own, so that errors of two
    equally skilled annotators correlate by ρ.
    """
    fitted = torch.tanh(member.theta[:, 0] / 2)
    lowered = ((fitted.square() - degree) / (1 - degree)).clamp(min=0).sqrt() * fitted.sign()
    skill = 2 * torch.atanh(lowered)
    a, b = logits(table, torch.cat((skill.unsqueeze(-1), member.theta[:, 1:]), -1))
    share = torch.sigmoid(member.prior.log_odds)
    draws = torch.rand(2, table.num_pairs, generator=generator, dtype=torch.float64)
    truth = torch.where(member.prior.gold != 0, member.prior.gold > 0, draws[0] < share)
    of_vote = truth[table.pair]
    right = torch.where(of_vote, torch.sigmoid(b + a), torch.sigmoid(a - b))
    own = torch.rand(2, len(right), generator=generator, dtype=torch.float64)
    is_right = torch.where(own[0] < degree**0.5, draws[1][table.pair], own[1]) < right
    return table._replace(says_chosen=is_right == of_vote), truth, skill


def _fit_crowd(
    table: VoteTable, member: Member, degree: float, refit: Callable[[VoteTable], Member], generator: torch.Generator
) -> _Crowd:
    crowd, truth, skill = draw_together(table, member, degree, generator)
    fit = refit(crowd)
    voted = table.per_annotator(table.counted) > 0
    asked = (table.per_pair(table.counted) > 0) & (member.prior.gold == 0)
    misses = ((fit.theta[:, 0] - skill).abs() / fit.errors[:, 0])[voted]
    return _Crowd(
        statistic(crowd, fit).correlation,
        torch.logit(fit.believed, eps=1e-12)[asked],
        truth[asked],
        misses,
    )


def _temperature(log_odds: Tensor, truth: Tensor) -> float:
    """The temperature, 1 or more, with the smallest log loss."""
    turned = torch.where(truth, log_odds, -log_odds)
    losses = -F.logsigmoid(turned / _TEMPERATURES.unsqueeze(-1)).mean(-1)
    return _TEMPERATURES[losses.argmin()].item()
