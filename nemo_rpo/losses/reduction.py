"""From the losses of pairs to the loss of the *global* batch, in one pass and exactly, whatever the micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Reduction(Protocol):
    r"""How the unreduced losses ℓ [pairs] of one global batch become its loss L.

    The gradient of L has to be exact although no rank and no micro-batch sees the whole batch. Both reductions here
    have ∇L = Σ_i ∇s(ℓ_i) / Σ_i t(ℓ_i), sums over the global batch: so sum ``surrogate`` and ``statistic`` over
    micro-batches and data-parallel ranks (12 bytes a step with the count), back-propagate the surrogate, and divide
    the accumulated gradients by the statistic's sum, the way a loss per token is divided by the number of tokens.
    No second forward pass is needed. Row weights multiply both.
    """

    def surrogate(self, loss: Tensor) -> Tensor:
        """s(ℓ) [pairs], to be summed and back-propagated."""
        ...

    def statistic(self, loss: Tensor) -> Tensor:
        """t(ℓ) [pairs], detached; its global sum divides the gradient."""
        ...

    def value(self, surrogate_sum: Tensor, statistic_sum: Tensor, count: Tensor) -> Tensor:
        """L itself, from the global sums and the number of pairs."""
        ...


@dataclass(frozen=True)
class Mean:
    """L = mean ℓ over the global batch; s = ℓ, t = 1."""

    def surrogate(self, loss: Tensor) -> Tensor:
        """ℓ itself [pairs]."""
        return loss

    def statistic(self, loss: Tensor) -> Tensor:
        """1 a pair."""
        return torch.ones_like(loss.detach())

    def value(self, surrogate_sum: Tensor, statistic_sum: Tensor, count: Tensor) -> Tensor:
        """Σℓ / n."""
        return surrogate_sum / statistic_sum


@dataclass(frozen=True)
class LogMeanExp:
    r"""L = -β' log mean exp(-ℓ/β'), the soft minimum by which Dr. DPO turns away from hopeless pairs.

    t = exp(-ℓ/β') and s = -β' t, hence ∇L = Σ t_i ∇ℓ_i / Σ t_i, a softmax-weighted mean. For ℓ ≥ 0, t ≤ 1; it
    leaves float32 only where every pair of the batch has a loss of more than 87 β'.
    """

    beta: float

    def surrogate(self, loss: Tensor) -> Tensor:
        """-β' exp(-ℓ/β') [pairs], whose gradient is the numerator of L's."""
        return -self.beta * torch.exp(-loss / self.beta)

    def statistic(self, loss: Tensor) -> Tensor:
        """exp(-ℓ/β') [pairs]."""
        return torch.exp(-loss.detach() / self.beta)

    def value(self, surrogate_sum: Tensor, statistic_sum: Tensor, count: Tensor) -> Tensor:
        """-β' log(Σ exp(-ℓ/β') / n)."""
        return -self.beta * torch.log(statistic_sum / count)
