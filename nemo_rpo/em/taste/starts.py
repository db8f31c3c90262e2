"""Where the EM of k + 1 groups starts: one of k fitted groups divided in two."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nemo_rpo.em.label_model.coded_votes import VoteTable
from nemo_rpo.em.taste.groups import Groups, vote_likelihoods

_ROUNDS = 30
# Eigenvectors looked at: the first often tells who is careful from who is not.
_DIRECTIONS = 3
# How sure a start is of its memberships.
_SURE = 0.95


def divided(table: VoteTable, groups: Groups, group: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Memberships [K, k+1]: ``group`` divided along the leading directions of its residuals, twice each: annotators on
    either side of 0, and those who have much of it from those who have little (where the fitted truth is that of one
    taste, the other taste's annotators have all the residuals)."""
    inside = groups.membership[:, group] > 0.5
    if not inside.any():
        return
    for direction in _leading(table, groups, group, generator).T:
        for side in (direction > 0, direction.abs() > direction[inside].abs().median()):
            new = torch.where(side, _SURE, 1 - _SURE) * groups.membership[:, group]
            membership = torch.cat((groups.membership, new.unsqueeze(-1)), -1)
            membership[:, group] -= new
            yield membership


def _leading(table: VoteTable, groups: Groups, group: int, generator: torch.Generator) -> Tensor:
    """Leading eigenvectors [K, 3] of the residuals' products over shared pairs; O(M) a multiplication.

    The residual of a vote is what the group's truth leaves of it, standardised. The diagonal (an annotator with
    himself) is 1 for all after scaling, and moves no eigenvector.
    """
    up, down = vote_likelihoods(table, groups.theta).exp()
    w = groups.w[table.pair, group]
    # P(s_v) given the group's truth; the residual has the sign of the vote.
    expected = (w * up + (1 - w) * down).clamp(1e-3, 1 - 1e-3)
    residual = table.sign() * ((1 - expected) / expected).sqrt() * groups.membership[table.annotator, group]
    own = table.per_annotator(residual.square())
    scale = own.clamp(min=1e-9).rsqrt()
    count = min(_DIRECTIONS, table.num_annotators)
    x = torch.randn(table.num_annotators, count, generator=generator, dtype=torch.float64)
    for _ in range(_ROUNDS):
        columns = []
        for column in x.T:
            of_pair = table.per_pair(residual * (column * scale)[table.annotator])
            columns.append(scale * table.per_annotator(residual * of_pair[table.pair]))
        x = torch.linalg.qr(torch.stack(columns, -1)).Q
    return x * own.sqrt().unsqueeze(-1)
