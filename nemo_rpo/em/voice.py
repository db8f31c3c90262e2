"""The policy is one more voice about a pair, and like every other it weighs what it has shown to be worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The mean size that the bounded loss brings margins to. Chosen on simulated worlds other than those of
# docs/estimators.md: with less it lets go of hardly any pair, with more of most.
_LARGEST_MEAN = 3.0
# Of one annotator alone: that mean size by the share of labels that margins foretell beyond chance, 2P(agree)-1, and
# the least of it. Chosen on other worlds as well.
_MEAN_BY_FORETOLD = 5.0
_LEAST_MEAN = 0.05
# Steps over which the mean size of the margins, and their agreement with the labels, are taken, about.
_MEMORY = 20.0
_LONG_MEMORY = 50.0


class Voice:
    r"""What the policy's margins count for in the E-step, and how large they are.

    ::

        voice(Δ) = weight · trained · Δ        logit w = voice(Δ) + evidence of the votes

    There is no offset: Δ changes its sign when a pair is turned round, and so must what is believed of it; a voice that
    speaks for chosen at Δ = 0 would say how pairs were written down, not which response is better.

    The weight is ``1/link_tau`` until a fit says otherwise. A fit to margins from before training says that they are
    worth nothing (no better than chance, or of a scale that the votes do not tell) by the weight 0.

    A policy that has been trained on a pair repeats what it was told of it, louder. Where several have voted, that is
    no further witness: once every pair has been heard, margins of such pairs count as if they had the size of those
    that the weight was fitted to. ``trained`` is that size by the one of late, at most 1. It is 1 in the first pass,
    and for pairs with one vote, which only what the policy has learnt from other pairs can bring into doubt.

    Nothing here waits for the device.

    Attributes:
        weight: float64 []. 0: the policy is not believed.
        fitted_size: float64 [], mean |Δ| of the margins from before training that the weight was fitted to; 0 where
            there are none.
        heard: float64 [], margins so far.
        size: float64 [2], discounted sum of the steps' mean |Δ|, and of the steps.
        agreed: float64 [2], discounted sum of the share of the steps' margins that agree with chosen, and of the steps.
    """

    def __init__(self, tau: float, device: torch.device | str = "cpu", pairs: float = math.inf) -> None:
        """``tau``: the configured temperature. ``pairs``: of the data, heard once in a pass; inf where nobody knows."""
        self._largest, self._pairs = 1.0 / tau, pairs
        self.weight = torch.full((), self._largest, dtype=torch.float64, device=device)
        self.size = torch.zeros(2, dtype=torch.float64, device=device)
        self.agreed = torch.zeros(2, dtype=torch.float64, device=device)
        self.fitted_size = torch.zeros_like(self.weight)
        self.heard = torch.zeros_like(self.weight)

    def __call__(self, delta: Tensor, several: Tensor) -> Tensor:
        """voice(Δ) [P] in the dtype of ``delta`` [P]; ``several`` bool [P]: pairs with more than one vote."""
        return delta * torch.where(several, self.weight * self.trained(), self.weight).to(delta.dtype)

    def trained(self) -> Tensor:
        """What is left of the weight for pairs with several votes, float64 []."""
        unchanged = (self.heard < self._pairs) | (self.fitted_size == 0)
        return torch.where(unchanged, 1.0, (self.fitted_size / self._mean_size()).clamp(max=1.0))

    def set_weight(self, weight: float, size: Tensor | None = None) -> None:
        """What a fit has found the policy to be worth.

        ``size`` float64 []: mean |Δ| of the margins that it was made on; None where they were not from before training.
        """
        self.weight = torch.full_like(self.weight, weight)
        self.fitted_size = torch.zeros_like(self.weight) if size is None else size.to(self.weight)

    def temperature(self) -> float:
        """τ = 1/weight; inf where the policy is not believed. Waits for the device."""
        weight = self.weight.item()
        return 1.0 / weight if weight else math.inf

    def hear(self, delta: Tensor, there: Tensor) -> None:
        """Takes in the margins [R] of a step's global batch, those that are ``there`` (bool [R]); the same on all
        ranks.
        """
        pairs = there.sum().clamp(min=1)
        size = torch.where(there, delta.double().abs(), 0.0).sum() / pairs
        agreed = torch.where(there, 0.5 + 0.5 * delta.double().sign(), 0.0).sum() / pairs
        one, any_there = torch.ones_like(size), there.any()
        self.heard = self.heard + there.sum()
        for name, value, memory in (("size", size, _MEMORY), ("agreed", agreed, _LONG_MEMORY)):
            before = getattr(self, name)
            after = before * (1.0 - 1.0 / memory) + torch.stack((value, one))
            setattr(self, name, torch.where(any_there, after, before))

    def sharpness(self, alone: bool = False) -> Tensor:
        """u, float64 []: what the bounded loss multiplies margins with: ``1/link_tau``, and less where they have grown
        so large that it would look at hardly any pair any more.

        ``alone``: chosen is what one annotator says, of whom nothing else is known. Then margins that foretell few of
        the labels are kept small, near the mean of all labels: which pairs such a policy has wrong, it does not know,
        and a loss that let go of them would choose by what it happened to believe first.
        """
        largest: Tensor | float = _LARGEST_MEAN
        if alone:
            agreed, steps = self.agreed
            foretold = 2 * agreed / steps.clamp(min=1.0 / _LONG_MEMORY) - 1
            largest = (_MEAN_BY_FORETOLD * foretold).clamp(_LEAST_MEAN, _LARGEST_MEAN)
        return (largest / self._mean_size()).clamp(max=self._largest)

    def _mean_size(self) -> Tensor:
        """Mean |Δ| of late, float64 []."""
        total, steps = self.size
        return (total / steps.clamp(min=1.0 / _MEMORY)).clamp(min=1e-9)

    def state(self) -> Tensor:
        """float64 [7]: all that changes."""
        last = torch.stack((self.fitted_size, self.heard))
        return torch.cat((self.weight.unsqueeze(0), self.size, self.agreed, last))

    def load(self, state: Tensor) -> None:
        """Restores :meth:`state` bit for bit; one of an earlier version has no agreement yet, or has not counted."""
        state = state.to(self.size)
        self.weight, self.size = state[0].clone(), state[1:3].clone()
        self.agreed = state[3:5].clone() if len(state) > 3 else torch.zeros_like(self.agreed)
        if len(state) > 5:
            self.fitted_size, self.heard = state[5].clone(), state[6].clone()
