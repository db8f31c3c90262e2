"""Ternary preferences: better, worse, or a tie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.log_ratio import LogRatioLoss
from nemo_rpo.losses.options import number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("todo")
@dataclass(frozen=True)
class TODO(LogRatioLoss):
    r"""Tie-rank Oriented Direct preference Optimization (2411.02442), a Rao-Kupper model of ties.

    With u = β (a_w - a_l) and θ ≤ 0::

        a preference  L = -log σ(u + θ)
        a tie         L = -log [(e^{-2θ} - 1) / ((1 + e^{u-θ}) (1 + e^{-u-θ}))]

    The three outcomes sum to 1, so two of them do not: Z = 1 - P(tie). θ is the label's and stays when the pair is
    turned round; a tie is the same tie (Δ = 0) and says nothing about its annotator.

    Options:
        theta: θ ≤ 0; 0 allows no ties and is DPO (a tie then has infinite loss).
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(*(torch.tensor([v, v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  pair_columns={"tie": torch.tensor([0, 1])})
    >>> TODO(beta=0.1, theta=-0.5)(x)
    tensor([0.7576, 1.4397])
    """

    columns: ClassVar[frozenset[str]] = frozenset({"tie"})
    takes_ties: ClassVar[bool] = True

    beta: float = number(0.01, above=0)
    theta: float = number(-0.5, at_most=0)

    def pair(self, x: PairLogprobs) -> Tensor:
        chosen, _, tie = self.outcome_log_probs(x).unbind(-1)
        return -torch.where(x.pair_columns["tie"].bool(), tie, chosen)

    def outcome_log_probs(self, x: PairLogprobs) -> Tensor:
        """log P of (chosen better, rejected better, tie) [pairs, 3], for an EM over three outcomes."""
        u = self.implicit_margin(x)
        odds = math.log(math.expm1(-2 * self.theta)) if self.theta < 0 else -math.inf
        # The sum of the two comes first: it is the same number for u and -u, and Δ of a tie exactly 0.
        tie = odds + (F.logsigmoid(self.theta - u) + F.logsigmoid(self.theta + u))
        return torch.stack([F.logsigmoid(u + self.theta), F.logsigmoid(self.theta - u), tie], -1)
