"""Logistic losses of log-ratio differences: DPO and its generalisation to f-divergences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.base import LogisticLoss
from nemo_rpo.losses.log_ratio import LogRatioLoss
from nemo_rpo.losses.options import choice, number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("dpo")
@dataclass(frozen=True)
class DPO(LogRatioLoss, LogisticLoss):
    r"""Direct Preference Optimization (2305.18290).

    L = -log σ(u),  u = β (a_w - a_l),  a(y) = log π(y)/π_ref(y) summed over the response.  Exact: Δ = u.

    Options:
        beta, average_log_probs: see :class:`LogRatioLoss` (averaged, this is TRL's ``sigmoid_norm``).

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> DPO(beta=0.1)(x)
    tensor([0.5231])
    """

    def margin(self, x: PairLogprobs) -> Tensor:
        return self.implicit_margin(x)


# Beyond this exponent the divergences' slopes go on as straight lines. Long sums of log-ratios leave float32's range,
# and a clamp would silence exactly the pairs that have gone furthest astray; the line keeps the order of the margins
# and a pull back, and its square (a gradient norm) still fits float32.
_LINEAR_FROM = 40.0


def _expm1(z: Tensor) -> Tensor:
    beyond = F.relu(z - _LINEAR_FROM)
    return torch.expm1(z.clamp(max=_LINEAR_FROM)) + torch.exp(z.new_tensor(_LINEAR_FROM)) * beyond


@register("f_dpo")
@dataclass(frozen=True)
class FDPO(LogRatioLoss, LogisticLoss):
    r"""DPO under an f-divergence constraint (2309.16240).

    L = -log σ(β (f'(ρ_w) - f'(ρ_l))),  ρ = π/π_ref = e^a.  Exact for every f. Up to constants, which cancel::

        reverse_kl  f' = a                       (DPO)
        forward_kl  f' = -e^{-a}
        js          f' = log σ(a)
        alpha       f' = (1 - e^{-αa}) / α       (α → 0: reverse KL; α = 1: forward KL)

    Options:
        divergence: one of the four.
        alpha: α in [0, 1], the paper's; TRL's ``f_alpha_divergence_coef`` is 1 - α.
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> [round(FDPO(divergence=f, alpha=0.3)(x).item(), 4) for f in ("reverse_kl", "forward_kl", "js", "alpha")]
    [0.5231, 0.4981, 0.6163, 0.5321]
    """

    divergence: str = choice("reverse_kl", "forward_kl", "js", "alpha")
    alpha: float = number(0.5, at_least=0, at_most=1)

    def margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = (self._slope(a) for a in x.log_ratios(self.average_log_probs))
        return self.beta * (chosen - rejected)

    def _slope(self, a: Tensor) -> Tensor:
        """f'(e^a) [pairs], less its constant."""
        if self.divergence == "js":
            return F.logsigmoid(a)
        alpha = {"reverse_kl": 0.0, "forward_kl": 1.0, "alpha": self.alpha}[self.divergence]
        return -_expm1(-alpha * a) / alpha if alpha else a
