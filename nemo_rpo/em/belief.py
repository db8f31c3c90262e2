"""What is known of annotators before a run's first step: where their reliabilities start, and what that rests on.

Shapes: K annotators.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

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


def carried(eta: Tensor, standard_error: Tensor, labels: Tensor, prior: tuple[float, float], carry: float) -> Tensor:
    r"""The known answers, float64 [2, K], that estimates of an earlier run are worth in the next.

    An estimate with standard error s says as much as N = η(1-η)/s² known answers, of which the prior's a + b were no
    answers of the annotator. What is left, never more than the ``labels`` that he gave, counts for its share ``carry``:
    evidence of r rounds ago for ``carry``^r, since a judge, or what is judged, may have changed.

    Args:
        eta, standard_error: float64 [K]; an error of nan, or of 0, carries nothing.
        labels: float64 [K], labels the estimates rest on.
        prior: (a, b), pseudo-labels right and wrong that they were fitted with.
        carry: from 0 to 1.

    Of 20 answers that were known, 15 of them right, fitted with the prior (3, 1):

    >>> eta, n = torch.tensor([18 / 24], dtype=torch.float64), 24
    >>> carried(eta, (eta * (1 - eta) / n).sqrt(), torch.tensor([20.0]), (3.0, 1.0), 0.5)
    tensor([[7.5000],
            [2.5000]], dtype=torch.float64)
    """
    a, b = prior
    answers = (eta * (1 - eta) / standard_error**2).nan_to_num(nan=0.0, posinf=0.0)
    own = answers - a - b
    right = ((answers * eta - a) / own.clamp(min=1e-9)).clamp(0.0, 1.0)
    counted = carry * torch.minimum(own.clamp(min=0.0), labels)
    return torch.stack((counted * right, counted * (1 - right)))
