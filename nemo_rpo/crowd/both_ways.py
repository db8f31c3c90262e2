"""Labels of one annotator that contradict each other. Shapes: K annotators."""

from __future__ import annotations

import numpy as np

from nemo_rpo.counting import counted
from nemo_rpo.data.vote_table import VoteTable, says_both
from nemo_rpo.errors import printable

_NAMED = 3  # annotators that a message names


def labelled_both_ways(table: VoteTable) -> np.ndarray:
    """Pairs that each annotator called both ways, int64 [K]: the label model counts such labels as none.

    Labels without a name may be of several people, and are not counted.
    """
    votes = says_both(table.pair, table.annotator, table.sign, table.detail("shown_first")) & ~table.unnamed
    annotators = max(1, len(table.annotators))
    of_pair = np.unique(table.pair[votes] * annotators + table.annotator[votes])
    return np.bincount(of_pair % annotators, minlength=len(table.annotators))


def words(table: VoteTable, both: np.ndarray) -> str:
    """Who did so how often: ``ann (3 pairs), bob (1 pair)``."""
    most = np.argsort(-both, kind="stable")[: min(_NAMED, int((both > 0).sum()))]
    named = ", ".join(
        f"{printable(table.annotators.ids[k], cell=True)} ({counted(int(both[k]), 'pair')})" for k in most
    )
    others = int((both > 0).sum()) - len(most)
    return named + (f" and {counted(others, 'other')}" if others else "")
