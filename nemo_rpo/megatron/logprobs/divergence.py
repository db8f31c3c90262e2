"""KL divergence of a frozen policy's next-token distributions to the policy's own, straight from hidden states of both:
neither's logits exist but for one block of the vocabulary.

Shapes: n tokens, h hidden size, v rows of the heads that this tensor-parallel rank holds, b rows of a block.
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


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    frozen_hidden: Tensor,
    frozen_weight: Tensor,
    vocab_size: int,
    group: dist.ProcessGroup | None = None,
    block_elements: int | None = None,
) -> Tensor:
    r"""``KL(q ‖ p) = Σ_v q_v (log q_v − log p_v)`` of every token, fp32 ``[n]``, with p = softmax(hidden · weightᵀ) and
    q = softmax(frozen_hidden · frozen_weightᵀ). Exactly 0 where the two have the same bits.

    Args:
        hidden, frozen_hidden: ``[n, h]``, equal on the ranks of ``group``.
        weight, frozen_weight: ``[v, h]``, rows ``rank · v …`` of the heads; those at and beyond ``vocab_size`` are
            padding.
        vocab_size: real tokens, over all ranks.
        group: the tensor-parallel ranks; None: this one has the whole heads.
        block_elements: logits of either that exist at a time, n·b; None: :data:`.vocab_chunks.BLOCK_ELEMENTS`.

    Differentiable in ``hidden`` and ``weight``, for any upstream gradient g: that of the policy's logits is g (p − q).
    ``∂hidden`` is this rank's share of a sum over ``group``, as in :func:`.chunked.linear_logprobs`. Nothing
    flows into the frozen policy.

    Collectives: forward, two all-reduces over ``group``, of 2n and 3n fp32 numbers; backward, none.
    """
    return _LinearKL.apply(hidden, weight, frozen_hidden, frozen_weight, vocab_size, group, block_elements)


class _LinearKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        frozen_hidden: Tensor,
        frozen_weight: Tensor,
        vocab_size: int,
        group: dist.ProcessGroup | None,
        block_elements: int | None,
    ) -> Tensor:
        first_row = 0 if group is None else dist.get_rank(group) * weight.shape[0]
        ctx.blocks = blocks(rows_here(vocab_size, first_row, weight), hidden, block_elements)
        log_sums, frozen_log_sums, means = [], [], []
        for block in ctx.blocks:
            logits = block_logits(hidden, weight[block])
            frozen = block_logits(frozen_hidden, frozen_weight[block])
            difference = frozen - logits
            means.append((difference.mul_(frozen.softmax(1))).sum(1))  # under q, given that the token is in the block
            log_sums.append(logsumexp_(logits))
            frozen_log_sums.append(logsumexp_(frozen))
        log_sum = over_blocks(log_sums, hidden, empty=-torch.inf).logsumexp(0)
        of_block = over_blocks(frozen_log_sums, hidden, empty=-torch.inf)
        frozen_log_sum = of_block.logsumexp(0)
        # A rank of padding alone: its weights would be NaN, its mean is nothing.
        share = (of_block - frozen_log_sum.nan_to_num(neginf=0.0)).exp()
        mean = (share * over_blocks(means, hidden, empty=0.0)).sum(0)
        if group is not None:
            log_sum, frozen_log_sum, mean = _over_ranks(log_sum, frozen_log_sum, mean, group)
        ctx.save_for_backward(hidden, weight, frozen_hidden, frozen_weight, log_sum, frozen_log_sum)
        return mean - (frozen_log_sum - log_sum)

    @staticmethod
    def backward(ctx: FunctionCtx, upstream: Tensor) -> tuple[Any, ...]:
        hidden, weight, frozen_hidden, frozen_weight, log_sum, frozen_log_sum = ctx.saved_tensors
        gradients = HeadGradients(hidden, weight, *ctx.needs_input_grad[:2])
        upstream = upstream.float().unsqueeze(1)
        for block in ctx.blocks:
            p = block_logits(hidden, weight[block]).sub_(log_sum.unsqueeze(1)).exp_()
            q = block_logits(frozen_hidden, frozen_weight[block]).sub_(frozen_log_sum.unsqueeze(1)).exp_()
            gradients.add(block, p.sub_(q).mul_(upstream))
        return *gradients.for_autograd(), *[None] * 5


def _over_ranks(
    log_sum: Tensor, frozen_log_sum: Tensor, mean: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor]:
    """Both logs of sums of exponentials, and the mean under q, over the vocabulary of all ranks."""
    local = torch.stack((log_sum, frozen_log_sum))
    largest = local.clone()
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
    sums = (local - largest).exp()
    packed = torch.cat((sums, sums[1:] * mean))
    dist.all_reduce(packed, group=group)
    log_sum, frozen_log_sum = packed[:2].log().add_(largest)
    return log_sum, frozen_log_sum, packed[2] / packed[1]
