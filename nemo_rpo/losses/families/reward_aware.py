"""NVIDIA's Reward-aware Preference Optimization (2406.11704), under NeMo-Aligner's names.

"RPO" here is *reward-aware*: it matches the policy's margin u = β (a_w - a_l) to the gap g = scale · m of given
rewards, m = reward(chosen) - reward(rejected), the column ``margin``. The gap is the label's and stays when the pair is
turned round; under the EM it must not be negative, or a label would be doubted for what its own reward says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.families.margins import soft_label_link
from nemo_rpo.losses.families.squared import GapRegression
from nemo_rpo.losses.log_ratio import LogRatioLoss
from nemo_rpo.losses.options import number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@dataclass(frozen=True)
class RewardAwareLoss(LogRatioLoss):
    """A distance between the policy's margin u and the reward gap g.

    Options:
        gt_reward_scale: scale of the given rewards.
        beta, average_log_probs: see :class:`LogRatioLoss` (NeMo-Aligner's ``ref_policy_kl_penalty`` and
            ``preference_average_log_probs``).
    """

    columns: ClassVar[frozenset[str]] = frozenset({"margin"})

    beta: float = number(0.2, above=0)
    gt_reward_scale: float = number(1.0, above=0)

    def gap(self, x: PairLogprobs) -> Tensor:
        """g [pairs]."""
        return self.gt_reward_scale * x.pair_columns["margin"]


@register("rpo_sq")
@dataclass(frozen=True)
class RPOSquared(RewardAwareLoss, GapRegression):
    r"""L = (u - g)²,  Δ = 4 u g.

    >>> import torch
    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  pair_columns={"margin": torch.tensor([0.5])})
    >>> RPOSquared(beta=0.1)(x)
    tensor([0.0156])
    """

    def regressor(self, x: PairLogprobs) -> Tensor:
        return self.implicit_margin(x)

    def target(self, x: PairLogprobs) -> Tensor:
        return self.gap(x)


@register("rpo_bwd_kl")
@dataclass(frozen=True)
class RPOBackwardKL(RewardAwareLoss):
    r"""L = KL(σ(g) ‖ σ(u)) of two Bernoulli laws: MMPO less the entropy of its target.  Δ = tanh(g/2) u.

    >>> import torch
    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  pair_columns={"margin": torch.tensor([2.2])})
    >>> RPOBackwardKL(beta=0.1)(x)
    tensor([0.2360])
    """

    def pair(self, x: PairLogprobs) -> Tensor:
        return _bernoulli_kl(self.gap(x), self.implicit_margin(x))

    def delta(self, x: PairLogprobs) -> Tensor:
        return soft_label_link(self.implicit_margin(x), self.gap(x))


@register("rpo_fwd_kl")
@dataclass(frozen=True)
class RPOForwardKL(RewardAwareLoss):
    r"""L = KL(σ(u) ‖ σ(g)) of two Bernoulli laws.  Δ = tanh(u/2) g.

    >>> import torch
    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  pair_columns={"margin": torch.tensor([2.2])})
    >>> RPOForwardKL(beta=0.1)(x)
    tensor([0.3253])
    """

    def pair(self, x: PairLogprobs) -> Tensor:
        return _bernoulli_kl(self.implicit_margin(x), self.gap(x))

    def delta(self, x: PairLogprobs) -> Tensor:
        return soft_label_link(self.gap(x), self.implicit_margin(x))


def _bernoulli_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(Bernoulli(σ(p)) ‖ Bernoulli(σ(q))) of two log-odds [pairs]."""
    won = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q))
    lost = (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))
    return won + lost
