"""What a run with groups of taste says of each label. Shapes: n pairs, v labels, K annotators, G groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from nemo_rpo.em import RecordedReliability


class GroupsSeen(NamedTuple):
    """``margins`` float64 [n, G], Δ of each group when the pair was seen last (NaN: never), and the annotators'
    ``weight`` [K, G].
    """

    margins: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(cls, em: RecordedReliability) -> GroupsSeen:
        """Of an estimator of groups. One gather of 4 G bytes a pair over the ranks that hold different pairs."""
        return cls(em.margins().double().cpu().numpy(), em.weight.cpu().numpy())

    def log_odds(
        self, pair: np.ndarray, annotator: np.ndarray, sign: np.ndarray, logit_eta: np.ndarray, tau: float
    ) -> np.ndarray:
        """Log-odds [n, G] that chosen is truly better for each group: Δ_g/τ + Σ_v W[k_v,g] s_v logit η_v.

        The labels are those of all pairs, ``pair``, ``annotator`` and ``sign`` [v].
        """
        found = np.where(np.isfinite(self.margins), self.margins, np.nan) / tau
        np.add.at(found, pair, (sign * logit_eta[annotator])[:, None] * self.weight[annotator])
        return found


def right(groups: GroupsSeen, w: np.ndarray, pair: np.ndarray, annotator: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """Probability [v] that each label is right for whoever gave it, from ``w`` [n, G], that of chosen by group."""
    of_labels = w[pair]
    return (groups.weight[annotator] * np.where(sign[:, None] > 0, of_labels, 1 - of_labels)).sum(-1)


def group_names(groups: int) -> list[str]:
    """Names of the columns with the probability that a pair's chosen is better, for each of ``groups`` groups."""
    return [f"w_of_group_{g}" for g in range(1, groups + 1)]
