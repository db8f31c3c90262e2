"""More outcomes than better and worse: ties, and both bad; of responses, and of models that a prompt ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.base import PreferenceLoss
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
        return _rao_kupper(u, self.theta, odds)


@dataclass(frozen=True)
class PromptStrengths(PreferenceLoss):
    """A loss of battles between models, whose strengths θ(x) the prompt x decides (Prompt-to-Leaderboard, 2502.14855).

    The head gives ``coefficients`` θ(x) [pairs, M] from the prompt's last token, ``player`` says which two of them met.
    A battle that somebody called a tie, and nobody decided, is no evidence about its judges (Δ = 0): it trains the
    strengths and is left out of the E-step.
    """

    takes_ties: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"coefficients", "player", "tie"})

    def strengths(self, x: PairLogprobs) -> tuple[Tensor, Tensor]:
        """θ of the model that won and of the one that lost, [pairs] each."""
        of = x.pair_columns["coefficients"]
        first, second = (of.gather(1, player.long().unsqueeze(1)).squeeze(1) for player in x.response_columns["player"])
        return first, second


@register("p2l_bt")
@dataclass(frozen=True)
class PromptBradleyTerry(PromptStrengths):
    r"""The Bradley-Terry likelihood of battles, with strengths from the prompt (2502.14855).

    L = -log σ(u),  u = θ_w(x) - θ_l(x);  of a tie half of each side, -½ log σ(u) - ½ log σ(-u).  A decided battle has
    Z = 1: the link is exact where there is a label to doubt. With one prompt it is the plain Bradley-Terry model.

    >>> theta = torch.tensor([[2.0, 0.3, 1.0]] * 2)
    >>> x = PairLogprobs(None, None, response_columns={"player": (torch.tensor([0, 0]), torch.tensor([2, 1]))},
    ...                  pair_columns={"coefficients": theta, "tie": torch.tensor([0, 1])})
    >>> PromptBradleyTerry()(x)  # -log σ(1), and a tie at u = 1.7
    tensor([0.3133, 1.0178])
    """

    def pair(self, x: PairLogprobs) -> Tensor:
        won, lost = self.strengths(x)
        up, down = -F.logsigmoid(won - lost), -F.logsigmoid(lost - won)
        return torch.where(x.pair_columns["tie"].bool(), (up + down) / 2, up)

    def delta(self, x: PairLogprobs) -> Tensor:
        won, lost = self.strengths(x)
        return torch.where(x.pair_columns["tie"].bool(), 0.0, won - lost)


@register("p2l_rao_kupper")
@dataclass(frozen=True)
class PromptRaoKupper(PromptStrengths):
    r"""Rao and Kupper's model of ties with strengths and their width η from the prompt (2502.14855). With u as above::

        P(w wins) = σ(u - η)      P(l wins) = σ(-u - η)      P(tie) = 1 - the two
        η = max(.02, 10 log(1 + e^{(t - 22.5)/10}))          t the head's ``tie_width``; η = 1.00 at t = 0

    It is ``todo``'s model of ties with θ = -η. Z = 1 - P(tie).

    >>> x = PairLogprobs(None, None, response_columns={"player": (torch.tensor([0, 0]), torch.tensor([1, 1]))},
    ...                  pair_columns={"coefficients": torch.tensor([[1.7, 0.0]] * 2), "tie": torch.tensor([0, 1]),
    ...                                "tie_width": torch.zeros(2)})
    >>> PromptRaoKupper()(x)
    tensor([0.4031, 1.3170])
    """

    needs: ClassVar[frozenset[str]] = PromptStrengths.needs | {"tie_width"}

    def pair(self, x: PairLogprobs) -> Tensor:
        won, _, tie = self.outcome_log_probs(x).unbind(-1)
        return -torch.where(x.pair_columns["tie"].bool(), tie, won)

    def outcome_log_probs(self, x: PairLogprobs) -> Tensor:
        """log P of (chosen wins, rejected wins, tie) [pairs, 3]."""
        won, lost = self.strengths(x)
        width = tie_threshold(x.pair_columns["tie_width"])
        return _rao_kupper(won - lost, -width, 2 * width + torch.log(-torch.expm1(-2 * width)))


@register("p2l_bag")
@dataclass(frozen=True)
class PromptGroundedRaoKupper(PromptStrengths):
    r"""Four outcomes: either model wins, a tie, both are bad (the grounded Rao-Kupper model of 2502.14855).

    With π = e^{θ(x)} of the two models, κ = e^t > 0 for the head's ``tie_width`` t and S = 1 + π_w + π_l, the 1 being
    a model that is just bad enough::

        P(w wins) = π_w / (S + κ π_l)        P(both bad) = 1/S        P(tie) = the rest
        P(l wins) = π_l / (S + κ π_w)

    Strengths are not free to move together here: 0 is where a model is as likely called good as bad. Of a battle that
    several called a tie, ``both_bad`` is the share of those that called both bad.

    >>> x = PairLogprobs(None, None, response_columns={"player": (torch.zeros(3), torch.ones(3))}, pair_columns={
    ...     "coefficients": torch.tensor([[1.7, 0.0]] * 3), "tie": torch.tensor([0, 1, 1]),
    ...     "both_bad": torch.tensor([0, 0, 1]), "tie_width": torch.zeros(3)})
    >>> PromptGroundedRaoKupper()(x)
    tensor([0.4376, 1.8028, 2.0065])
    """

    needs: ClassVar[frozenset[str]] = PromptStrengths.needs | {"tie_width", "both_bad"}

    def pair(self, x: PairLogprobs) -> Tensor:
        won, _, tie, bad = self.outcome_log_probs(x).unbind(-1)
        share = x.pair_columns["both_bad"].to(won.dtype)
        return -torch.where(x.pair_columns["tie"].bool(), share * bad + (1 - share) * tie, won)

    def outcome_log_probs(self, x: PairLogprobs) -> Tensor:
        """log P of (chosen wins, rejected wins, tie, both bad) [pairs, 4].

        P(tie) = κ π_w π_l (D_w + D_l) / (S D_w D_l), D the denominators of the wins: no difference that cancels.
        """
        (won, lost), log_kappa = self.strengths(x), x.pair_columns["tie_width"]
        none = torch.zeros_like(won)
        log_nu = torch.logaddexp(log_kappa, none)  # log(1 + κ); softplus cuts off at 2e-9
        good = torch.logaddexp(torch.logaddexp(won, lost), none)
        beat, beaten = (
            torch.logaddexp(torch.logaddexp(one, other + log_nu), none) for one, other in ((won, lost), (lost, won))
        )
        tie = log_kappa + (won + lost) + torch.logaddexp(beat, beaten) - good - (beat + beaten)
        return torch.stack([won - beat, lost - beaten, tie, -good], -1)


_STEEPNESS, _SHIFT, _LEAST = 0.1, 22.5, 0.02  # the paper's: η is 1.00 at the head's start, and moves gently from there


def tie_threshold(raw: Tensor) -> Tensor:
    """η of :class:`PromptRaoKupper` from the head's ``tie_width``.

    >>> tie_threshold(torch.tensor([0.0, -100.0]))
    tensor([1.0021, 0.0200])
    """
    return F.softplus(raw - _SHIFT, beta=_STEEPNESS).clamp(min=_LEAST)


def _rao_kupper(u: Tensor, theta: float | Tensor, log_odds: float | Tensor) -> Tensor:
    """log P of (better, worse, tie) [pairs, 3] at margins u and θ ≤ 0, with ``log_odds`` = log(e^{-2θ} - 1)."""
    # The sum of the two comes first: it is the same number for u and -u, and Δ of a tie exactly 0.
    tie = log_odds + (F.logsigmoid(theta - u) + F.logsigmoid(theta + u))
    return torch.stack([F.logsigmoid(u + theta), F.logsigmoid(theta - u), tie], -1)
