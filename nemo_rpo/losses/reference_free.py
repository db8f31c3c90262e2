"""Losses that need no reference policy: SimPO and CPO."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.base import AnchoredLoss, LogisticLoss, PreferenceLoss
from nemo_rpo.losses.options import choice, number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("simpo")
@dataclass(frozen=True)
class SimPO(PreferenceLoss):
    r"""Simple Preference Optimization (2405.14734).

    L = -log σ(s - γ),  s = β (log π(w)/|w| - log π(l)/|l|).  Turned round: -log σ(-s - γ), the margin γ stays; an
    undecided pair (s = 0) then has p = ½, and 1 - Z is the Rao-Kupper probability of a tie.

    Options:
        beta: β.
        gamma_beta_ratio: γ/β, the parametrisation of the authors' code (TRL's ``simpo_gamma`` is γ itself).

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...                  chosen_length=torch.tensor([30]), rejected_length=torch.tensor([41]))
    >>> SimPO(beta=2.5, gamma_beta_ratio=0.55)(x)
    tensor([1.8973])
    """

    needs = frozenset({"policy", "lengths"})

    beta: float = number(2.5, above=0)
    gamma_beta_ratio: float = number(0.55, at_least=0)

    def pair(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.mean_policy()
        return -F.logsigmoid(self.beta * (chosen - rejected - self.gamma_beta_ratio))


@register("cpo")
@dataclass(frozen=True)
class CPO(AnchoredLoss, LogisticLoss):
    r"""Contrastive Preference Optimization (2401.08417).

    L = -log σ(β (log π(w) - log π(l))) + α NLL(w).  The link is exact on the preference part; the NLL is the anchor,
    row by row (a batch-mean cross-entropy has no value for a turned pair).

    Options:
        beta: β.
        cpo_alpha: α, weight of the NLL.
        nll: per token of the row (``mean``, what released code trains on), or ``sum`` (the paper's equation).
        link_terms: see :class:`AnchoredLoss`.

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...                  chosen_length=torch.tensor([30]), rejected_length=torch.tensor([41]))
    >>> CPO(beta=0.1)(x), CPO(beta=0.1, cpo_alpha=0.0)(x)
    (tensor([1.7270]), tensor([0.3270]))
    """

    beta: float = number(0.1, above=0)
    cpo_alpha: float = number(1.0, at_least=0)
    nll: str = choice("mean", "sum")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"policy", "lengths"} if self.cpo_alpha and self.nll == "mean" else {"policy"})

    def margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.policy()
        return self.beta * (chosen - rejected)

    def anchor(self, x: PairLogprobs) -> Tensor | None:
        if not self.cpo_alpha:
            return None
        chosen, _ = x.mean_policy() if self.nll == "mean" else x.policy()
        return -self.cpo_alpha * chosen
