"""Which labels to look at again, and what the distrusted ones have in common."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nemo_rpo.report.run import Labels
from nemo_rpo.shares import Difference, Share, difference, share_of


def most_doubtful(labels: Labels, count: int, per_annotator: int | None = None) -> np.ndarray:
    """int64, rows of the labels that are least likely to be right, the worst first: one a pair, and at most
    ``per_annotator`` of one annotator, lest the worst one fills the list.
    """
    order = np.argsort(np.where(np.isnan(labels.w_last), np.inf, labels.w_last), kind="stable")
    taken: dict[int, int] = {}
    pairs: set[int] = set()
    found: list[int] = []
    for row in order[: int((~np.isnan(labels.w_last)).sum())].tolist():
        annotator, pair = int(labels.annotator[row]), int(labels.pair[row])
        if len(found) == count:
            break
        if pair in pairs or (per_annotator is not None and taken.get(annotator, 0) >= per_annotator):
            continue
        pairs.add(pair)
        taken[annotator] = taken.get(annotator, 0) + 1
        found.append(row)
    return np.array(found, np.int64)


class Leaning(NamedTuple):
    """How often labels side with one kind of response: those that the EM distrusts, and those that it believes."""

    name: str
    distrusted: Share
    believed: Share

    @property
    def gap(self) -> Difference:
        """Share among distrusted labels minus share among believed ones."""
        return difference(self.distrusted, self.believed)


def length_leaning(labels: Labels) -> Leaning:
    """Whether a label prefers the longer response, in tokens; without equal lengths, and completions judged alone."""
    longer = np.sign(labels.tokens[:, 0].astype(np.int64) - labels.tokens[:, 1]) * labels.sign
    return _leaning("the longer response", np.where((labels.tokens > 0).all(1), longer, 0), labels)


def position_leaning(labels: Labels, prefers_first: np.ndarray) -> Leaning | None:
    """Whether a label prefers the response shown first: ``prefers_first`` int8 [v], +1, -1, 0 unknown; None if none is
    known.
    """
    return _leaning("the response shown first", prefers_first, labels) if prefers_first.any() else None


def _leaning(name: str, side: np.ndarray, labels: Labels) -> Leaning:
    known = (side != 0) & ~np.isnan(labels.w_last)
    distrusted = labels.distrusted
    return Leaning(name, share_of(side[known & distrusted] > 0), share_of(side[known & ~distrusted] > 0))
