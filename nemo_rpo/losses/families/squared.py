"""Regression losses of the log-ratio difference: IPO with summed or averaged log-probs."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nemo_rpo.losses.base import PreferenceLoss
from nemo_rpo.losses.log_ratio import LogRatioLoss
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@dataclass(frozen=True)
class GapRegression(PreferenceLoss):
    """L = (h - t)² of a log-ratio difference h that turns with the pair, and a gap t that stays.  Δ = 4 h t."""

    @abstractmethod
    def regressor(self, x: PairLogprobs) -> Tensor:
        """h [pairs], in nats."""

    @abstractmethod
    def target(self, x: PairLogprobs) -> Tensor | float:
        """t, in nats."""

    def pair(self, x: PairLogprobs) -> Tensor:
        return (self.regressor(x) - self.target(x)).square()

    def delta(self, x: PairLogprobs) -> Tensor:
        return 4 * self.regressor(x) * self.target(x)


@register("ipo")
@dataclass(frozen=True)
class IPO(LogRatioLoss, GapRegression):
    r"""Identity Preference Optimization (2310.12036) of summed log-probs, as in the paper and NeMo-Aligner.

    L = (h - 1/(2β))²,  h = a_w - a_l,  a = log π/π_ref.  Δ = 2h/β: turning the pair round keeps the target.

    Options:
        beta: β (the paper's τ); the target of h is 1/(2β).
        average_log_probs: a per token of the response; ``ipo_avg`` is this.

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> IPO(beta=0.1)(x)
    tensor([1.5625])
    """

    def regressor(self, x: PairLogprobs) -> Tensor:
        return self.difference(x)

    def target(self, x: PairLogprobs) -> float:
        return 1 / (2 * self.beta)


@register("ipo_avg")
@dataclass(frozen=True)
class TokenAverageIPO(IPO):
    r"""IPO of token-averaged log-probs, the normalisation of TRL.

    L = (h - 1/(2β))²,  h = a_w/|w| - a_l/|l|.

    Options:
        beta: β; the target of h, a token, is 1/(2β).

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]),
    ...                  chosen_length=torch.tensor([30]), rejected_length=torch.tensor([41]))
    >>> TokenAverageIPO(beta=0.1)(x)
    tensor([23.8966])
    """

    average_log_probs: ClassVar[bool] = True
