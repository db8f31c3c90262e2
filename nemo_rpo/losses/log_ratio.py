"""The common ground of losses that compare the policy with a frozen reference through one difference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nemo_rpo.losses.base import PreferenceLoss
from nemo_rpo.losses.options import flag, number
from nemo_rpo.losses.pair import PairLogprobs


@dataclass(frozen=True)
class LogRatioLoss(PreferenceLoss):
    r"""A loss of h = a_w - a_l, a(y) = log π(y)/π_ref(y).

    Options:
        beta: β, the strength of the KL constraint (NeMo-Aligner's ``ref_policy_kl_penalty``).
        average_log_probs: a per token of the response instead of summed.
    """

    columns: ClassVar[frozenset[str]] = frozenset()

    beta: float = number(0.1, above=0)
    average_log_probs: bool = flag(False)

    @property
    def needs(self) -> frozenset[str]:
        """Policy and reference, and the columns and lengths that the loss uses."""
        lengths = {"lengths"} if self.average_log_probs else set()
        return frozenset({"policy", "reference"}) | self.columns | lengths

    def difference(self, x: PairLogprobs) -> Tensor:
        """h [pairs], in nats (nats a token if averaged)."""
        chosen, rejected = x.log_ratios(self.average_log_probs)
        return chosen - rejected

    def implicit_margin(self, x: PairLogprobs) -> Tensor:
        """u = βh [pairs], the margin of DPO's implicit rewards."""
        return self.beta * self.difference(x)
