"""The baselines of RE-PO: losses that assume one noise rate for every annotator, or none and damp what looks wrong.

They model label noise already; the EM on top of them would correct twice, and refuses them unless forced.
Throughout, u = β (a_w - a_l) is DPO's margin and p = σ(u).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.base import LogisticLoss
from nemo_rpo.losses.families.sigmoid import DPO
from nemo_rpo.losses.log_ratio import LogRatioLoss
from nemo_rpo.losses.options import number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.reduction import LogMeanExp
from nemo_rpo.losses.registry import register


@register("cdpo")
@dataclass(frozen=True)
class ConservativeDPO(LogRatioLoss):
    r"""cDPO: label smoothing.

    L = -(1-ε) log σ(u) - ε log σ(-u).  Δ = (1-2ε) u.

    Options:
        label_smoothing: ε in [0, ½), the assumed share of wrong labels.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> ConservativeDPO(beta=0.1, label_smoothing=0.1)(x)
    tensor([0.5606])
    """

    models_noise: ClassVar[bool] = True

    label_smoothing: float = number(0.1, at_least=0, below=0.5)

    def pair(self, x: PairLogprobs) -> Tensor:
        u, flip = self.implicit_margin(x), self.label_smoothing
        return -(1 - flip) * F.logsigmoid(u) - flip * F.logsigmoid(-u)

    def delta(self, x: PairLogprobs) -> Tensor:
        return (1 - 2 * self.label_smoothing) * self.implicit_margin(x)


@register("rdpo")
@dataclass(frozen=True)
class RobustDPO(LogRatioLoss):
    r"""rDPO (2403.00409): unbiased under flips at a known rate, and unbounded below.

    L = [-(1-ε) log σ(u) + ε log σ(-u)] / (1-2ε).  Its mean over flips is DPO's loss on clean labels.  Δ = u/(1-2ε).

    Options:
        label_smoothing: ε in [0, ½), the rate of flips.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> RobustDPO(beta=0.1, label_smoothing=0.1)(x)
    tensor([0.4762])
    """

    models_noise: ClassVar[bool] = True

    label_smoothing: float = number(0.1, at_least=0, below=0.5)

    def pair(self, x: PairLogprobs) -> Tensor:
        u, flip = self.implicit_margin(x), self.label_smoothing
        return (-(1 - flip) * F.logsigmoid(u) + flip * F.logsigmoid(-u)) / (1 - 2 * flip)

    def delta(self, x: PairLogprobs) -> Tensor:
        return self.implicit_margin(x) / (1 - 2 * self.label_smoothing)


@register("forward_corrected")
@dataclass(frozen=True)
class ForwardCorrectedDPO(LogRatioLoss, LogisticLoss):
    r"""DPO with the likelihood of what was recorded at a fixed flip rate: RE-DPO with its reliability frozen at 1-ε.

    L = -log[(1-ε) σ(u) + ε σ(-u)].  Exact, as a likelihood of the *recorded* label.

    Options:
        label_smoothing: ε in (0, ½), the rate of flips.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> ForwardCorrectedDPO(beta=0.1, label_smoothing=0.1)(x)
    tensor([0.5549])
    """

    models_noise: ClassVar[bool] = True

    label_smoothing: float = number(0.1, above=0, below=0.5)

    def margin(self, x: PairLogprobs) -> Tensor:
        u = self.implicit_margin(x)
        return recorded_log_odds(u, torch.full_like(u, math.log(self.label_smoothing / (1 - self.label_smoothing))))


@register("udpo")
@dataclass(frozen=True)
class UncertainDPO(LogRatioLoss, LogisticLoss):
    r"""UDPO (2607.03248), an alias of ``forward_corrected``.

    L = -log[(σ(u) + a σ(-u)) / (1+a)]: the paper's -log[σ(u) + a σ(-u)] and a constant, log(1+a), that makes it a
    likelihood. It is ``forward_corrected`` at ε = a/(1+a), the same gradients and the same link.

    Options:
        a: in (0, 1), odds of a flip.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> UncertainDPO(beta=0.1, a=1 / 9)(x)
    tensor([0.5549])
    """

    models_noise: ClassVar[bool] = True

    a: float = number(1 / 9, above=0, below=1)

    def margin(self, x: PairLogprobs) -> Tensor:
        u = self.implicit_margin(x)
        return recorded_log_odds(u, torch.full_like(u, math.log(self.a)))


def recorded_log_odds(u: Tensor, flip_log_odds: Tensor) -> Tensor:
    """Log-odds of what is recorded [pairs], of a preference of log-odds ``u`` that is flipped at odds e^``flip``.

    log[(1-ε) σ(u) + ε σ(-u)] - log[ε σ(u) + (1-ε) σ(-u)],  ε = σ(``flip_log_odds``).

    >>> recorded_log_odds(torch.tensor([2.0, 50.0]), torch.tensor([-2.0, -2.0]))
    tensor([1.3250, 2.0000])
    """
    won, lost = F.logsigmoid(u), F.logsigmoid(-u)
    right, wrong = F.logsigmoid(-flip_log_odds), F.logsigmoid(flip_log_odds)
    return torch.logaddexp(right + won, wrong + lost) - torch.logaddexp(wrong + won, right + lost)


@register("holder_dpo")
@dataclass(frozen=True)
class HolderDPO(LogRatioLoss):
    r"""Hölder-DPO (2505.17859): redescending, a pair with p → 0 or p → 1 stops pulling.

    L = -(1+γ) p^γ + γ p^{1+γ}.

    Options:
        gamma: γ, robustness; the larger, the earlier an unlikely pair is let go.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> HolderDPO(beta=0.1, gamma=2.0)(x)
    tensor([-0.6374])
    """

    models_noise: ClassVar[bool] = True

    gamma: float = number(2.0, above=0)

    def pair(self, x: PairLogprobs) -> Tensor:
        logp = F.logsigmoid(self.implicit_margin(x))
        return self.gamma * torch.exp((1 + self.gamma) * logp) - (1 + self.gamma) * torch.exp(self.gamma * logp)


@register("ropo")
@dataclass(frozen=True)
class ROPO(LogRatioLoss):
    r"""Robust Preference Optimization with a conservative gradient (2404.04102).

    L = 4α/(1+α)² [-log σ(u) + α σ(-u)].

    Options:
        alpha: α, weight of the bounded part.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> ROPO(beta=0.1, alpha=14.0)(x)
    tensor([1.5495])
    """

    models_noise: ClassVar[bool] = True

    alpha: float = number(14.0, above=0)

    def pair(self, x: PairLogprobs) -> Tensor:
        u, alpha = self.implicit_margin(x), self.alpha
        return 4 * alpha / (1 + alpha) ** 2 * (alpha * torch.sigmoid(-u) - F.logsigmoid(u))


@register("dr_dpo")
@dataclass(frozen=True)
class DrDPO(DPO):
    r"""Distributionally robustifying DPO (2407.07880).

    DPO's loss of a pair, ℓ = -log σ(u), and over the *global* batch L = -β' log mean exp(-ℓ/β'); see
    :class:`~nemo_rpo.losses.reduction.LogMeanExp`. β' → ∞ is DPO.

    Options:
        beta_prime: β'; the smaller, the less an unlikely pair counts.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(*(torch.tensor(v) for v in ([-42.0, -40.0], [-51.5, -40.0], [-44.25, -40.0], [-50.0, -60.0])))
    >>> loss = DrDPO(beta=0.1, beta_prime=1.0)
    >>> each = loss(x)
    >>> each, loss.reduction.value(loss.reduction.surrogate(each).sum(), loss.reduction.statistic(each).sum(), 2)
    (tensor([0.5231, 2.1269]), tensor(1.0330))
    """

    models_noise: ClassVar[bool] = True

    beta_prime: float = number(1.0, above=0)

    @property
    def reduction(self) -> LogMeanExp:
        """The soft minimum over the global batch that Dr. DPO trains on."""
        return LogMeanExp(self.beta_prime)
