"""What all votes show together: do they follow the order shown, do annotators err together?"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nemo_rpo.data.vote_table import VoteTable
from nemo_rpo.errors import DataError

_P_VALUE = 1e-3  # below which votes follow the order
_SHARE = 0.03  # from one half, below which nobody has to mind
_LEAST = 30  # pairs with several votes, below which a label model has nothing to go by
_SAMPLE = 5_000  # votes that the label model looks at


@dataclass(frozen=True)
class OrderTest:
    """Do votes follow the order? A binomial test against one half, one vote a pair.

    Attributes:
        shown: whether the order shown is recorded; else it is the order in which the file has the responses.
        first, pairs: votes for the response that comes first, of so many.
        p_value: two-sided, from the normal approximation.
    """

    shown: bool
    first: int
    pairs: int
    p_value: float

    @property
    def follows(self) -> bool:
        """Whether the votes follow it, beyond chance and by enough to matter."""
        return self.p_value < _P_VALUE and abs(self.first / self.pairs - 0.5) > _SHARE


@dataclass(frozen=True)
class Together:
    """What all votes show together.

    Attributes:
        order: of votes whose order is known; ``None`` without any.
        dependence: statistics of the label model, observed and as independent errors would have them; empty where it
            was not fitted.
        warnings: its warnings, as ``kind`` and ``text``.
        left_out: why it was not fitted; empty if it was, or there is nothing to fit (one vote a pair).
    """

    order: OrderTest | None = None
    dependence: dict[str, float] = field(default_factory=dict)
    warnings: list[dict[str, str]] = field(default_factory=list)
    left_out: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        order = None if self.order is None else {**vars(self.order), "follows": self.order.follows}
        return {**vars(self), "order": order}


def look(table: VoteTable) -> Together:
    """The test of the order, and the label model where annotators share pairs enough and torch is there."""
    order = order_test(table)
    annotators = int(table.named().sum())
    if annotators < 2 or (table.counts()[:, :2].sum(1) > 1).sum() < _LEAST:
        return Together(order)
    try:
        from nemo_rpo.crowd.crowd_fit import fit_crowd
    except ImportError as exc:
        return Together(order, left_out=f"dependence of errors, and other warnings of the label model, need {exc.name}")
    try:
        fit = fit_crowd(_sample(table))
    except DataError:  # only ties
        return Together(order)
    found = fit.model.dependence
    figures = {"spread": found.observed.spread, "expected_spread": found.expected.spread}
    figures |= {"correlation": found.observed.correlation, "expected_correlation": found.expected.correlation}
    dependence = {name: value for name, value in figures.items() if not math.isnan(value)}
    return Together(order, dependence, [{"kind": kind, "text": text} for kind, text in fit.warnings])


def order_test(table: VoteTable) -> OrderTest | None:
    """Of the first signed vote of each pair whose order is known; where no order shown is recorded, of all pairs of
    files that have an order of their own (and do not name the winner first). A completion judged alone has none.
    """
    shown = table.knows("shown_first")
    if shown:
        first = table.detail("shown_first")
    else:
        first = np.where((table.winner_first()[table.pair_file] | table.alone)[table.pair], 0, 1)
    known = np.flatnonzero((table.sign != 0) & (first != 0))
    _, at = np.unique(table.pair[known], return_index=True)
    votes = known[at]
    if not len(votes):
        return None
    for_first, pairs = int((table.sign[votes] == first[votes]).sum()), len(votes)
    z = max(abs(for_first - pairs / 2) - 0.5, 0) / math.sqrt(pairs / 4)
    return OrderTest(shown, for_first, pairs, math.erfc(z / math.sqrt(2)))


def _sample(table: VoteTable) -> VoteTable:
    stride = max(1, -(-len(table) // _SAMPLE))
    return table if stride == 1 else table.of_pairs(np.arange(table.pairs) % stride == 0)
