"""The hinge: preferences as a maximum-margin problem."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.log_ratio import LogRatioLoss
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("hinge")
@dataclass(frozen=True)
class Hinge(LogRatioLoss):
    r"""The calibration loss of SLiC-HF (2305.10425) on DPO's margin (2309.06657).

    L = max(0, 1 - u),  u = β (a_w - a_l).  Δ = 2u within |u| < 1, and u + sign(u) beyond.

    Options:
        beta: 1/β is the margin in nats beyond which a pair is left alone.
        average_log_probs: see :class:`LogRatioLoss`.

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> Hinge(beta=0.1)(x)
    tensor([0.6250])
    """

    def pair(self, x: PairLogprobs) -> Tensor:
        return F.relu(1 - self.implicit_margin(x))
