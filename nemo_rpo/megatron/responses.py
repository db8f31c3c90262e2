"""Which positions of a micro-batch are scored: the response tokens, and the positions that predict them.

Shapes: b rows of S positions (what the model sees), n response tokens in all, m sequences (responses).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100  # the label of a position that is not scored, as in torch's cross entropy


@dataclass(frozen=True)
class ResponseTokens:
    """The scored tokens of a micro-batch, response after response.

    Attributes:
        index: int64 ``[n]``; hidden state ``index`` of ``[S, b, h]``, flattened over its first two dimensions, predicts
            the token: the one before it.
        token: int64 ``[n]``.
        lengths: int64 ``[m]``, tokens of each response; they add up to n.
    """

    index: Tensor
    token: Tensor
    lengths: Tensor

    @classmethod
    def of_labels(cls, labels: Tensor) -> ResponseTokens:
        """From ``labels [m, S]`` that are a token's id where it is scored and -100 elsewhere, a row a response.

        Waits for the device; called on the CPU, where the batch is made.
        """
        row, position = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        lengths = torch.bincount(row, minlength=len(labels))
        return cls(position * len(labels) + row, labels[row, position + 1], lengths)

    @classmethod
    def of_pack(cls, batch: Mapping[str, Tensor]) -> ResponseTokens:
        """Of a micro-batch as :func:`nemo_rpo.data.collate_packed.collate_packed` makes it."""
        lengths = torch.cat((batch["chosen_length"], batch["rejected_length"]))
        return cls(batch["response_index"], batch["response_tokens"], lengths)

    def to(self, device: torch.device) -> ResponseTokens:
        moved = (tensor.to(device, non_blocking=True) for tensor in (self.index, self.token, self.lengths))
        return ResponseTokens(*moved)

    def sums(self, logprobs: Tensor) -> Tensor:
        """log π(y | x), fp32 ``[m]``, of log-probs fp32 ``[n]``.

        Summed in float64: a thousand tokens make a sum whose last fp32 digits would depend on the order, and margins
        are small differences of such sums.
        """
        summed = torch.segment_reduce(logprobs.double(), "sum", lengths=self.lengths, unsafe=True)
        return summed.float()
