"""What the margins at hand can still say: figures that the guards judge, summed over the ranks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.em.e_step import posterior
from nemo_rpo.em.em_settings import EMSettings
from nemo_rpo.em.votes import Votes, chunks, with_finite_margin

UNDECIDED = 0.05, 0.95  # posteriors between these still weigh; those outside decide
# e^340 squared, summed over a million million votes, is still a float64; one vote of it already outweighs all others.
_LARGEST_EXPONENT = 340.0


class Evidence(NamedTuple):
    """Figures of the margins Δ/τ and their votes.

    Attributes:
        disagreement: mean of e^{-sΔ/τ} over the signed votes s, by what they count for, each term at most e^340. At
            fixed margins a reliability below 1 maximises the likelihood only where this is above 1; inf without votes.
        disagreement_error: its standard error; nan without votes. Small margins leave the mean at 1 give or take this.
        undecided: share of pairs whose posterior lies between .05 and .95; nan without pairs.
    """

    disagreement: float
    disagreement_error: float
    undecided: float


@torch.no_grad()
def evidence_of(
    delta: Tensor,
    votes: Votes,
    eta: Tensor,
    settings: EMSettings,
    all_reduce: Callable[[Tensor], None] | None = None,
) -> Evidence:
    """:class:`Evidence` of margins [P] and labels [P, V] of this rank under the reliabilities ``eta`` [K].

    Pairs whose margin is not finite are left out. One all-reduce of 40 bytes; waits for the device.

    >>> votes = Votes.single(torch.tensor([0, 0]))
    >>> found = evidence_of(torch.tensor([1.0, -1.0]), votes, torch.tensor([0.5]), EMSettings())
    >>> round(found.disagreement, 4), round(found.disagreement_error, 4), found.undecided  # cosh 1, sinh 1 / √2
    (1.5431, 0.831, 1.0)
    """
    delta, votes = with_finite_margin(delta, votes)
    sums = torch.zeros(5, dtype=torch.float64, device=eta.device)
    logit_eta = torch.logit(eta.double())
    for margin, chunk in chunks(delta, votes):
        sign = chunk.sign.double()
        signed = sign != 0
        exponent = -sign * margin.unsqueeze(-1) / settings.link_tau
        against = torch.where(signed, exponent.clamp(max=_LARGEST_EXPONENT).exp(), 0.0)
        w = posterior(margin, chunk, logit_eta, settings.link_tau)
        open_question = (w > UNDECIDED[0]) & (w < UNDECIDED[1])
        of_votes, of_pairs = (against, against.square(), signed.double()), (open_question, torch.ones_like(margin))
        sums += torch.stack([chunk.counted(column.to(sums.dtype)).sum() for column in (*of_votes, *of_pairs)])
    if all_reduce is not None:
        all_reduce(sums)
    mean, square = (sums[:2] / sums[2]).tolist()
    labels, undecided, pairs = sums[2:].tolist()
    if not labels:
        return Evidence(math.inf, math.nan, undecided / pairs if pairs else math.nan)
    return Evidence(mean, math.sqrt(max(square - mean**2, 0.0) / labels), undecided / pairs)
