"""What is known of annotators before a run's first step: where their reliabilities start, and what that rests on.

Shapes: K annotators.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Estimates from which the spread of the annotators can be told.
_FEWEST = 8
_EDGE = 1e-4
# A reliability that is given and not to be fitted is as one that so many known answers stand behind.
_CERTAIN = 1e6


class Belief(NamedTuple):
    """Reliabilities from elsewhere, such as the last round of a loop.

    Attributes:
        start: float64 [K], η before the first step.
        known: float64 [2, K], right and wrong answers of each annotator that count beside the labels of the data, as if
            their truths were known. They are pseudo-labels of the prior, of one annotator alone.
        standard_error: float64 [K], of ``start``; nan where it is not known.
    """

    start: Tensor
    known: Tensor
    standard_error: Tensor

    @classmethod
    def none(cls, num_annotators: int, eta_init: float, device: torch.device | str = "cpu") -> Belief:
        """Nothing is known of anybody."""
        start = torch.full((num_annotators,), eta_init, dtype=torch.float64, device=device)
        return cls(start, torch.zeros(2, num_annotators, dtype=torch.float64, device=device), start * math.nan)

    def to(self, device: torch.device | str) -> Belief:
        """On ``device``."""
        return Belief(*(of.to(device) for of in self))

    def certain(self) -> Belief:
        """The same start, known so well that labels hardly move it: for a likelihood at given reliabilities."""
        return self._replace(known=_CERTAIN * torch.stack((self.start, 1 - self.start)))


def answers_behind(eta: Tensor, standard_error: Tensor, labels: Tensor, prior: tuple[float, float]) -> Tensor:
    r"""The known answers, right and wrong float64 [2, K], that each annotator's labels came to in earlier estimates.

    An estimate mixes what an annotator has shown with what was expected of anybody. On the scale of θ = logit η, with
    V = (error/η(1-η))² and a population N(μ, σ²)::

        I = 1/V - 1/σ²        θ_own = (θ/V - μ/σ²) / I        N = I / η(1-η)        right = N σ(θ_own)

    where I is the information of the labels alone, which N known answers would give. The population is that of the
    estimates themselves, σ² = Var θ + mean V; of fewer than eight it is the prior's. N is never more than the labels.

    Args:
        eta, standard_error: float64 [K]; an error of nan, or of 0, has no answers behind it.
        labels: float64 [K], labels the estimates rest on.
        prior: (a, b), what is expected of an annotator.
    """
    nothing = torch.zeros(2, len(eta), dtype=torch.float64, device=eta.device)
    eta, spread = eta.double().clamp(_EDGE, 1 - _EDGE), eta.double() * (1 - eta.double())
    variance = (standard_error.double() / (eta * (1 - eta))) ** 2
    known = variance.isfinite() & (variance > 0)
    if not known.any():
        return nothing
    theta = torch.logit(eta)
    if int(known.sum()) < _FEWEST:
        ab = torch.tensor(prior, dtype=torch.float64).clamp(min=0.5)
        (right, wrong), (one, other) = torch.digamma(ab).tolist(), torch.polygamma(1, ab).tolist()
        mean, population = right - wrong, one + other
    else:
        mean = theta[known].mean().item()
        population = (theta[known].var(correction=0) + variance[known].mean()).item()
    information = (1 / variance - 1 / population).clamp(min=0.0)
    own = torch.sigmoid((theta / variance - mean / population) / information.clamp(min=1e-9))
    answers = torch.minimum(information / spread.clamp(min=_EDGE), labels.double())
    return torch.where(known, answers * torch.stack((own, 1 - own)), nothing)
