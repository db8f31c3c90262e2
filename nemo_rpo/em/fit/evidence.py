"""What the margins at hand can still say: figures that the guards judge, summed over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.votes import Votes, chunks, with_finite_margin

UNDECIDED = 0.05, 0.95  # probabilities between these still weigh; those outside decide
# e^340 squared, summed over a million million votes, is still a float64; one vote of it already outweighs all others.
_LARGEST_EXPONENT = 340.0


class Evidence(NamedTuple):
    """Figures of the margins Δ/τ and their votes.

    Attributes:
        disagreement: mean of e^{-sΔ/τ} over the signed votes s that are alone on their pair, by what they count for,
            each term at most e^340. At fixed margins a reliability below 1 maximises the likelihood only where this is
            above 1; inf without such votes.
        disagreement_error: its standard error; nan without votes. Small margins leave the mean at 1 give or take this.
        undecided: share of pairs whose margin alone leaves σ(Δ/τ) between .05 and .95; nan without pairs.
        agreement: share of all signed votes on the margin's side, a margin of 0 taking half of one; nan without votes.
        labels: signed votes.
    """

    disagreement: float
    disagreement_error: float
    undecided: float
    agreement: float = math.nan
    labels: float = 0.0


@torch.no_grad()
def evidence_of(
    delta: Tensor,
    votes: Votes,
    settings: EMSettings,
    all_reduce: Callable[[Tensor], None] | None = None,
) -> Evidence:
    """:class:`Evidence` of margins [P] and labels [P, V] of this rank.

    Pairs whose margin is not finite are left out. One all-reduce of 56 bytes; waits for the device.

    >>> votes = Votes.single(torch.tensor([0, 0]))
    >>> found = evidence_of(torch.tensor([1.0, -1.0]), votes, EMSettings())
    >>> round(found.disagreement, 4), round(found.disagreement_error, 4), found.undecided  # cosh 1, sinh 1 / √2
    (1.5431, 0.831, 1.0)
    >>> found.agreement, found.labels
    (0.5, 2.0)
    """
    delta, votes = with_finite_margin(delta, votes)
    sums = torch.zeros(7, dtype=torch.float64, device=delta.device)
    for margin, chunk in chunks(delta, votes):
        sign = chunk.sign.double()
        signed = sign != 0
        alone = signed & (signed.sum(-1, keepdim=True) == 1)
        exponent = -sign * margin.unsqueeze(-1) / settings.link_tau
        against = torch.where(alone, exponent.clamp(max=_LARGEST_EXPONENT).exp(), 0.0)
        agreed = torch.where(signed, 0.5 + 0.5 * torch.sign(sign * margin.unsqueeze(-1)), 0.0)
        p = torch.sigmoid(margin / settings.link_tau)
        open_question = (p > UNDECIDED[0]) & (p < UNDECIDED[1])
        of_votes = (against, against.square(), alone.double(), agreed, signed.double())
        of_pairs = (open_question, torch.ones_like(margin))
        sums += torch.stack([chunk.counted(column.to(sums.dtype)).sum() for column in (*of_votes, *of_pairs)])
    if all_reduce is not None:
        all_reduce(sums)
    mean, square = (sums[:2] / sums[2]).tolist()
    alone, agreed, labels, undecided, pairs = sums[2:].tolist()
    error = math.sqrt(max(square - mean**2, 0.0) / alone) if alone else math.nan
    return Evidence(
        mean if alone else math.inf,
        error,
        undecided / pairs if pairs else math.nan,
        agreed / labels if labels else math.nan,
        labels,
    )
