"""Preferences that say by how much: the label's own confidence as a soft target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_rpo.losses.log_ratio import LogRatioLoss
from nemo_rpo.losses.options import number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


def soft_label_loss(u: Tensor, log_odds: Tensor) -> Tensor:
    """Cross-entropy -q log σ(u) - (1-q) log σ(-u) [pairs] against the target q = σ(``log_odds``).

    >>> soft_label_loss(torch.tensor([0.375]), torch.tensor([2.2]))
    tensor([0.5605])
    """
    return -torch.sigmoid(log_odds) * F.logsigmoid(u) - torch.sigmoid(-log_odds) * F.logsigmoid(-u)


def soft_label_link(u: Tensor, log_odds: Tensor) -> Tensor:
    """Δ = (2q - 1) u [pairs] of :func:`soft_label_loss`, the target q staying with the label."""
    return torch.tanh(log_odds / 2) * u


@register("mmpo")
@dataclass(frozen=True)
class MMPO(LogRatioLoss):
    r"""Margin Matching Preference Optimization (2410.03145).

    L = -q log σ(u) - (1-q) log σ(-u),  q = σ(γ m),  u = β (a_w - a_l).  The margin m ≥ 0 is the label's:
    Δ = tanh(γm/2) u.  It is RE-PO with a frozen posterior σ(γm).

    Options:
        gamma: γ, sharpness of the targets (the authors' ``bt_beta``).
        beta, average_log_probs: see :class:`LogRatioLoss`.

    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  pair_columns={"margin": torch.tensor([2.0])})
    >>> MMPO(beta=0.1, gamma=1.1)(x)
    tensor([0.5605])
    """

    columns: ClassVar[frozenset[str]] = frozenset({"margin"})

    beta: float = number(0.01, above=0)
    gamma: float = number(2.2, above=0)

    def pair(self, x: PairLogprobs) -> Tensor:
        return soft_label_loss(self.implicit_margin(x), self.gamma * x.pair_columns["margin"])

    def delta(self, x: PairLogprobs) -> Tensor:
        return soft_label_link(self.implicit_margin(x), self.gamma * x.pair_columns["margin"])
