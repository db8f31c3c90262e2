"""Which positions of a micro-batch are scored: the response tokens, and the positions that predict them.

Shapes: b rows of S positions (what the model sees), n response tokens in all, m sequences (responses), T turns of the
assistant in the response that has most.
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
        turn_lengths: int64 ``[m, T]``, of these the tokens of each turn; 0 beyond a response's last.
        begin, end: int64 ``[m]``, the hidden states (as in ``index``) before a response's first token and at its last.
    """

    index: Tensor
    token: Tensor
    lengths: Tensor
    turn_lengths: Tensor
    begin: Tensor
    end: Tensor

    @classmethod
    def of_labels(cls, labels: Tensor, turn_lengths: Tensor | None = None) -> ResponseTokens:
        """From ``labels [m, S]`` that are a token's id where it is scored and -100 elsewhere, a row a response; without
        ``turn_lengths`` each is one turn.

        Waits for the device; called on the CPU, where the batch is made.
        """
        b, scored = len(labels), labels[:, 1:] != IGNORED
        row, position = scored.nonzero(as_tuple=True)
        lengths = torch.bincount(row, minlength=b)
        turn_lengths = lengths.unsqueeze(1) if turn_lengths is None else turn_lengths
        first, last = scored.int().argmax(1), scored.shape[1] - scored.flip(1).int().argmax(1)
        begin, end = (place * b + torch.arange(b) for place in (first, last))
        return cls(position * b + row, labels[row, position + 1], lengths, turn_lengths, begin, end)

    @classmethod
    def of_pack(cls, batch: Mapping[str, Tensor], turn_lengths: Tensor | None = None) -> ResponseTokens:
        """Of a micro-batch as :func:`nemo_rpo.data.collate_packed.collate_packed` makes it."""
        lengths = batch["response_lengths"]
        turn_lengths = lengths.unsqueeze(1) if turn_lengths is None else turn_lengths
        index = batch["response_index"]
        begin = index[lengths.cumsum(0) - lengths]
        return cls(index, batch["response_tokens"], lengths, turn_lengths, begin, batch["response_ends"])

    def to(self, device: torch.device) -> ResponseTokens:
        tensors = (self.index, self.token, self.lengths, self.turn_lengths, self.begin, self.end)
        return ResponseTokens(*(tensor.to(device, non_blocking=True) for tensor in tensors))

    def sums(self, logprobs: Tensor) -> Tensor:
        """log π(y | x), fp32 ``[m]``, of log-probs fp32 ``[n]``.

        Summed in float64: a thousand tokens make a sum whose last fp32 digits would depend on the order, and margins
        are small differences of such sums.
        """
        return _sums(logprobs, self.lengths)

    def turn_sums(self, logprobs: Tensor) -> Tensor:
        """:meth:`sums` of each turn, fp32 ``[m, T]``."""
        return _sums(logprobs, self.turn_lengths.flatten()).view(self.turn_lengths.shape)

    def turns(self) -> Tensor:
        """Turns of each response, int64 ``[m]``."""
        return (self.turn_lengths > 0).sum(1)


def _sums(values: Tensor, lengths: Tensor) -> Tensor:
    return torch.segment_reduce(values.double(), "sum", lengths=lengths, unsafe=True).float()
