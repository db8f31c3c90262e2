"""What the last pipeline stage returns for the responses of a micro-batch, and how it is requested.

Shapes: n scored tokens, h hidden size, v rows of the head that a tensor-parallel rank holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class HeadOutputs(dict[str, Tensor]):
    """Outputs by name."""

    @property
    def device(self) -> torch.device:
        """Where they are; Megatron's schedule asks the last stage's output for it where there are experts."""
        return next(iter(self.values())).device


class FrozenPredictions(NamedTuple):
    """What a frozen policy predicts at the scored positions: hidden states ``[n, h]``, and its head ``[v, h]``."""

    hidden: Tensor
    head: Tensor


@dataclass(frozen=True)
class HeadRequest:
    """What the last stage outputs, by name.

    Attributes:
        logps: log-probs of the scored tokens, fp32 ``[n]``.
        hidden: the hidden states that predict them, ``[n, h]`` in the model's precision, equal on the tensor-parallel
            ranks; for :class:`FrozenPredictions`.
        kl: the divergence of these predictions to the model's own at each scored token, fp32 ``[n]``.
        kl_from: the divergence of the model's own predictions to these at each scored token, fp32 ``[n]``; without a
            gradient.
        reward: the outputs of the reward head of each response, by their names.
    """

    logps: bool = True
    hidden: bool = False
    kl: FrozenPredictions | None = None
    kl_from: FrozenPredictions | None = None
    reward: bool = False
