r"""Majority with an honest confidence: votes that count alike, and may err together.

Of a pair with n votes, n₊ of them for chosen, the truth being z = +1::

    n₊ | z = +1  ~  BetaBinomial(n, α, β)        α = η (1-ρ)/ρ,  β = (1-η)(1-ρ)/ρ

mirrored for z = -1: every vote is right with probability η, and the errors of two votes on one pair correlate by ρ. The
posterior of the truth orders pairs as the majority does. (η, ρ) are known by their posterior on a grid, η in (½, 1),
ρ in [0, 1) uniform: the second moment of the counts gives only a sum of (2η-1)² and ρ, so much stays open, and the
confidence, a mean over the grid, says so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import VoteTable

_RIGHT = torch.linspace(0.505, 0.985, 25, dtype=torch.float64)
_TOGETHER = torch.cat((torch.tensor([1e-4], dtype=torch.float64), torch.linspace(0.02, 0.95, 24, dtype=torch.float64)))
GRID_POINTS = len(_RIGHT) * len(_TOGETHER)


class ExchangeableVotes(NamedTuple):
    """The fit.

    Attributes:
        w: float64 [P], posterior that chosen is better; ½ where votes split evenly or are missing.
        right, together: posterior means of η and ρ.
        accuracy: of the majority, (posterior mean, 2.5 %, 97.5 %).
        grid: float64 [G], posterior of (η, ρ) on the grid; :func:`posterior_given` reads it for other pairs.
    """

    w: Tensor
    right: float
    together: float
    accuracy: tuple[float, float, float]
    grid: Tensor


def exchangeable_votes(table: VoteTable) -> ExchangeableVotes:
    """Fits (η, ρ) to the counts of every pair; annotators are not told apart."""
    n, up, kind, times = _kinds(table)
    right, together = _meshed(n.device)
    log_up, log_down, log_all = _log_sides(n, up)
    log_pair = torch.logaddexp(log_up, log_down) - log_all
    grid = torch.softmax((log_pair * times.unsqueeze(-1)).sum(0), 0)
    w_grid = torch.sigmoid(log_up - log_down)
    w = _mixed(n, up, w_grid, grid)
    voted = times.unsqueeze(-1) * (n > 0)
    accurate = (torch.maximum(w_grid, 1 - w_grid) * voted).sum(0) / voted.sum()
    order = accurate.argsort()
    mass = grid[order].cumsum(0)
    low, high = (accurate[order][(mass >= level).nonzero()[0, 0]].item() for level in (0.025, 0.975))
    mean = (accurate @ grid).item()
    return ExchangeableVotes(w[kind], (right @ grid).item(), (together @ grid).item(), (mean, low, high), grid)


def posterior_given(table: VoteTable, grid: Tensor) -> Tensor:
    """Posteriors float64 [P] of the pairs of ``table`` under the ``grid`` that a fit to other pairs found."""
    n, up, kind, _ = _kinds(table)
    log_up, log_down, _ = _log_sides(n, up)
    return _mixed(n, up, torch.sigmoid(log_up - log_down), grid)[kind]


def _kinds(table: VoteTable) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of every kind of pair its votes n and those for chosen n₊, float64 [k, 1]; the kind of each pair [P]; how many
    pairs each has."""
    cast = torch.bincount(table.pair, minlength=table.num_pairs)
    chosen = table.per_pair(table.says_chosen).long()
    base = int(cast.max()) + 1
    kinds, kind, times = torch.unique(cast * base + chosen, return_inverse=True, return_counts=True)
    return (kinds // base).double().unsqueeze(-1), (kinds % base).double().unsqueeze(-1), kind, times


def _meshed(device: torch.device) -> tuple[Tensor, Tensor]:
    right, together = torch.meshgrid(_RIGHT.to(device), _TOGETHER.to(device), indexing="ij")
    return right.flatten(), together.flatten()


def _log_sides(n: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log P(counts | z) + c at every point of the grid, [k, G] for both truths, and c [G]; binomial terms left out."""
    right, together = _meshed(n.device)
    scale = (1 - together) / together
    alpha, beta = right * scale, (1 - right) * scale
    return _log_beta(up + alpha, n - up + beta), _log_beta(n - up + alpha, up + beta), _log_beta(alpha, beta)


def _mixed(n: Tensor, up: Tensor, w_grid: Tensor, grid: Tensor) -> Tensor:
    return torch.where(2 * up == n, 0.5, (w_grid @ grid).unsqueeze(-1)).squeeze(-1)


def _log_beta(x: Tensor, y: Tensor) -> Tensor:
    return torch.lgamma(x) + torch.lgamma(y) - torch.lgamma(x + y)


def agreement_bounds(
    table: VoteTable, fit: ExchangeableVotes, low: float, high: float
) -> tuple[Tensor, Tensor, Tensor]:
    r"""P(label right) of every annotator, as (middle, lower, upper) [K] each, from agreement with the majority.

    With c the agreement and q the majority's accuracy, an annotator whose errors depend on the majority's in an unknown
    way is right with probability ≥ c + q - 1 and ≤ 1 - |c - q| (Fréchet). q runs from ``low`` to ``high``, and c
    over its binomial interval.
    """
    says = table.says_chosen.double()
    w = fit.w[table.pair]
    with_majority = torch.where(w == 0.5, 0.5, ((w > 0.5) == table.says_chosen).double())
    cast = table.per_annotator(torch.ones_like(says))
    c = (table.per_annotator(with_majority) + 1) / (cast + 2)
    error = 1.96 * (c * (1 - c) / (cast + 2)).sqrt()
    middle = (table.per_annotator(says * w + (1 - says) * (1 - w)) + 1) / (cast + 2)
    lower = (c - error + low - 1).clamp(min=0.0)
    gap = torch.maximum(c - error - high, low - c - error).clamp(min=0.0)
    return middle, torch.minimum(lower, middle), torch.maximum(1 - gap, middle)
