"""Regression losses of the log-ratio difference: IPO with summed or averaged log-probs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nemo_rpo.losses.base import PreferenceLoss
from nemo_rpo.losses.options import flag, number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("ipo")
@dataclass(frozen=True)
class IPO(PreferenceLoss):
    r"""Identity Preference Optimization (2310.12036) of summed log-probs, as in the paper and NeMo-Aligner.

    L = (h - 1/(2β))²,  h = a_w - a_l,  a = log π/π_ref.  Δ = 2h/β: turning the pair round keeps the target.

    Options:
        beta: β (the paper's τ); the target margin is 1/(2β).
        average_log_probs: a per token of the response.

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> IPO(beta=0.1)(x)
    tensor([1.5625])
    """

    beta: float = number(0.1, above=0)
    average_log_probs: bool = flag(False)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"policy", "reference", "lengths"} if self.average_log_probs else {"policy", "reference"})

    def pair(self, x: PairLogprobs) -> Tensor:
        return (self._difference(x) - 1 / (2 * self.beta)).square()

    def delta(self, x: PairLogprobs) -> Tensor:
        return 2 / self.beta * self._difference(x)

    def _difference(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.log_ratios(self.average_log_probs)
        return chosen - rejected


@register("ipo_avg")
@dataclass(frozen=True)
class TokenAverageIPO(IPO):
    r"""IPO of token-averaged log-probs, the normalisation of TRL.

    L = (h - 1/(2β))²,  h = a_w/|w| - a_l/|l|.

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]),
    ...                  chosen_length=torch.tensor([30]), rejected_length=torch.tensor([41]))
    >>> TokenAverageIPO(beta=0.1)(x)
    tensor([23.8966])
    """

    average_log_probs: bool = flag(True)
