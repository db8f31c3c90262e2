"""The policy is one more voice about a pair, and like every other it weighs what it has shown to be worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The mean size that the bounded loss brings margins to. Chosen on simulated worlds other than those of
# docs/estimators.md: with less it lets go of hardly any pair, with more of most.
_LARGEST_MEAN = 3.0
# Steps over which the mean size of the margins is taken, about.
_MEMORY = 20.0


class Voice:
    r"""What the policy's margins count for in the E-step, and how large they are.

    ::

        voice(Δ) = weight · Δ        logit w = voice(Δ) + evidence of the votes

    There is no offset: Δ changes its sign when a pair is turned round, and so must what is believed of it; a voice that
    speaks for chosen at Δ = 0 would say how pairs were written down, not which response is better.

    The weight is ``1/link_tau`` until a fit says otherwise. A fit to margins from before training says that they are
    worth nothing (no better than chance, or of a scale that the votes do not tell) by the weight 0.

    Nothing here waits for the device.

    Attributes:
        weight: float64 []. 0: the policy is not believed.
        size: float64 [2], discounted sum of the steps' mean |Δ|, and of the steps.
    """

    def __init__(self, tau: float, device: torch.device | str = "cpu") -> None:
        """``tau``: the configured temperature."""
        self._largest = 1.0 / tau
        self.weight = torch.full((), self._largest, dtype=torch.float64, device=device)
        self.size = torch.zeros(2, dtype=torch.float64, device=device)

    def __call__(self, delta: Tensor) -> Tensor:
        """voice(Δ) [P] in the dtype of ``delta`` [P]."""
        return delta * self.weight.to(delta.dtype)

    def set_weight(self, weight: float) -> None:
        """What a fit has found the policy to be worth."""
        self.weight = torch.full_like(self.weight, weight)

    def temperature(self) -> float:
        """τ = 1/weight; inf where the policy is not believed. Waits for the device."""
        weight = self.weight.item()
        return 1.0 / weight if weight else math.inf

    def hear(self, delta: Tensor, there: Tensor) -> None:
        """Takes in the margins [R] of a step's global batch, those that are ``there`` (bool [R]); the same on all
        ranks.
        """
        size = torch.where(there, delta.double().abs(), 0.0).sum() / there.sum().clamp(min=1)
        keep = 1.0 - 1.0 / _MEMORY
        self.size = torch.where(there.any(), self.size * keep + torch.stack((size, torch.ones_like(size))), self.size)

    def sharpness(self) -> Tensor:
        """u, float64 []: what the bounded loss multiplies margins with: ``1/link_tau``, and less where they have grown
        so large that it would look at hardly any pair any more.
        """
        total, steps = self.size
        mean = total / steps.clamp(min=1.0 / _MEMORY)
        return (_LARGEST_MEAN / mean.clamp(min=1e-9)).clamp(max=self._largest)

    def state(self) -> Tensor:
        """float64 [3]: all that changes."""
        return torch.cat((self.weight.unsqueeze(0), self.size))

    def load(self, state: Tensor) -> None:
        """Restores :meth:`state` bit for bit."""
        state = state.to(self.size)
        self.weight, self.size = state[0].clone(), state[1:].clone()
