"""Logistic losses of log-ratio differences: DPO and its generalisation to f-divergences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nemo_rpo.losses.base import LogisticLoss
from nemo_rpo.losses.options import flag, number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("dpo")
@dataclass(frozen=True)
class DPO(LogisticLoss):
    r"""Direct Preference Optimization (2305.18290).

    L = -log σ(β (a_w - a_l)),  a(y) = log π(y)/π_ref(y) summed over the response.  Exact: Δ = β (a_w - a_l).

    Options:
        beta: β, strength of the KL constraint.
        average_log_probs: a per token of the response (TRL's ``sigmoid_norm``).

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> DPO(beta=0.1)(x)
    tensor([0.5231])
    """

    beta: float = number(0.1, above=0)
    average_log_probs: bool = flag(False)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"policy", "reference", "lengths"} if self.average_log_probs else {"policy", "reference"})

    def margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.log_ratios(self.average_log_probs)
        return self.beta * (chosen - rejected)
