"""Losses that need no reference policy: SimPO, CPO, ORPO, ASFT, and the verdicts of a generative judge.

Their Δ is not 0 before training: the initial model's own likelihoods would already judge labels. Warm the E-step up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
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

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...                  chosen_length=torch.tensor([30]), rejected_length=torch.tensor([41]))
    >>> SimPO(beta=2.5, gamma_beta_ratio=0.55)(x)
    tensor([1.8973])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "lengths"})

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
        """The policy, and lengths where the anchor is a mean over tokens."""
        return frozenset({"policy", "lengths"} if self.cpo_alpha and self.nll == "mean" else {"policy"})

    def margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.policy()
        return self.beta * (chosen - rejected)

    def anchor(self, x: PairLogprobs) -> Tensor | None:
        if not self.cpo_alpha:
            return None
        chosen, _ = x.mean_policy() if self.nll == "mean" else x.policy()
        return -self.cpo_alpha * chosen


@register("genrm")
@dataclass(frozen=True)
class GenRM(PreferenceLoss):
    r"""Verdicts of a generative reward model (2410.12832), normalised over the two answers.

    The responses are the two verdicts that a judge may give. p = π(w)/(π(w) + π(l)) is the softmax over them, so that
    p = σ(u) with u = log π(w) - log π(l), and the cross-entropy against q, the probability that the recorded verdict is
    right, is

    L = -q log σ(βu) - (1-q) log σ(-βu).  Δ = (2q - 1) βu: q stays with the label.  At q = 1, β = 1 it is CPO without
    its anchor, -log p.

    Options:
        beta: β, 1 for the likelihood of the verdicts.

    >>> x = PairLogprobs(torch.tensor([0.6]).log(), torch.tensor([0.2]).log(),
    ...                  pair_columns={"win_rate_chosen": torch.tensor([0.9])})
    >>> GenRM()(x), -0.9 * torch.tensor([0.75]).log() - 0.1 * torch.tensor([0.25]).log()
    (tensor([0.3975]), tensor([0.3975]))
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "win_rate_chosen"})

    beta: float = number(1.0, above=0)

    def pair(self, x: PairLogprobs) -> Tensor:
        u, q = self._margin(x), x.pair_columns["win_rate_chosen"]
        return -q * F.logsigmoid(u) - (1 - q) * F.logsigmoid(-u)

    def delta(self, x: PairLogprobs) -> Tensor:
        return (2 * x.pair_columns["win_rate_chosen"] - 1) * self._margin(x)

    def _margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.policy()
        return self.beta * (chosen - rejected)


@dataclass(frozen=True)
class OddsLoss(AnchoredLoss):
    r"""A loss of the odds o(y) = log p/(1-p), p(y) = π(y)^{1/|y|}, beside the NLL of the chosen response.

    Options:
        beta: weight of the preference part (the papers' λ).
        nll_weight: weight of the anchor, the NLL a token; 0 trains on the preference part alone.
        link_terms: see :class:`AnchoredLoss`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "lengths"})

    beta: float = number(0.1, above=0)
    nll_weight: float = number(1.0, at_least=0)

    def odds(self, x: PairLogprobs) -> tuple[Tensor, Tensor]:
        """o of chosen and rejected, [pairs] each."""
        chosen, rejected = (logp - _log1mexp(logp) for logp in x.mean_policy())
        return chosen, rejected

    def anchor(self, x: PairLogprobs) -> Tensor | None:
        return -self.nll_weight * x.mean_policy()[0] if self.nll_weight else None


@register("orpo")
@dataclass(frozen=True)
class ORPO(OddsLoss):
    r"""Odds-Ratio Preference Optimization (2403.07691).

    L = NLL(w)/|w| - λ log σ(o_w - o_l).  Exact on the preference part, Δ = o_w - o_l; λ is its importance in the loss
    and no part of the link.

    Options: see :class:`OddsLoss`.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...                  chosen_length=torch.tensor([30]), rejected_length=torch.tensor([41]))
    >>> ORPO(beta=1.0, nll_weight=0.0)(x), ORPO(beta=0.1)(x)
    (tensor([0.7959]), tensor([1.4796]))
    """

    exact: ClassVar[bool] = True

    def pair(self, x: PairLogprobs) -> Tensor:
        return -self.beta * F.logsigmoid(self.delta(x))

    def delta(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = self.odds(x)
        return chosen - rejected


@register("asft")
@dataclass(frozen=True)
class ASFT(OddsLoss):
    r"""Aligned Supervised Fine-Tuning (2409.10571; as given in 2502.01237). Not the *Anchored* SFT of 2509.23753.

    L = NLL(w)/|w| + λ [-log σ(o_w) - log σ(-o_l)].  The preference part moves p_w up and p_l down in absolute terms;
    ORPO's is this plus log Z.  Δ = λ (o_w - o_l).

    Options: see :class:`OddsLoss`; ``beta=1, nll_weight=0`` is the pure alignment loss.

    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...                  chosen_length=torch.tensor([30]), rejected_length=torch.tensor([41]))
    >>> ASFT(beta=1.0, nll_weight=0.0)(x), ASFT(beta=0.1)(x)
    (tensor([1.7351]), tensor([1.5735]))
    """

    def pair(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = self.odds(x)
        return -self.beta * (F.logsigmoid(chosen) + F.logsigmoid(-rejected))

    def delta(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = self.odds(x)
        return self.beta * (chosen - rejected)


def _log1mexp(logp: Tensor) -> Tensor:
    """log(1 - e^{logp}) for logp ≤ 0, finite also at certainty, which low precision reaches."""
    return torch.log(-torch.expm1(logp.clamp(max=-torch.finfo(logp.dtype).eps)))
