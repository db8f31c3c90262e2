"""Which positions of a micro-batch are scored: the response tokens, and the positions that predict them.

Shapes: b rows of S positions (what the model sees), n response tokens in all, m sequences (responses), T turns of the
assistant in the response that has most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nemo_rpo.megatron.batch.context_parallel import sum_over_context

IGNORED = -100  # the label of a position that is not scored, as in torch's cross entropy


class Share(NamedTuple):
    """What a context-parallel rank knows of the tokens that it shares with others.

    Attributes:
        places: int64 ``[n]``, where its tokens stand among those of all ranks.
        tokens: their number.
        lengths, turns: int64 ``[m]``, tokens and turns of each response on all ranks.
    """

    places: Tensor
    tokens: int
    lengths: Tensor
    turns: Tensor


@dataclass(frozen=True)
class ResponseTokens:
    """The scored tokens of a micro-batch, response after response; of a context-parallel rank, those whose predictors
    it has.

    Attributes:
        index: int64 ``[n]``; hidden state ``index`` of ``[S, b, h]``, flattened over its first two dimensions, predicts
            the token: the one before it.
        token: int64 ``[n]``.
        lengths: int64 ``[m]``, tokens of each response; they add up to n.
        turn_lengths: int64 ``[m, T]``, of these the tokens of each turn; 0 beyond a response's last.
        begin, end: int64 ``[m]``, the hidden states (as in ``index``) before a response's first token and at its last;
            -1 where another context-parallel rank has it.
        share: of a context-parallel rank.
    """

    index: Tensor
    token: Tensor
    lengths: Tensor
    turn_lengths: Tensor
    begin: Tensor
    end: Tensor
    share: Share | None = None

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
        """Of a micro-batch as :func:`nemo_rpo.data.batches.packed.collate_packed` makes it."""
        lengths = batch["response_lengths"]
        turn_lengths = lengths.unsqueeze(1) if turn_lengths is None else turn_lengths
        index = batch["response_index"]
        begin = index[lengths.cumsum(0) - lengths]
        return cls(index, batch["response_tokens"], lengths, turn_lengths, begin, batch["response_ends"])

    def on_positions(self, positions: Tensor, length: int, rows: int) -> ResponseTokens:
        """What is left on a rank that has only ``positions`` int64 of each of ``rows`` rows of ``length``.

        A token goes where its predictor is, which may be another rank than its own: labels are shifted before the
        sequence is split.
        """
        here = torch.full((length,), -1)
        here[positions] = torch.arange(len(positions))

        def moved(index: Tensor) -> Tensor:
            position = here[index // rows]
            return torch.where(position < 0, -1, position * rows + index % rows)

        index = moved(self.index)
        places = (index >= 0).nonzero().squeeze(1)
        turn = torch.arange(self.turn_lengths.numel()).repeat_interleave(self.turn_lengths.flatten())
        turn_lengths = turn[places].bincount(minlength=self.turn_lengths.numel()).view(self.turn_lengths.shape)
        share = Share(places, len(self.index), self.lengths, self.turns())
        return ResponseTokens(
            index[places],
            self.token[places],
            turn_lengths.sum(1),
            turn_lengths,
            moved(self.begin),
            moved(self.end),
            share,
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> ResponseTokens:
        """The same with ``function`` of each tensor."""
        tensors = (self.index, self.token, self.lengths, self.turn_lengths, self.begin, self.end)
        share = self.share and Share(*(function(x) if isinstance(x, Tensor) else x for x in self.share))
        return ResponseTokens(*map(function, tensors), share)

    def of_all_ranks(self, values: Tensor) -> Tensor:
        """``values [n]`` of the tokens here as those of all context-parallel ranks, in the order of the responses.

        One all-reduce over the context-parallel ranks, of 4 bytes a token in fp32.
        """
        if self.share is None:
            return values
        return sum_over_context(values.new_zeros(self.share.tokens).index_copy(0, self.share.places, values))

    def lengths_on_all_ranks(self) -> Tensor:
        """Tokens of each response, wherever they are, int64 ``[m]``: what :meth:`of_all_ranks` is cut into."""
        return self.lengths if self.share is None else self.share.lengths

    def sums(self, logprobs: Tensor) -> Tensor:
        """log π(y | x), fp32 ``[m]``, of log-probs fp32 ``[n]``; a response without a token here is 0 here.

        Summed in float64: a thousand tokens make a sum whose last fp32 digits would depend on the order, and margins
        are small differences of such sums. Collectives: :func:`sum_over_context`, 8 bytes a response.
        """
        return _sums(logprobs, self.lengths)

    def turn_sums(self, logprobs: Tensor) -> Tensor:
        """:meth:`sums` of each turn, fp32 ``[m, T]``."""
        return _sums(logprobs, self.turn_lengths.flatten()).view(self.turn_lengths.shape)

    def turns(self) -> Tensor:
        """Turns of each response, int64 ``[m]``."""
        return (self.turn_lengths > 0).sum(1) if self.share is None else self.share.turns


def _sums(values: Tensor, lengths: Tensor) -> Tensor:
    return sum_over_context(torch.segment_reduce(values.double(), "sum", lengths=lengths, unsafe=True)).float()
