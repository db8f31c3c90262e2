"""Log-probabilities of given tokens straight from hidden states: logits exist one block of the vocabulary at a time.

A language-model head over 128k words makes 512 KiB of fp32 logits a token, and autograd keeps them twice; for a batch
of pairs that is more than the rest of the model. Here a block of logits is used and thrown away, forward and again
backward, so the price is one more matrix product.

Shapes: n tokens, h hidden size, v rows of the head that this tensor-parallel rank holds, b rows of a block.

The plain way to the same numbers, through all logits: :mod:`nemo_rpo.megatron.logprobs.from_logits`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx

from nemo_rpo.megatron.logprobs.vocab_chunks import (
    HeadGradients,
    block_logits,
    blocks,
    logsumexp_,
    over_blocks,
    rows_here,
)


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    block_elements: int | None = None,
) -> Tensor:
    """``log softmax(hidden · weightᵀ)[target]`` of every token, fp32 ``[n]``.

    Args:
        hidden: ``[n, h]``, equal on the ranks of ``group``.
        weight: ``[v, h]``, rows ``rank · v …`` of the head. Rows at and beyond ``vocab_size`` are padding: they get no
            probability and no gradient.
        targets: int64 ``[n]``, below ``vocab_size``.
        vocab_size: real tokens, over all ranks.
        group: the tensor-parallel ranks; None: this one has the whole head.
        block_elements: logits that exist at a time, n·b; None: :data:`.vocab_chunks.BLOCK_ELEMENTS`.

    Differentiable in ``hidden`` and ``weight``, for any upstream gradient: with p the softmax and g the upstream
    gradient, ``∂hidden = Σ_v g (1[v = target] − p_v) weight_v`` is this rank's share of the sum, to be added up over
    ``group`` by whoever made ``hidden`` equal on its ranks. It is accumulated in fp32. A row of ``∂weight`` is the
    product of one block, with no sum over blocks to round; where Megatron keeps an fp32 ``weight.main_grad``, it is
    added there at once, as its own fused kernels do.

    Collectives: forward, two all-reduces over ``group``, of n and 2n fp32 numbers; backward, none.
    """
    return _LinearLogprobs.apply(hidden, weight, targets, vocab_size, group, block_elements)


class _LinearLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        block_elements: int | None,
    ) -> Tensor:
        first_row = 0 if group is None else dist.get_rank(group) * weight.shape[0]
        ctx.blocks = blocks(rows_here(vocab_size, first_row, weight), hidden, block_elements)
        local = targets - first_row
        log_sums, picked = [], torch.zeros_like(targets, dtype=torch.float32)
        for block in ctx.blocks:
            logits = block_logits(hidden, weight[block])
            column, inside = _columns(local, block)
            picked += torch.where(inside, logits.gather(1, column).squeeze(1), 0.0)
            log_sums.append(logsumexp_(logits))
        log_sum = over_blocks(log_sums, hidden, empty=-torch.inf).logsumexp(0)
        if group is not None:
            log_sum, picked = _over_ranks(log_sum, picked, group)
        ctx.save_for_backward(hidden, weight, local, log_sum)
        return picked - log_sum

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Any, ...]:
        hidden, weight, local, log_sum = ctx.saved_tensors
        gradients = HeadGradients(hidden, weight, *ctx.needs_input_grad[:2])
        upstream = upstream.float().unsqueeze(1)
        for block in ctx.blocks:
            gradient = block_logits(hidden, weight[block]).sub_(log_sum.unsqueeze(1)).exp_().mul_(-upstream)
            column, inside = _columns(local, block)
            gradient.scatter_add_(1, column, torch.where(inside.unsqueeze(1), upstream, 0.0))
            gradients.add(block, gradient)
        return *gradients.for_autograd(), *[None] * 4


def _columns(local: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Each target's column in the block, ``[n, 1]`` (any, where it is in none), and whether it is in it, ``[n]``."""
    inside = (local >= block.start) & (local < block.stop)
    return (local - block.start).clamp(0, block.stop - block.start - 1).unsqueeze(1), inside


def _over_ranks(log_sum: Tensor, picked: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials, and the target's logit, over the vocabulary of all ranks."""
    largest = log_sum.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    both = torch.stack(((log_sum - largest).exp(), picked))
    dist.all_reduce(both, group=group)
    return both[0].log().add_(largest), both[1]
