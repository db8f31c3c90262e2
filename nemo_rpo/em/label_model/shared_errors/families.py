"""Families: annotators whose errors hang together. Found from votes, or declared and counted for fewer votes."""

from __future__ import annotations

import torch
from torch import Tensor

from nemo_rpo.em.label_model.choose import Fitter
from nemo_rpo.em.label_model.coded_votes import VoteTable
from nemo_rpo.em.label_model.member import Member
from nemo_rpo.em.label_model.shared_errors.dependence import agreement, two_of_a_pair


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


def discounted(table: VoteTable, families: Tensor, fitter: Fitter) -> tuple[VoteTable, Tensor]:
    """Weights of declared families. The search for ρ starts at 1, one vote a family: from 0 a family that outvotes the
    others would pass for the truth, and its errors for none."""
    correlation = torch.ones(int(families.max()) + 1, dtype=torch.float64)
    coin = table.select(())
    for _ in range(4):
        weighted = coin._replace(weight=family_weights(table, families, correlation))
        correlation = family_correlation(weighted, fitter.fit(weighted, (), []), families)
    return table._replace(weight=family_weights(table, families, correlation)), correlation
