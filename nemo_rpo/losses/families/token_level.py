"""Losses that look inside the sequence: token-level KL (TDPO), and the turns of a conversation (DMPO)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nemo_rpo.losses.base import LogisticLoss
from nemo_rpo.losses.options import number
from nemo_rpo.losses.pair import PairLogprobs
from nemo_rpo.losses.registry import register


@register("tdpo1")
@dataclass(frozen=True)
class TDPO1(LogisticLoss):
    r"""Token-level DPO, first form (2404.11999).

    L = -log σ(β [(a_w - a_l) - (k_l - k_w)]),  k(y) = Σ_t KL(π_ref(·|x, y_<t) ‖ π(·|x, y_<t)), the column ``kl``.
    Exact; k follows its response.

    Options:
        beta: β.

    >>> kl = {"kl": (torch.tensor([3.2]), torch.tensor([4.7]))}
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]),
    ...                  response_columns=kl)
    >>> TDPO1(beta=0.1)(x)
    tensor([0.5870])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "kl"})

    beta: float = number(0.1, above=0)

    def margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.log_ratios()
        kl_chosen, kl_rejected = x.response_columns["kl"]
        return self.beta * (chosen - rejected - (kl_rejected - kl_chosen))


@register("tdpo2")
@dataclass(frozen=True)
class TDPO2(LogisticLoss):
    r"""Token-level DPO, second form (2404.11999).

    L = -log σ(β [(a_w - a_l) - α (k_l - sg(k_w))]),  sg: no gradient.  Exact in value; but turned round, the
    stop-gradient moves to the *new* chosen, so L(l≻w) is recomputed and never -log σ(-u) of the same tensor.

    Options:
        beta: β.
        alpha: α, weight of the KL difference; 0 is DPO.

    >>> kl = {"kl": (torch.tensor([3.2]), torch.tensor([4.7]))}
    >>> x = PairLogprobs(torch.tensor([-42.0]), torch.tensor([-51.5]), torch.tensor([-44.25]), torch.tensor([-50.0]),
    ...                  response_columns=kl)
    >>> TDPO2(beta=0.1, alpha=0.5)(x)
    tensor([0.5544])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "kl"})

    beta: float = number(0.1, above=0)
    alpha: float = number(0.5, at_least=0)

    def margin(self, x: PairLogprobs) -> Tensor:
        chosen, rejected = x.log_ratios()
        kl_chosen, kl_rejected = x.response_columns["kl"]
        return self.beta * (chosen - rejected - self.alpha * (kl_rejected - kl_chosen.detach()))


def turn_weights(turns: Tensor, width: int, gamma: float) -> Tensor:
    r"""φ(j, T) = γ^j (1 - γ^{T-j}) / (1 - γ^T) for the turns j = 0 … T-1 of a dialogue, 0 beyond [pairs, width].

    γ = 1 is the limit (T - j)/T. Floating ``turns`` [pairs] sets the dtype.

    >>> turn_weights(torch.tensor([1.0, 2.0, 3.0]), 3, 0.7)
    tensor([[1.0000, 0.0000, 0.0000],
            [1.0000, 0.4118, 0.0000],
            [1.0000, 0.5434, 0.2237]])
    """
    j = torch.arange(width, dtype=turns.dtype, device=turns.device)
    left = (turns[:, None] - j).clamp(min=0)
    length = turns[:, None].clamp(min=1)
    if gamma == 1:
        return left / length
    return gamma**j * (1 - gamma**left) / (1 - gamma**length)


@register("dmpo")
@dataclass(frozen=True)
class DMPO(LogisticLoss):
    r"""Direct Multi-turn Preference Optimization (2406.14868).

    L = -log σ(β Σ_j φ(j, T_w) a_j(w) - β Σ_j φ(j, T_l) a_j(l)),  a_j = log π/π_ref of the j-th assistant turn, φ as in
    :func:`turn_weights`.  Exact; φ and T follow their trajectory. One turn is DPO.

    Options:
        beta: β.
        gamma: γ in (0, 1], discount of later turns.

    >>> turns = {"turn_log_ratios": (torch.tensor([[1.5, 0.5, 0.25]]), torch.tensor([[-0.5, -1.0, 0.0]])),
    ...          "turns": (torch.tensor([3]), torch.tensor([2]))}
    >>> logps = [torch.tensor([v]) for v in (-42.0, -51.5, -44.25, -50.0)]
    >>> DMPO(beta=0.1, gamma=0.7)(PairLogprobs(*logps, response_columns=turns))
    tensor([0.5655])
    """

    needs: ClassVar[frozenset[str]] = frozenset({"policy", "reference", "turn_log_ratios", "turns"})

    beta: float = number(0.1, above=0)
    gamma: float = number(0.7, above=0, at_most=1)

    def margin(self, x: PairLogprobs) -> Tensor:
        ratios, turns = x.response_columns["turn_log_ratios"], x.response_columns["turns"]
        chosen, rejected = (self._discounted(*of) for of in zip(ratios, turns, strict=True))
        return self.beta * (chosen - rejected)

    def _discounted(self, ratios: Tensor, turns: Tensor) -> Tensor:
        return (turn_weights(turns.to(ratios.dtype), ratios.shape[-1], self.gamma) * ratios).sum(-1)
