"""Losses of iterated training towards a Nash policy: one log-ratio difference against a previous iterate π_t.

π_t's log-probs are the column ``base_logps``; they come from the same machinery as the reference's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nemo_rpo.losses.base import LogisticLoss, PreferenceLoss
from nemo_rpo.losses.families.margins import soft_label_link, soft_label_loss
from nemo_rpo.losses.families.squared import GapRegression
from nemo_rpo.losses.options import number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("inpo")
@dataclass(frozen=True)
class INPO(GapRegression):
    r"""Iterative Nash Policy Optimization (2407.00617).

    L = (h - 1/(2β))²,  h = d - (τ/β) d_ref - ((β-τ)/β) d_t,  d = log π(w) - log π(l), and so under π_ref and the
    previous iterate π_t.  Δ = 2h/β.  τ = 0 is IPO against π_t, τ = β is IPO against π_ref.

    Options:
        beta: the paper's η (a KL weight; neither ONPO's η, a step size, nor an annotator's reliability).
        tau: τ, the part of it that pulls to the reference.

    >>> import torch
    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  response_columns={"base_logps": (torch.tensor([-43.0]), torch.tensor([-50.5]))})
    >>> INPO(beta=0.01, tau=0.005)(x)
    tensor([2220.7656])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "base_logps"})
    needs_link_tau: ClassVar[bool] = True

    beta: float = number(0.0075, above=0)
    tau: float = number(0.0025, at_least=0)

    def regressor(self, x: PairLogprobs) -> Tensor:
        reference, base = x.log_ratios(), x.base_log_ratios()
        pull = self.tau / self.beta
        return pull * (reference[0] - reference[1]) + (1 - pull) * (base[0] - base[1])

    def target(self, x: PairLogprobs) -> float:
        return 1 / (2 * self.beta)


@register("onpo")
@dataclass(frozen=True)
class ONPO(GapRegression):
    r"""Optimistic Nash Policy Optimization (2502.16852).

    L = (g - η/2)²,  g = log π(w)/π(l) - log π'(w)/π'(l),  π' the base iterate.  Δ = 2ηg.  It is IPO with β = 1/η.

    Options:
        step_size: η, a learning rate: the larger, the larger the target (the reverse of INPO's η).

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...                  response_columns={"base_logps": (torch.tensor([-43.0]), torch.tensor([-50.5]))})
    >>> ONPO(step_size=1.0)(x)
    tensor([2.2500])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "base_logps"})

    step_size: float = number(0.5, above=0)

    def regressor(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.base_log_ratios()
        return chosen - rejected

    def target(self, x: PairLogprobs) -> float:
        return self.step_size / 2


@register("egpo")
@dataclass(frozen=True)
class EGPO(GapRegression):
    r"""Extragradient Preference Optimization (2503.08942).

    L = (h - (P_w - P_l)/β)²,  h = a_w - a_l against the reference,  P the probability to beat the opponent policy.
    Δ = 4 h (P_w - P_l)/β.  A difference of ½ is IPO; in general this is ``rpo_sq``/β².

    Options:
        beta: β.

    >>> import torch
    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  pair_columns={"win_rate_chosen": torch.tensor([0.7]),
    ...                                "win_rate_rejected": torch.tensor([0.2])})
    >>> EGPO(beta=0.1)(x)
    tensor([1.5625])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "win_rate_chosen", "win_rate_rejected"})
    needs_link_tau: ClassVar[bool] = True

    beta: float = number(0.1, above=0)

    def regressor(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.log_ratios()
        return chosen - rejected

    def target(self, x: PairLogprobs) -> Tensor:
        return (x.pair_columns["win_rate_chosen"] - x.pair_columns["win_rate_rejected"]) / self.beta


@dataclass(frozen=True)
class IterateMargin(PreferenceLoss):
    r"""A loss of DPO's margin against the previous iterate, u = β (log π/π_t(w) - log π/π_t(l)).

    Options:
        beta: β (the paper's η).
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "base_logps"})

    beta: float = number(0.1, above=0)

    def margin(self, x: PairLogprobs) -> Tensor:
        """β times the difference of the log-ratios to the previous iterate [pairs]."""
        chosen, rejected = x.base_log_ratios()
        return self.beta * (chosen - rejected)


@register("dno")
@dataclass(frozen=True)
class DNO(IterateMargin):
    r"""Direct Nash Optimization (2404.03715): a soft label from the rewards' difference.

    L = -q log σ(u) - (1-q) log σ(-u),  q = σ(m),  m = r_w - r_l the label's ``margin``.  Δ = tanh(m/2) u.

    Options: see :class:`IterateMargin`.

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...                  response_columns={"base_logps": (torch.tensor([-43.0]), torch.tensor([-50.5]))},
    ...                  pair_columns={"margin": torch.tensor([0.5])})
    >>> DNO(beta=0.1)(x)
    tensor([0.6736])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "base_logps", "margin"})

    def pair(self, x: PairLogprobs) -> Tensor:
        return soft_label_loss(self.margin(x), x.pair_columns["margin"])

    def delta(self, x: PairLogprobs) -> Tensor:
        return soft_label_link(self.margin(x), x.pair_columns["margin"])


@register("dno_prct")
@dataclass(frozen=True)
class DNOPrct(IterateMargin, LogisticLoss):
    r"""The practical form of Direct Nash Optimization (2404.03715): DPO against the previous iterate.

    L = -log σ(u).  Exact.

    Options: see :class:`IterateMargin`.

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...                  response_columns={"base_logps": (torch.tensor([-43.0]), torch.tensor([-50.5]))})
    >>> DNOPrct(beta=0.1)(x)
    tensor([0.5981])
    """
