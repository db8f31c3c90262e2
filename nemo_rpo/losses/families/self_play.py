"""Self-play losses: each response regressed to its own target, the advantage it should have over the previous iterate.

The targets are the label's ("the winner should win this often") and stay when a pair is turned round: were they to
follow the responses, both directions would be the same number. They are of the order of 1/β, hundreds of nats, so the
link needs a temperature, or every posterior is 0 or 1.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from nemo_rpo.losses.base import PreferenceLoss
from nemo_rpo.losses.options import number
from nemo_rpo.losses.pair import PairLogprobs, Two
from nemo_rpo.losses.registry import register


@dataclass(frozen=True)
class TargetRegression(PreferenceLoss):
    r"""L = ½ [(a_w - t_w)² + (a_l - t_l)²] with targets that stay with the label.  Δ = (a_w - a_l)(t_w - t_l).

    Options:
        beta: β; targets are of the order of 1/β nats.
    """

    needs_link_tau: ClassVar[bool] = True

    beta: float = number(0.001, above=0)

    @abstractmethod
    def targets(self, x: PairLogprobs) -> tuple[Tensor | float, Tensor | float]:
        """t of chosen and rejected, in nats."""

    def ratios(self, x: PairLogprobs) -> Two:
        """a of chosen and rejected, [pairs] each."""
        return x.log_ratios()

    def pair(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = (a - t for a, t in zip(self.ratios(x), self.targets(x), strict=True))
        return (chosen.square() + rejected.square()) / 2

    def delta(self, x: PairLogprobs) -> Tensor:
        (chosen, rejected), (target_chosen, target_rejected) = self.ratios(x), self.targets(x)
        return (chosen - rejected) * (target_chosen - target_rejected)


@register("sppo_hard")
@dataclass(frozen=True)
class SPPOHard(TargetRegression):
    r"""Self-Play Preference Optimization with hard win rates (2405.00675).

    L = ½ [(a_w - 1/(2β))² + (a_l + 1/(2β))²],  a = log π/π_ref, π_ref the previous iterate.  TRL's has no ½.
    Δ = (a_w - a_l)/β.

    Options:
        beta: β (the paper's 1/η).

    >>> import torch
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]))
    >>> SPPOHard(beta=0.1)(x)
    tensor([9.9062])
    """

    def targets(self, x: PairLogprobs) -> tuple[float, float]:
        return 1 / (2 * self.beta), -1 / (2 * self.beta)


@register("sppo")
@dataclass(frozen=True)
class SPPO(TargetRegression):
    r"""Self-Play Preference Optimization with estimated win rates (2405.00675).

    L = ½ [(a_w - (P_w - ½)/β)² + (a_l - (P_l - ½)/β)²],  P the probability to beat the previous iterate, which is the
    reference.  Δ = (P_w - P_l)(a_w - a_l)/β.

    Options:
        beta: β.

    >>> import torch
    >>> x = PairLogprobs(*(torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)),
    ...                  pair_columns={"win_rate_chosen": torch.tensor([0.75]),
    ...                                "win_rate_rejected": torch.tensor([0.25])})
    >>> SPPO(beta=0.01)(x)
    tensor([534.9062])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "win_rate_chosen", "win_rate_rejected"})

    def targets(self, x: PairLogprobs) -> Two:
        chosen, rejected = x.pair_columns["win_rate_chosen"], x.pair_columns["win_rate_rejected"]
        return (chosen - 0.5) / self.beta, (rejected - 0.5) / self.beta


@register("gpo")
@dataclass(frozen=True)
class GPO(TargetRegression):
    r"""General Preference Optimization (2410.02197): SPPO towards the scores of a general preference model.

    L = ½ [(a_w - s_w/β)² + (a_l - s_l/β)²],  a = log π/π_t,  s = s(y ≻ π_t).  Δ = (s_w - s_l)(a_w - a_l)/β.
    (Not the *Generalised* PO of 2402.05749.)

    Options:
        beta: β.

    >>> import torch
    >>> x = PairLogprobs(
    ...     torch.tensor([-42.0]), torch.tensor([-51.5]),
    ...     response_columns={"base_logps": (torch.tensor([-44.25]), torch.tensor([-50.0]))},
    ...     pair_columns={"preference_score_chosen": torch.tensor([1.0]),
    ...                   "preference_score_rejected": torch.tensor([-0.5])})
    >>> GPO(beta=0.01)(x)
    tensor([5953.6562])
    """

    needs: ClassVar[frozenset[str]] = frozenset(
        {"policy", "base_logps", "preference_score_chosen", "preference_score_rejected"}
    )

    def ratios(self, x: PairLogprobs) -> Two:
        return x.base_log_ratios()

    def targets(self, x: PairLogprobs) -> Two:
        chosen, rejected = x.pair_columns["preference_score_chosen"], x.pair_columns["preference_score_rejected"]
        return chosen / self.beta, rejected / self.beta
