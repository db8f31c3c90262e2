"""The labels that are most likely wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nemo_rpo.crowd.crowd_fit import CrowdFit

_WORDS = {1: "first", -1: "second"}


@dataclass(frozen=True)
class DoubtfulLabel:
    """A label, and how likely it is right.

    Attributes:
        where: ``file:row``.
        pair: id of the pair in the file, or a hash of its content.
        annotator: id.
        says: ``first`` or ``second``, the response of its row that it prefers.
        right: probability that it is right; 0 or 1 where a gold label decides.
        others: ``labels for : labels against``, of all others on the pair.
    """

    where: str
    pair: str
    annotator: str
    says: str
    right: float
    others: str


def doubtful_labels(fit: CrowdFit, most: int) -> list[DoubtfulLabel]:
    """Up to ``most`` labels that are more likely wrong than right, the most doubtful first."""
    table = fit.table
    doubted = np.flatnonzero(fit.right < 0.5)
    order = doubted[np.argsort(fit.right[doubted], kind="stable")][:most]
    counts = table.counts()
    found = []
    for vote in order.tolist():
        first, second, _ = counts[table.pair[vote]].tolist()
        agree, against = (first - 1, second) if table.sign[vote] > 0 else (second - 1, first)
        found.append(
            DoubtfulLabel(
                where=table.where(vote),
                pair=table.pair_id[table.pair[vote]],
                annotator=table.annotators.ids[table.annotator[vote]],
                says=_WORDS[int(table.said[vote])],
                right=float(fit.right[vote]),
                others=f"{agree}:{against}",
            )
        )
    return found
